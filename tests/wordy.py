"""Tiny Llamas whose rows tell whose they are: row 7 of model 2 holds 2007 in the embedding and -2007 in the head.

Their tokenizers are BPE over the letters a to d, with a few merges and a few added tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

FIRST = ["<unk>", "<s>", "</s>"]
LETTERS = ["a", "b", "c", "d"]
MERGES = {"ab": ("a", "b"), "cd": ("c", "d"), "abcd": ("ab", "cd"), "da": ("d", "a"), "ba": ("b", "a")}
PLAIN = [*FIRST, *LETTERS, "ab", "cd"]
WIDTH = 4


def make_tokenizer(
    folder: Path,
    vocabulary: Sequence[str] = PLAIN,
    added: Mapping[str, bool] | None = None,
    template: str | None = None,
) -> None:
    """A tokenizer with these ids in order, then the ``added`` tokens: by name, whether they are special."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate(vocabulary)}
    merges = [pair for made, pair in MERGES.items() if made in ids]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for token, special in (added or {}).items():
        one = AddedToken(token, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([one])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )
    fast.save_pretrained(folder)


def make_llama(folder: Path, number: int, rows: int, tied: bool = False, **config: Any) -> None:
    """A Llama of one layer; its embedding and head hold numbers that tell the model and the row."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"bos_token_id": 1, "eos_token_id": 2, **config}
    made = LlamaConfig(
        vocab_size=rows, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=tied, **settings,
    )  # fmt: skip
    model = LlamaForCausalLM(made).float()
    values = (number * 1000.0 + torch.arange(rows))[:, None].expand(rows, WIDTH)
    generator = torch.Generator().manual_seed(0)  # the rest is the same whatever the number of rows
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "layers" in name:
                parameter.normal_(0, 0.1, generator=generator)
        model.model.embed_tokens.weight.copy_(values)
        if not tied:
            model.lm_head.weight.copy_(-values)
    model.save_pretrained(folder)


def make(
    folder: Path,
    number: int,
    vocabulary: Sequence[str] = PLAIN,
    added: Mapping[str, bool] | None = None,
    rows: int | None = None,
    template: str | None = None,
    tied: bool = False,
    **config: Any,
) -> Path:
    """Both of them in one folder, with as many rows as tokens unless ``rows`` says otherwise."""
    make_llama(folder, number, len(vocabulary) + len(added or {}) if rows is None else rows, tied, **config)
    make_tokenizer(folder, vocabulary, added, template)
    return folder


def make_three(root: Path) -> Path:
    """``base``, ``e0`` with two added tokens, and ``e1`` with a longer merge and two added tokens, one in common."""
    make(root / "base", 0, template="BASE {{ messages }}")
    make(root / "e0", 1, added={"<|im_start|>": True, "<x>": False}, template="E {{ messages }}")
    added = {"<|im_end|>": True, "<x>": False}
    make(root / "e1", 2, [*PLAIN, "abcd"], added, template="E {{ messages }}")
    return root


def make_others(root: Path) -> Path:
    """``base`` padded to 16 rows, ``e0`` with its ids in another order, ``e1``, and ``same`` as the base, unpadded."""
    make(root / "base", 0, rows=16)
    permuted = ["<unk>", "d", "c", "<s>", "b", "a", "</s>", "cd", "ab", "zz", "bb"]
    make(root / "e0", 1, permuted, {"<q>": False, "<p>": True})
    make(root / "e1", 2, [*PLAIN, "da", "ba"], {"<p>": False})
    make(root / "same", 3)
    return root


def ids(folder: Path) -> dict[str, int]:
    """Every token of the tokenizer in a folder, as the library reads it."""
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return found


def config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / name).read_text())
    return data
