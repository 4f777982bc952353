"""What a score is, for every kind of task, against the same computed directly with transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored
import tiny
import torch
from PIL import Image
from torch.nn.functional import normalize

from dopkit import loading
from dopkit.errors import EvaluationError
from dopkit.evaluation.running import evaluate
from dopkit.evaluation.targets import Target
from dopkit.evaluation.tasks import parse_tasks
from dopkit.evaluation.zero_shot import read_prompts
from dopkit.progress import Progress

IMAGES = scored.grey(40)


def score(model: Path, text: str, **target: Any) -> dict[str, Any]:
    """What the one task of ``text`` scores on one model."""
    task = parse_tasks(f"tasks: [{text}]", model.parent)
    given = {"label": model.name, "kind": "model", "backbone": model, "heads": model, **target}
    (row,) = evaluate([Target(**given)], task, "cpu")["rows"]
    (found,) = row["scores"].values()
    return dict(found)


def refusal(model: Path, text: str, **target: Any) -> list[str]:
    with pytest.raises(EvaluationError) as caught:
        score(model, text, **target)
    return [line.strip() for line in str(caught.value).splitlines()]


@pytest.fixture
def answered(tmp_path: Path) -> Callable[[torch.Tensor], float]:
    """Saves IMAGES with labels of which about half are those that the logits say; the share that is."""

    def save(logits: torch.Tensor) -> float:
        guesses = logits.argmax(dim=1).numpy()
        labels = np.where(np.arange(len(guesses)) % 2 == 0, guesses, 0)
        np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
        return float((labels == guesses).mean())

    return save


IMAGE_TASK = "{name: a, kind: image-classification, data: a.npz, batch_size: 7}"


def test_a_classifier_of_its_own(tmp_path: Path, answered: Callable[[torch.Tensor], float]) -> None:
    model = scored.make_classifier(tmp_path / "vit", list("abc"))
    with torch.inference_mode():
        expected = answered(loading.load(model)(scored.pixel_values(IMAGES)).logits)
    assert 0.5 < expected < 1
    found = score(model, IMAGE_TASK)
    assert (found["value"], found["samples"]) == (expected, 40)
    assert found["seconds"] >= 0


def test_a_kept_head_on_another_backbone(tmp_path: Path, answered: Callable[[torch.Tensor], float]) -> None:
    base = tiny.make_vit(tmp_path / "base")
    expert = scored.make_classifier(tmp_path / "vit", list("abc"))
    scored.keep_head(expert, base, "a")
    with torch.inference_mode():
        expected = answered(loading.load(base, "a")(scored.pixel_values(IMAGES)).logits)
    shutil.copyfile(expert / "preprocessor_config.json", base / "preprocessor_config.json")
    bare = tiny.make_vit(tmp_path / "bare")  # without an image processor of its own it takes that of the merge
    assert score(bare, IMAGE_TASK, heads=base)["value"] == expected


def test_what_a_model_cannot_take(tmp_path: Path, answered: Callable[[torch.Tensor], float]) -> None:
    """Images of a size that is not the model's; words that it has no embeddings for."""
    model = scored.make_classifier(tmp_path / "vit", list("abc"))
    answered(torch.zeros(40, 3))
    (model / "preprocessor_config.json").write_text(json.dumps({**scored.PROCESSOR, "size": {"height": 9, "width": 9}}))
    first, what, remedy = refusal(model, IMAGE_TASK)
    assert first == "a: vit cannot be scored" and "ValueError" in what and "image processor" in remedy
    small = scored.make_language_model(tmp_path / "lm")
    scored.make_tokenizer(small, pad=None)
    text = (small / "tokenizer.json").read_text().replace(f'"{scored.WORDS[-1]}": {len(scored.WORDS)}', '"dog": 99')
    (small / "tokenizer.json").write_text(text)
    np.savez(tmp_path / "p.npz", text=["the dog is good"])
    assert refusal(small, "{name: p, kind: perplexity, data: p.npz}")[0] == "p: lm cannot be scored"


def test_class_folders_of_files(tmp_path: Path) -> None:
    """Each image lies in the folder of the class that the model sees in it, but for one."""
    model = scored.make_classifier(tmp_path / "vit", ["cat", "dog", "owl"])
    with torch.inference_mode():
        guesses = loading.load(model)(scored.pixel_values(IMAGES)).logits.argmax(dim=1)
    for index, guess in enumerate([(int(guesses[0]) + 1) % 3, *guesses[1:].tolist()]):
        folder = tmp_path / "images" / ["cat", "dog", "owl"][guess]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[index]).save(folder / f"{index}.png")
    found = score(model, "{name: a, kind: image-classification, data: ./images}")
    assert (found["value"], found["samples"]) == (39 / 40, 40)


