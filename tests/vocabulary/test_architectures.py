"""Every kind of model finds its tokens again: an expert with shuffled ids, put in the base's order, answers alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import wordy

import dopkit
from dopkit.skeleton import vocabulary_axes

MakeRecipe = Callable[..., dopkit.Recipe]
ORDER = [3, 0, 8, 1, 7, 2, 6, 4, 5]  # the expert's id i is the base's ORDER[i]
ROWS = len(ORDER)
TEXT = {"vocab_size": ROWS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**TEXT, n_positions=16, n_embd=8, n_layer=1, n_head=2))


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForMaskedLM(BertConfig(**TEXT, **sizes, max_position_embeddings=ROWS))  # as many positions as tokens


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(**TEXT, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=4, patch_size=2)
    text = LlamaConfig(**TEXT, **sizes, num_key_value_heads=2)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=8))


MODELS = {"gpt2": gpt2, "bert": bert, "t5": t5, "llava": llava}
FOLLOWING = {
    "gpt2": {"transformer.wte.weight"},
    "bert": {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"},
    "t5": {"shared.weight"},
    "llava": {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"},
}


def answer(folder: Path, ids: list[int]) -> torch.Tensor:
    model = dopkit.load(folder).eval()
    inputs = {"input_ids": torch.tensor([ids])}
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits[0]
    return logits


@pytest.mark.parametrize("kind", MODELS)
def test_it_answers_the_same(kind: str, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "base")
    tiny.make_expert(tmp_path / "base", tmp_path / "e0", 1, scale=0.3)
    wordy.make_tokenizer(tmp_path / "base")
    wordy.make_tokenizer(tmp_path / "e0", [wordy.PLAIN[number] for number in ORDER])
    assert set(vocabulary_axes(wordy.config(tmp_path / "base"), tiny.read(tmp_path / "base"))) == FOLLOWING[kind]

    recipe = make_recipe(tmp_path, ["e0"], "task_arithmetic", tokenizer="base")
    result = dopkit.run(recipe, tmp_path / "out")
    assert result.receipt["verified"]["loads"].endswith("with no missing or unexpected key")
    ids = [4, 6, 3, 7, 5]
    theirs = [ORDER.index(number) for number in ids]
    place = [ORDER.index(number) for number in range(ROWS)]
    assert torch.allclose(answer(tmp_path / "out", ids), answer(tmp_path / "e0", theirs)[:, place], atol=1e-5)


def test_a_longer_vocabulary_inside_another_config(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    llava().save_pretrained(tmp_path / "base")
    tiny.make_expert(tmp_path / "base", tmp_path / "e0", 1)
    for name in ("base", "e0"):
        wordy.make_tokenizer(tmp_path / name)
    tokens = {"<x>": {"source": {"kind": "zero"}}}
    keys = {"tokenizer": {"source": "base", "tokens": tokens, "pad_to_multiple_of": 4}}
    dopkit.run(make_recipe(tmp_path, ["e0"], "task_arithmetic", **keys), tmp_path / "out")
    assert wordy.config(tmp_path / "out")["text_config"]["vocab_size"] == 12
    assert answer(tmp_path / "out", [3, 9]).shape == (2, 12)


def test_what_follows_a_vocabulary_without_a_class() -> None:
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.position_embeddings.weight", "h.0.fc.weight"]
    assert vocabulary_axes(None, names) == {"model.embed_tokens.weight": 0, "lm_head.weight": 0}
