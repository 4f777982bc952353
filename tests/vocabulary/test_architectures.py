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
from dopkit.errors import PlanError
from dopkit.skeleton import build, vocabulary_axes

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
    "gpt2": ["wte.weight"],
    "bert": ["embeddings.word_embeddings.weight", "cls.predictions.bias"],
    "t5": ["shared.weight"],
    "llava": ["language_model.embed_tokens.weight", "lm_head.weight"],
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
    config, tensors = wordy.config(tmp_path / "base"), tiny.read(tmp_path / "base")
    seen = build(config, {name: tuple(one.shape) for name, one in tensors.items()})
    names = [role.canonical for role in seen.roles.values()]
    assert vocabulary_axes(config, names) == dict.fromkeys(FOLLOWING[kind], 0)

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


def test_language_models_on_a_base_that_sees(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The base has a token for images, the models have none: its row stays, and theirs are put in its order."""
    from transformers import LlamaForCausalLM

    whole = llava()
    whole.resize_token_embeddings(ROWS + 1)
    whole.save_pretrained(tmp_path / "base")
    wordy.make_tokenizer(tmp_path / "base", added={"<image>": True})
    alone = LlamaForCausalLM(whole.config.text_config)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    alone.resize_token_embeddings(ROWS)
    alone.save_pretrained(tmp_path / "plain")
    tiny.make_expert(tmp_path / "plain", tmp_path / "e0", 1, scale=0.3)
    wordy.make_tokenizer(tmp_path / "e0", [wordy.PLAIN[number] for number in ORDER])
    with pytest.raises(PlanError, match="./e0: its token .* has the id"):
        dopkit.plan(make_recipe(tmp_path, ["e0"], "task_arithmetic"))
    dopkit.run(make_recipe(tmp_path, ["e0"], "task_arithmetic", tokenizer="base"), tmp_path / "out")
    place = [ORDER.index(number) for number in range(ROWS)]
    ids, theirs = [4, 6, 3], [ORDER.index(number) for number in (4, 6, 3)]
    found, expected = answer(tmp_path / "out", ids), answer(tmp_path / "e0", theirs)[:, place]
    assert found.shape == (3, ROWS + 1) and torch.allclose(found[:, :ROWS], expected, atol=1e-5)
    image = tiny.read(tmp_path / "out")["model.embed_tokens.weight"][ROWS]
    assert torch.equal(image, whole.get_input_embeddings().weight[ROWS])


def test_what_follows_a_vocabulary_without_a_class() -> None:
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.position_embeddings.weight", "h.0.fc.weight"]
    assert vocabulary_axes(None, names) == {"model.embed_tokens.weight": 0, "lm_head.weight": 0}