def test_text_classification(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = scored.make_bert(tmp_path / "bert", ["bad", "good", "none"], seed=3)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(scored.WORDS, rng.integers(1, 30))) for _ in range(30)]
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), loading.load(model)
    guesses = []
    for text in texts:  # one by one: no padding; cut to the model's 16 positions
        with torch.inference_mode():
            tokens = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
            guesses.append(int(loaded(**tokens).logits.argmax()))
    assert len(set(guesses)) > 1
    labels = np.array(["bad", "good", "none"])[[*guesses[:20], *([0] * 10)]]
    np.savez(tmp_path / "t.npz", text=texts, label=labels)
    expected = (20 + sum(guess == 0 for guess in guesses[20:])) / 30
    found = score(model, "{name: t, kind: text-classification, data: t.npz, batch_size: 4}")
    assert found["value"] == pytest.approx(expected)


@pytest.mark.parametrize("own", [1, 5, None], ids=["the tokenizer's", "another", "none"])
def test_padding_that_a_decoder_does_not_take_for_padding(tmp_path: Path, own: int | None) -> None:
    """It answers at the last token that is no padding. The tokenizer's, 1, may be another than the model's."""
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=own)
    model = GPT2ForSequenceClassification(config)
    scored.stir(model, 1.0)
    model.save_pretrained(tmp_path / "gpt")
    scored.make_tokenizer(tmp_path / "gpt")
    tokenizer, rng = AutoTokenizer.from_pretrained(tmp_path / "gpt"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(scored.WORDS, rng.integers(1, 30))) for _ in range(30)]
    with torch.inference_mode():  # one by one: no padding
        guesses = [int(model.eval()(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    assert len(set(guesses)) > 1
    np.savez(tmp_path / "t.npz", text=texts, label=guesses)
    assert score(tmp_path / "gpt", "{name: t, kind: text-classification, data: t.npz, batch_size: 8}")["value"] == 1.0


def test_perplexity_of_a_text(tmp_path: Path) -> None:
    """The rows are one text, tokenised as one: ids by hand, one window, transformers' own loss."""
    model = scored.make_language_model(tmp_path / "lm")
    np.savez(tmp_path / "p.npz", text=["the cat is good", "a sad day"])
    words = ["the", "cat", "is", "good", "a", "sad", "day"]
    ids = torch.tensor([[1 + scored.WORDS.index(word) for word in words]])
    with torch.inference_mode():
        loss = loading.load(model)(input_ids=ids, labels=ids).loss.item()
    found = score(model, "{name: p, kind: perplexity, data: p.npz}")
    assert found["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found["tokens"], found["samples"]) == (6, 2)


def test_a_text_of_one_token(tmp_path: Path) -> None:
    model = scored.make_language_model(tmp_path / "lm")
    np.savez(tmp_path / "p.npz", text=["cat"])
    assert refusal(model, "{name: p, kind: perplexity, data: p.npz}") == [
        "p: the text has 1 tokens; perplexity needs at least 2"
    ]


def test_a_model_whose_loss_is_no_number(tmp_path: Path) -> None:
    model = tiny.edit(
        scored.make_language_model(tmp_path / "lm"), tmp_path / "broken",
        lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()},
    )  # fmt: skip
    np.savez(tmp_path / "p.npz", text=["the cat is good"])
    assert refusal(model, "{name: p, kind: perplexity, data: p.npz}") == [
        "p: the model's loss is nan: it is broken, or not for this text"
    ]


# CLIP without a head

CLASSES, TEMPLATES = ["zero", "one", "two"], ["a photo of {}", "the number {}", "{}"]
ZERO_SHOT = f"zero_shot: {{classes: {CLASSES}, templates: {TEMPLATES}}}"
CLIP_TASK = f"{{name: a, kind: image-classification, data: a.npz, batch_size: 7, {ZERO_SHOT}}}"


def prompt_embeddings(base: Path) -> torch.Tensor:
    """Prompt by prompt, unpadded, with transformers alone."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    found = []
    for name in CLASSES:
        each = []
        for template in TEMPLATES:
            with torch.inference_mode():
                text = model.get_text_features(**tokenizer(template.format(name), return_tensors="pt")).pooler_output
            each.append(text[0] / text.norm())
        mean = torch.stack(each).mean(dim=0)
        found.append(mean / mean.norm())
    return torch.stack(found)


def test_prompts_are_normalised_averaged_and_normalised(tmp_path: Path) -> None:
    base = scored.make_clip(tmp_path / "clip")
    zero_shot = parse_tasks(f"tasks: [{CLIP_TASK}]")[0].zero_shot
    assert zero_shot is not None
    found = read_prompts(base, zero_shot, torch.device("cpu"))
    assert torch.allclose(found.classes, prompt_embeddings(base), atol=1e-5)


@pytest.mark.parametrize("architecture", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_zero_shot(tmp_path: Path, answered: Callable[[torch.Tensor], float], architecture: str) -> None:
    """A merged vision tower, whole or alone, is read with the base's text tower."""
    import transformers

    base, tuned = scored.make_clip(tmp_path / "base"), scored.make_clip(tmp_path / "tuned", seed=1)
    whole = transformers.CLIPModel.from_pretrained(tuned).eval()
    with torch.inference_mode():
        hidden = whole.vision_model(scored.pixel_values(IMAGES)).pooler_output
        own = loading.load(base if architecture == "CLIPVisionModel" else tuned)  # a bare tower has no projection
        images = normalize(hidden @ own.visual_projection.weight.T, dim=-1)
    expected = answered(images @ prompt_embeddings(base).T)
    assert 0.5 < expected < 1
    folder = tmp_path / architecture
    getattr(transformers, architecture).from_pretrained(tuned).save_pretrained(folder)
    shutil.copyfile(tuned / "preprocessor_config.json", folder / "preprocessor_config.json")
    task = CLIP_TASK.replace("zero_shot: {", "zero_shot: {base: ./base, ")
    assert score(folder, task)["value"] == expected


def test_prompts_are_read_once_for_all_steps(
    tmp_path: Path, answered: Callable[[torch.Tensor], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dopkit import refs

    base = scored.make_clip(tmp_path / "base")
    answered(torch.rand(40, 3))
    loaded: list[Any] = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda *given, **named: loaded.append(given[0]) or load(*given, **named))
    ref = refs.parse("./base", tmp_path)
    steps = [
        Target(f"step {step}", "step", scored.make_clip(tmp_path / f"{step}", seed=step), base, step, f"m{step}",
               tuple(f"m{earlier}" for earlier in range(1, step + 1)), ref)
        for step in (1, 2, 3)
    ]  # fmt: skip
    evaluate(steps, parse_tasks(f"tasks: [{CLIP_TASK}]", tmp_path), "cpu")
    assert loaded.count(base) == 1 and len(loaded) == 4


# What a model cannot be asked


def test_models_that_cannot_answer(tmp_path: Path, answered: Callable[[torch.Tensor], float]) -> None:
    answered(torch.rand(40, 3))
    np.savez(tmp_path / "t.npz", text=["a"], label=[0])
    clip, vit = scored.make_clip(tmp_path / "clip"), scored.make_classifier(tmp_path / "vit", list("abc"))
    scored.keep_head(vit, clip, "kept")
    assert refusal(clip, IMAGE_TASK)[1:] == [
        "a: clip cannot be read: it is CLIPModel, which has no classifier of its own",
        "Name a `head`. Kept heads: kept.",
    ]
    assert refusal(vit, IMAGE_TASK.replace("}", ", head: b}"))[1:] == [
        "a: vit cannot be read: there is no head 'b'", "Kept heads: none."
    ]  # fmt: skip
    assert refusal(vit, CLIP_TASK)[1:] == [
        "a: vit cannot be read: it is ViTForImageClassification; zero_shot reads CLIP"
    ]
    assert refusal(vit, "{name: t, kind: perplexity, data: t.npz}")[1:] == [
        "t: vit cannot be read: it has no tokenizer (tokenizer_config.json or tokenizer.json)"
    ]
    assert refusal(clip, "{name: t, kind: perplexity, data: t.npz}")[1:] == [
        "t: clip cannot be read: it is CLIPModel, no language model"
    ]
    assert refusal(clip, "{name: t, kind: text-classification, head: kept, data: t.npz}")[1:] == [
        "t: clip cannot be read: the head 'kept' is of ViTForImageClassification", "Kept heads: kept."
    ]  # fmt: skip
    assert refusal(clip, CLIP_TASK, kind="step")[1].startswith("a: clip cannot be read: the base that would read")
    tower = CLIP_TASK.replace("zero_shot: {", "zero_shot: {base: ./vit, ")
    assert refusal(clip, tower)[1] == (
        "a: clip cannot be read: the prompts would be read by ViTForImageClassification, which reads no text"
    )


def test_progress_counts_every_sample(tmp_path: Path) -> None:
    class Counting(Progress):
        def __init__(self) -> None:
            self.begun: list[tuple[str, int]] = []
            self.done = 0

        def begin_scoring(self, what: str, samples: int) -> None:
            self.begun.append((what, samples))

        def scored(self, samples: int) -> None:
            self.done += samples

    progress = Counting()
    model = scored.make_language_model(tmp_path / "lm")
    np.savez(tmp_path / "p.npz", text=["the cat is good " * 9, "a sad day"])
    tasks = parse_tasks("tasks: [{name: p, kind: perplexity, data: p.npz, batch_size: 1}]", tmp_path)
    evaluate([Target("lm", "model", model, model)], tasks, "cpu", progress)
    assert (progress.begun, progress.done) == ([("lm: p", 2)], 2)
