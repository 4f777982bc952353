"""What each tensor is to its model class, on tiny checkpoints of many architectures. No network is used.

python -m pytest tests/test_skeleton.py
"""

from __future__ import annotations

import copy
import json
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dopkit.roles import Role
from dopkit.skeleton import Skeleton, backbone_class, build, check_loads
from dopkit.skeleton.construct import construct
from dopkit.skeleton.guess import guess_role

GOLDEN = Path(__file__).parent / "golden" / "clip-tiny" / "base"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    config: dict[str, Any]
    shapes: Shapes
    folder: Path

    def skeleton(self) -> Skeleton:
        return build(self.config, self.shapes)


def read(folder: Path) -> Checkpoint:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return Checkpoint(json.loads((folder / "config.json").read_text()), shapes, folder)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a test tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- tiny checkpoints, as save_pretrained writes them -------------------------------------------------------

WORDS = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
LLAMA = {**WORDS, "num_attention_heads": 2, "num_key_value_heads": 1}
BERT = {**WORDS, "num_attention_heads": 2, "max_position_embeddings": 8}
SIGHT = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIGHT, "image_size": 4, "patch_size": 2}
CLIP = {"text_config": BERT, "vision_config": VIT, "projection_dim": 6}
GPT2 = {"vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
T5 = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
WHISPER = {
    "vocab_size": 16,
    "d_model": 8,
    "num_mel_bins": 4,
    "max_source_positions": 8,
    **{f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")},
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "llama-bare": ("LlamaModel", "LlamaConfig", LLAMA),
    "llama-labels": ("LlamaForSequenceClassification", "LlamaConfig", LLAMA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert-labels": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 3}),
    "bert-words": ("BertForMaskedLM", "BertConfig", BERT),
    "vit": ("ViTModel", "ViTConfig", VIT),
    "vit-labels": ("ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 3}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**VIT, "mlp_ratio": 2}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VIT),
    "clip": ("CLIPModel", "CLIPConfig", CLIP),
    "clip-projected": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VIT, "projection_dim": 6}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**LLAMA, "num_local_experts": 3}),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {**RESNET, "num_labels": 3}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    import transformers

    root = tmp_path_factory.mktemp("tiny")

    @cache
    def make(name: str, original_format: bool = True) -> Checkpoint:
        model_class, config_class, settings = MODELS[name]
        config = getattr(transformers, config_class)(**settings)
        model = getattr(transformers, model_class)(config)
        folder = root / f"{name}-{original_format}"
        model.save_pretrained(folder, save_original_format=original_format)
        return read(folder)

    return make


# --- roles --------------------------------------------------------------------------------------------------

ROLES: dict[str, dict[str, Role]] = {
    "llama": {
        "model.embed_tokens.weight": Role.EMBEDDING,
        "model.layers.1.self_attn.q_proj.weight": Role.LINEAR,
        "model.layers.0.input_layernorm.weight": Role.NORM,
        "model.norm.weight": Role.NORM,
        "lm_head.weight": Role.HEAD,
    },
    "llama-bare": {"embed_tokens.weight": Role.EMBEDDING, "norm.weight": Role.NORM},
    "llama-labels": {"score.weight": Role.HEAD, "model.layers.0.mlp.up_proj.weight": Role.LINEAR},
    "gpt2": {
        "transformer.wte.weight": Role.EMBEDDING,
        "transformer.wpe.weight": Role.EMBEDDING,
        "transformer.h.0.attn.c_attn.weight": Role.CONV1D,
        "transformer.h.0.attn.c_attn.bias": Role.BIAS,
        "transformer.h.1.mlp.c_proj.weight": Role.CONV1D,
        "transformer.h.1.ln_1.weight": Role.NORM,
        "transformer.ln_f.bias": Role.NORM,
    },
    "bert": {
        "embeddings.word_embeddings.weight": Role.EMBEDDING,
        "embeddings.LayerNorm.weight": Role.NORM,
        "encoder.layer.0.attention.self.query.weight": Role.LINEAR,
        "pooler.dense.weight": Role.LINEAR,
        "pooler.dense.bias": Role.BIAS,
    },
    "bert-labels": {
        "bert.pooler.dense.weight": Role.LINEAR,
        "classifier.weight": Role.HEAD,
        "classifier.bias": Role.HEAD,
    },
    "bert-words": {
        "bert.encoder.layer.1.output.dense.weight": Role.LINEAR,
        "cls.predictions.transform.dense.weight": Role.HEAD,
        "cls.predictions.transform.LayerNorm.weight": Role.HEAD,
        "cls.predictions.bias": Role.HEAD,
    },
    "vit": {
        "embeddings.cls_token": Role.PARAMETER,
        "embeddings.position_embeddings": Role.PARAMETER,
        "embeddings.patch_embeddings.projection.weight": Role.CONV,
        "embeddings.patch_embeddings.projection.bias": Role.BIAS,
        "encoder.layer.0.attention.attention.query.weight": Role.LINEAR,
        "encoder.layer.0.layernorm_before.bias": Role.NORM,
        "layernorm.weight": Role.NORM,
        "pooler.dense.weight": Role.LINEAR,
    },
    "vit-labels": {
        "vit.encoder.layer.1.intermediate.dense.weight": Role.LINEAR,
        "classifier.bias": Role.HEAD,
    },
    "dinov2": {
        "embeddings.cls_token": Role.PARAMETER,
        "embeddings.mask_token": Role.PARAMETER,
        "encoder.layer.0.layer_scale1.lambda1": Role.PARAMETER,
        "encoder.layer.0.mlp.fc1.weight": Role.LINEAR,
        "encoder.layer.0.norm1.weight": Role.NORM,
    },
    "clip": {
        "logit_scale": Role.PARAMETER,
        "visual_projection.weight": Role.LINEAR,
        "text_projection.weight": Role.LINEAR,
        "text_model.embeddings.token_embedding.weight": Role.EMBEDDING,
        "text_model.final_layer_norm.weight": Role.NORM,
        "vision_model.embeddings.class_embedding": Role.PARAMETER,
        "vision_model.embeddings.patch_embedding.weight": Role.CONV,
        "vision_model.encoder.layers.0.mlp.fc1.weight": Role.LINEAR,
    },
    "siglip": {
        "head.probe": Role.PARAMETER,  # a pooling layer by that name
        "head.attention.in_proj_weight": Role.LINEAR,
        "head.attention.in_proj_bias": Role.BIAS,
        "head.mlp.fc1.weight": Role.LINEAR,
        "head.layernorm.weight": Role.NORM,
    },
    "clip-projected": {"visual_projection.weight": Role.LINEAR},
    "t5": {
        "shared.weight": Role.EMBEDDING,
        "encoder.block.0.layer.0.SelfAttention.q.weight": Role.LINEAR,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": Role.EMBEDDING,
        "encoder.block.0.layer.0.layer_norm.weight": Role.NORM,
    },
    "mixtral": {
        "model.layers.0.block_sparse_moe.experts.2.w1.weight": Role.LINEAR,
        "model.layers.0.block_sparse_moe.gate.weight": Role.LINEAR,
        "lm_head.weight": Role.HEAD,
    },
    "resnet": {
        "resnet.embedder.embedder.convolution.weight": Role.CONV,
        "resnet.embedder.embedder.normalization.weight": Role.NORM,
        "resnet.embedder.embedder.normalization.running_mean": Role.BUFFER,
        "resnet.embedder.embedder.normalization.num_batches_tracked": Role.BUFFER,
        "classifier.1.weight": Role.HEAD,
    },
    "whisper": {
        "model.encoder.conv1.weight": Role.CONV,
        "model.encoder.conv1.bias": Role.BIAS,
        "model.encoder.embed_positions.weight": Role.EMBEDDING,
        "model.decoder.embed_tokens.weight": Role.EMBEDDING,
        "model.decoder.layers.0.encoder_attn.k_proj.weight": Role.LINEAR,
        "model.decoder.layers.0.encoder_attn_layer_norm.weight": Role.NORM,
    },
}


@pytest.mark.parametrize("name", ROLES)
def test_roles(tiny: Callable[..., Checkpoint], name: str) -> None:
    roles = tiny(name).skeleton().roles
    assert {tensor: roles[tensor].role for tensor in ROLES[name]} == ROLES[name]


def test_a_role_per_tensor_of_gpt2_and_resnet(tiny: Callable[..., Checkpoint]) -> None:
    """Counted over the whole checkpoint: no tensor is taken for something else."""
    for name, wanted in {
        "gpt2": {Role.CONV1D: 8, Role.BIAS: 8, Role.NORM: 10, Role.EMBEDDING: 2},
        "resnet": {Role.CONV: 6, Role.NORM: 12, Role.BUFFER: 18, Role.HEAD: 2},
    }.items():
        found = [each.role for each in tiny(name).skeleton().roles.values()]
        assert {role: found.count(role) for role in set(found)} == wanted, name


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_fits_its_class(tiny: Callable[..., Checkpoint], name: str) -> None:
    """Every tensor has a place, every place has a tensor, canonical names are unique, and it loads."""
    checkpoint = tiny(name)
    skeleton = checkpoint.skeleton()
    assert skeleton.fallback is None
    assert skeleton.class_name == MODELS[name][0]
    assert list(skeleton.roles) == list(checkpoint.shapes)
    assert not skeleton.unknown and not skeleton.ignored
    canonical = [each.canonical for each in skeleton.roles.values()]
    assert len(set(canonical)) == len(canonical)
    assert skeleton.expected is not None
    unfused = {each.canonical for each in skeleton.roles.values() if not each.fused}
    assert unfused <= skeleton.expected
    if name != "mixtral":
        assert unfused == skeleton.expected
    assert check_loads(checkpoint.config, checkpoint.shapes).clean


# --- names --------------------------------------------------------------------------------------------------


def canonical_names(config: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    roles = build(config, shapes).roles.values()
    return {each.canonical: each for each in roles}


OLD_VIT: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"layers\.(\d)\.": r"encoder.layer.\1.",
    r"attention\.(q|k|v)_proj": lambda m: f"attention.attention.{dict(q='query', k='key', v='value')[m[1]]}",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}


@pytest.mark.parametrize("name", ["vit", "vit-labels"])
def test_vit_is_the_same_in_both_spellings(tiny: Callable[..., Checkpoint], name: str) -> None:
    new = tiny(name, original_format=False)
    old: Shapes = {}
    for tensor, shape in new.shapes.items():
        spelled = tensor
        for pattern, replacement in OLD_VIT.items():
            spelled = re.sub(pattern, replacement, spelled)
        old[spelled] = shape
    assert "attention.q_proj.weight" in " ".join(new.shapes)
    assert old == tiny(name).shapes  # what transformers 4 wrote, too
    assert canonical_names(new.config, old) == canonical_names(new.config, new.shapes)


@pytest.mark.parametrize(
    ("bare", "headed"),
    [("llama-bare", "llama"), ("llama-bare", "llama-labels"), ("bert", "bert-labels")],
)
def test_bare_and_headed_models_agree(tiny: Callable[..., Checkpoint], bare: str, headed: str) -> None:
    """Each with its own configuration, and the one held against the class of the other."""
    backbone, model = tiny(bare), tiny(headed)
    names = canonical_names(model.config, model.shapes)
    body = {name for name, each in names.items() if each.role is not Role.HEAD}
    assert canonical_names(backbone.config, backbone.shapes).keys() == body
    assert canonical_names(model.config, backbone.shapes).keys() == body
    held = build(backbone.config, model.shapes)
    assert {each.canonical for each in held.roles.values()} == names.keys()
    heads = ("lm_head", "score", "classifier")
    assert held.unknown == {tensor for tensor in model.shapes if tensor.startswith(heads)}
    assert {held.roles[tensor].role for tensor in held.unknown} == {Role.HEAD}


def test_old_clip_spelling() -> None:
    old = read(GOLDEN)
    assert all(tensor.startswith("vision_model.") for tensor in old.shapes)
    new = {tensor.removeprefix("vision_model."): shape for tensor, shape in old.shapes.items()}
    names = canonical_names(old.config, old.shapes)
    assert names == canonical_names(old.config, new)
    assert names["embeddings.position_embedding.weight"].role is Role.EMBEDDING
    assert names["pre_layrnorm.weight"].role is Role.NORM
    assert check_loads(old.config, old.shapes).clean and check_loads(old.config, new).clean


def test_old_bert_spelling_and_a_buffer_no_longer_saved(tiny: Callable[..., Checkpoint]) -> None:
    new = tiny("bert-labels")
    old: Shapes = {}
    for tensor, shape in new.shapes.items():
        spelled = tensor.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[spelled.replace("LayerNorm.bias", "LayerNorm.beta")] = shape
    assert "bert.embeddings.LayerNorm.gamma" in old
    assert canonical_names(new.config, old) == canonical_names(new.config, new.shapes)
    old["bert.embeddings.position_ids"] = (1, 8)
    skeleton = build(new.config, old)
    assert skeleton.ignored == {"bert.embeddings.position_ids"} and not skeleton.unknown
    assert skeleton.roles["bert.embeddings.position_ids"].role is Role.BUFFER
    assert check_loads(new.config, old).clean


def test_rotary_frequencies_are_ignored_and_strangers_are_not(tiny: Callable[..., Checkpoint]) -> None:
    llama = tiny("llama")
    shapes = {**llama.shapes, "model.layers.0.self_attn.rotary_emb.inv_freq": (2,), "extra.weight": (3, 3)}
    skeleton = build(llama.config, shapes)
    assert skeleton.ignored == {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert skeleton.unknown == {"extra.weight"}
    assert skeleton.roles["extra.weight"].canonical == "extra.weight"
    assert skeleton.roles["model.layers.0.self_attn.rotary_emb.inv_freq"].role is Role.BUFFER


def test_one_parameter_in_two_spellings_keeps_names_unique(tiny: Callable[..., Checkpoint]) -> None:
    llama = tiny("llama")
    for twice in ({"norm.weight": (8,), **llama.shapes}, {**llama.shapes, "norm.weight": (8,)}):
        skeleton = build(llama.config, twice)
        assert skeleton.roles["model.norm.weight"].canonical == "norm.weight"
        assert skeleton.unknown == {"norm.weight"}
        assert len({each.canonical for each in skeleton.roles.values()}) == len(twice)


def test_experts_that_are_stored_transposed() -> None:
    """gpt-oss multiplies from the right: its experts have the input side first, and their biases are biases."""
    config = {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 32, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8,
    }  # fmt: skip
    prefix = "model.layers.0.mlp.experts."
    shapes = {
        f"{prefix}gate_up_proj": (3, 16, 48),
        f"{prefix}down_proj": (3, 24, 16),
        f"{prefix}down_proj_bias": (3, 16),
    }
    roles = {name.removeprefix(prefix): one.role for name, one in build(config, shapes).roles.items()}
    assert roles == {
        "gate_up_proj": Role.EXPERTS_CONV1D, "down_proj": Role.EXPERTS_CONV1D, "down_proj_bias": Role.BIAS,
    }  # fmt: skip


def test_experts_apart_and_fused(tiny: Callable[..., Checkpoint]) -> None:
    apart, fused = tiny("mixtral"), tiny("mixtral", original_format=False)
    roles = apart.skeleton().roles
    one = roles["model.layers.0.block_sparse_moe.experts.2.w1.weight"]
    assert (one.canonical, one.role, one.fused) == ("layers.0.mlp.experts.2.w1.weight", Role.LINEAR, True)
    assert sum(each.fused for each in roles.values()) == 2 * 3 * 3  # layers, experts, matrices
    assert apart.skeleton().expected == fused.skeleton().expected
    stack = fused.skeleton().roles["model.layers.0.mlp.experts.gate_up_proj"]
    assert (stack.role, stack.fused) == (Role.EXPERTS, False)
    assert stack.canonical == "layers.0.mlp.experts.gate_up_proj"
    names = {each.canonical for each in fused.skeleton().roles.values()}
    assert set(fused.skeleton().expected or ()) == names
    assert check_loads(fused.config, fused.shapes).clean


def test_what_is_converted_and_what_it_becomes(tiny: Callable[..., Checkpoint]) -> None:
    """Several tensors into one, and one into several."""
    apart, fused = tiny("mixtral"), tiny("mixtral", original_format=False)
    layer = "layers.0.mlp.experts"
    converted = apart.skeleton().converted
    prefix = "model.layers.0.block_sparse_moe.experts"
    assert converted[f"{prefix}.1.w3.weight"] == converted[f"{prefix}.2.w1.weight"] == (f"{layer}.gate_up_proj",)
    assert converted[f"{prefix}.0.w2.weight"] == (f"{layer}.down_proj",)
    assert len(converted) == 2 * 3 * 3 and not fused.skeleton().converted
    giant = {"model_type": "dinov2", "architectures": ["Dinov2Model"], **VIT, "mlp_ratio": 2, "use_swiglu_ffn": True}
    found = build(giant, {"encoder.layer.1.mlp.weights_in.weight": (32, 8), "layernorm.weight": (8,)})
    parts = tuple(f"encoder.layer.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    assert found.converted == {"encoder.layer.1.mlp.weights_in.weight": parts}
    assert set(parts) <= (found.expected or set())


# --- tied weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", {}),
        ("llama-tied", {"lm_head.weight": "embed_tokens.weight"}),
        ("gpt2", {"lm_head.weight": "wte.weight"}),
        ("whisper", {"proj_out.weight": "decoder.embed_tokens.weight"}),
        (
            "t5",
            dict.fromkeys(
                ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
                "shared.weight",
            ),
        ),
        (
            "bert-words",
            {
                "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
                "cls.predictions.decoder.bias": "cls.predictions.bias",
            },
        ),
    ],
)
def test_tied(tiny: Callable[..., Checkpoint], name: str, tied: dict[str, str]) -> None:
    skeleton = tiny(name).skeleton()
    assert skeleton.tied == tied
    assert skeleton.expected is not None and not tied.keys() & skeleton.expected


def test_a_twin_on_disk_has_the_role_of_what_it_is_tied_to(tiny: Callable[..., Checkpoint]) -> None:
    llama = tiny("llama-tied")
    shapes = {**llama.shapes, "lm_head.weight": (16, 8)}
    skeleton = build(llama.config, shapes)
    assert skeleton.tied == {"lm_head.weight": "embed_tokens.weight"}
    assert skeleton.roles["lm_head.weight"].role is Role.EMBEDDING
    assert check_loads(llama.config, shapes).clean


def test_only_the_twin_on_disk_stands_for_both(tiny: Callable[..., Checkpoint]) -> None:
    t5 = tiny("t5")
    shapes = {**t5.shapes, "encoder.embed_tokens.weight": (16, 8), "lm_head.weight": (16, 8)}
    del shapes["shared.weight"]
    roles = build(t5.config, shapes).roles
    assert roles["encoder.embed_tokens.weight"].canonical == "shared.weight"
    assert roles["lm_head.weight"].canonical == "lm_head.weight"
    assert check_loads(t5.config, shapes).clean


def test_t5_with_an_output_layer_of_its_own_is_not_tied(tiny: Callable[..., Checkpoint]) -> None:
    """transformers 5 ties every T5 class; a checkpoint of T5 1.1 holds both tensors, and they differ."""
    t5 = tiny("t5")
    config = {**t5.config, "tie_word_embeddings": False}
    skeleton = build(config, {**t5.shapes, "lm_head.weight": (16, 8)})
    assert skeleton.tied.keys() == {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert skeleton.roles["lm_head.weight"].role is Role.HEAD
    assert skeleton.expected is not None and "lm_head.weight" in skeleton.expected


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("llama", "LlamaModel"),
        ("llama-bare", "LlamaModel"),
        ("bert-labels", "BertModel"),
        ("vit-labels", "ViTModel"),
        ("t5", "T5Model"),
        ("clip", "CLIPModel"),
        ("clip-projected", "CLIPVisionModel"),
    ],
)
def test_the_class_without_a_head(tiny: Callable[..., Checkpoint], name: str, backbone: str) -> None:
    assert backbone_class(tiny(name).config) == backbone
    assert backbone_class({"model_type": "mystery"}) is None


# --- no class -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "it has no config.json"),
        ({}, "its config.json names neither a model_type nor a class"),
        ({"model_type": "mystery"}, r"does not know its model_type 'mystery'"),
        ({"model_type": ["llama"]}, r"does not know its model_type \['llama'\]"),
        ({"model_type": "llama", "architectures": ["LlamaForMagic"]}, "has no model class 'LlamaForMagic'"),
        ({"model_type": "llama", "architectures": ["AutoModel"]}, "has no model class 'AutoModel'"),
        ({"model_type": "llama", "hidden_size": "wide"}, r"refuses its config.json \(.*hidden_size"),
        ({"model_type": "llama", "num_attention_heads": 7}, r"refuses its config.json \(.*multiple"),
        ({"model_type": "gpt2", "activation_function": "magic"}, "cannot build its class GPT2Model .*magic"),
        (
            {"model_type": "mystery", "architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
            "its class Mine is custom code, which dopkit never runs",
        ),
        (
            {"model_type": "llama", "auto_map": {"AutoModel": "mine.Mine"}},
            "its class is custom code, which dopkit never runs",
        ),
    ],
)
def test_a_class_that_cannot_be_built_falls_back(config: dict[str, Any] | None, reason: str) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (12, 8), "model.norm.weight": (8,)}
    skeleton = build(config, shapes)
    assert skeleton.fallback is not None and re.search(reason, skeleton.fallback), skeleton.fallback
    assert skeleton.class_name is None and skeleton.expected is None
    assert not skeleton.tied and not skeleton.unknown
    assert {name: (each.canonical, each.role) for name, each in skeleton.roles.items()} == {
        "model.layers.0.mlp.up_proj.weight": ("model.layers.0.mlp.up_proj.weight", Role.LINEAR),
        "model.norm.weight": ("model.norm.weight", Role.NORM),
    }
    check = check_loads(config, shapes)
    assert check.unchecked == skeleton.fallback and not check.clean and not check.problems


def test_custom_code_with_a_class_of_the_library_is_built_from_the_library(
    tiny: Callable[..., Checkpoint],
) -> None:
    llama = tiny("llama")
    config = {**llama.config, "auto_map": {"AutoModelForCausalLM": "someone/else--mine.LlamaForCausalLM"}}
    assert build(config, llama.shapes) == llama.skeleton()


def test_an_infinite_number_in_a_config() -> None:
    """As transformers 5 writes it: JSON has none."""
    from transformers import Mamba2Config

    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 4, "n_groups": 1}
    written = json.loads(Mamba2Config(**sizes).to_json_string())
    assert written["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    skeleton = build({**written, "architectures": ["Mamba2ForCausalLM"]}, {"backbone.embeddings.weight": (16, 8)})
    assert skeleton.class_name == "Mamba2ForCausalLM"
    assert skeleton.roles["backbone.embeddings.weight"].role is Role.EMBEDDING


def test_no_architectures_means_the_default_class(tiny: Callable[..., Checkpoint]) -> None:
    vit = tiny("vit")
    config = {key: value for key, value in vit.config.items() if key != "architectures"}
    assert build(config, vit.shapes) == vit.skeleton()


def test_a_class_for_a_part_of_the_configuration(tiny: Callable[..., Checkpoint]) -> None:
    """The vision tower of CLIP, saved with the configuration of both towers."""
    clip = tiny("clip")
    tower = {name: shape for name, shape in clip.shapes.items() if name.startswith("vision_model.")}
    skeleton = build({**clip.config, "architectures": ["CLIPVisionModel"]}, tower)
    assert skeleton.class_name == "CLIPVisionModel"
    assert set(skeleton.expected or ()) == {each.canonical for each in skeleton.roles.values()}


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("blocks.0.attn.qkv.weight", (24, 8), Role.LINEAR),
        ("blocks.0.attn.qkv.bias", (24,), Role.BIAS),
        ("blocks.0.norm1.weight", (8,), Role.NORM),
        ("blocks.0.norm1.bias", (8,), Role.NORM),
        ("h.0.ln_1.weight", (8,), Role.NORM),
        ("layer1.0.bn2.weight", (8,), Role.NORM),
        ("layer1.0.bn2.running_var", (8,), Role.BUFFER),
        ("layer1.0.bn2.num_batches_tracked", (), Role.BUFFER),
        ("patch_embed.proj.weight", (8, 3, 2, 2), Role.CONV),
        ("conv1.weight", (8, 4, 3), Role.CONV),
        ("model.embed_tokens.weight", (16, 8), Role.EMBEDDING),
        ("tok_embeddings.weight", (16, 8), Role.EMBEDDING),
        ("transformer.wte.weight", (16, 8), Role.EMBEDDING),
        ("time_embedding.linear_1.weight", (8, 8), Role.LINEAR),
        ("layers.0.mlp.experts.gate_up_proj", (3, 24, 8), Role.EXPERTS),
        ("layers.0.mlp.experts.0.up_proj.weight", (12, 8), Role.LINEAR),
        ("lm_head.weight", (16, 8), Role.HEAD),
        ("head.bias", (3,), Role.HEAD),
        ("model.score.weight", (3, 8), Role.HEAD),
        ("classifier.out_proj.weight", (3, 8), Role.HEAD),
        ("blocks.0.attn.head.weight", (8, 8), Role.LINEAR),
        ("cls_token", (1, 1, 8), Role.PARAMETER),
        ("pos_embed", (1, 5, 8), Role.PARAMETER),
        ("logit_scale", (), Role.PARAMETER),
        ("blocks.0.ls1.gamma", (8,), Role.PARAMETER),
        ("mixer.A_log", (16, 8), Role.PARAMETER),
    ],
)
def test_guesses(name: str, shape: tuple[int, ...], role: Role) -> None:
    assert guess_role(name, shape) is role


# --- will it load? ------------------------------------------------------------------------------------------


def problems(checkpoint: Checkpoint, shapes: Shapes) -> list[str]:
    check = check_loads(checkpoint.config, shapes)
    assert check.unchecked is None
    return [str(problem) for problem in check.problems]


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(tiny: Callable[..., Checkpoint]) -> None:
    vit = tiny("vit-labels")
    query = "vit.encoder.layer.0.attention.attention.query.weight"
    shapes = {**vit.shapes, query: (9, 8), "extra.weight": (1,)}
    del shapes["vit.layernorm.bias"]
    assert problems(vit, shapes) == [
        "vit.layernorm.bias: is missing: ViTForImageClassification would be loaded with random values there",
        "extra.weight: is unexpected: ViTForImageClassification has no place for it",
        f"{query}: has shape 9x8, but ViTForImageClassification needs 8x8",
    ]


def test_incomplete_experts_are_named(tiny: Callable[..., Checkpoint]) -> None:
    mixtral = tiny("mixtral")
    experts = "model.layers.1.block_sparse_moe.experts"
    without_one = {name: shape for name, shape in mixtral.shapes.items() if name != f"{experts}.2.w1.weight"}
    assert problems(mixtral, without_one) == [
        "model.layers.1.mlp.experts.gate_up_proj: is put together from several tensors, of which some are "
        "missing: 2 of model.layers.*.mlp.experts.*.w1.weight, 3 of model.layers.*.mlp.experts.*.w3.weight"
    ]
    without = {name: shape for name, shape in mixtral.shapes.items() if not name.startswith(f"{experts}.2.")}
    assert problems(mixtral, without) == [
        "model.layers.1.mlp.experts.down_proj: has shape 2x8x12, but MixtralForCausalLM needs 3x8x12",
        "model.layers.1.mlp.experts.gate_up_proj: has shape 2x24x8, but MixtralForCausalLM needs 3x24x8",
    ]


def test_an_untied_head_is_missed_and_a_tied_one_is_not(tiny: Callable[..., Checkpoint]) -> None:
    untied = tiny("llama")
    headless = {name: shape for name, shape in untied.shapes.items() if name != "lm_head.weight"}
    assert len(problems(untied, headless)) == 1
    assert not problems(tiny("llama-tied"), headless)


@pytest.mark.parametrize(
    ("name", "last_norm"),
    [
        ("llama-tied", "model.norm.weight"),
        ("vit-labels", "vit.layernorm.weight"),
        ("mixtral", "model.norm.weight"),
    ],
)
def test_the_check_says_what_loading_says(tiny: Callable[..., Checkpoint], name: str, last_norm: str) -> None:
    """Against from_pretrained on the folder itself: whole, then with one tensor more and one less."""
    import transformers
    from safetensors.torch import load_file, save_file

    checkpoint = tiny(name)
    model_class = getattr(transformers, MODELS[name][0])
    folder = checkpoint.folder
    file = folder / "model.safetensors"
    tensors = load_file(file)
    broken = {**tensors, "extra.weight": torch.zeros(2)}
    del broken[last_norm]
    for content in (tensors, broken):
        save_file(content, file, metadata={"format": "pt"})
        _, report = model_class.from_pretrained(folder, output_loading_info=True, device_map="meta")
        shapes = {tensor: tuple(value.shape) for tensor, value in content.items()}
        found = {problem.place for problem in check_loads(checkpoint.config, shapes).problems}
        assert found == report["missing_keys"] | report["unexpected_keys"]
        assert len(found) == (0 if content is tensors else 2)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_class_that_fetches_more_than_weights_is_checked_all_the_same(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Qwen2.5-Omni extends from_pretrained by the download of a file with voices."""
    from transformers import LlamaForCausalLM

    def fetch(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no file with voices")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", fetch)
    llama = tiny("llama")
    assert check_loads(llama.config, llama.shapes).clean


# --- manners ------------------------------------------------------------------------------------------------

LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "dtype": "bfloat16",
}


def test_a_model_of_70_billion_parameters_needs_no_memory(tiny: Callable[..., Checkpoint]) -> None:
    tiny("llama").skeleton()  # imports are done
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = construct(LLAMA_70B)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert sum(tensor.numel() for tensor in model.parameters()) > 70e9
    assert not build(LLAMA_70B, shapes).unknown
    assert check_loads(LLAMA_70B, shapes).clean
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"{grown} kB"


def test_nothing_is_said_and_everything_is_left_as_it_was(
    tiny: Callable[..., Checkpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    bert = tiny("bert-labels")
    broken = {**bert.shapes, "extra.weight": (1,)}
    config = copy.deepcopy(bert.config)
    before = logging.get_verbosity()
    dtype = torch.get_default_dtype()
    capfd.readouterr()
    build(config, broken)
    check_loads(config, broken)
    build({"model_type": "llama", "num_attention_heads": 7}, broken)
    assert capfd.readouterr() == ("", "")
    assert config == bert.config
    assert logging.get_verbosity() == before
    assert logging.set_tqdm_hook(None) is None
    assert torch.get_default_dtype() is dtype and torch.zeros(1).device.type == "cpu"


def test_importing_the_package_does_not_import_transformers() -> None:
    code = "import sys, dopkit.skeleton; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_that_ask_at_once_leave_transformers_as_it_was(tiny: Callable[..., Checkpoint]) -> None:
    """Its loader replaces `tie_weights` of all models meanwhile, and two at once put back each other's."""
    from transformers import PreTrainedModel

    llama, before = tiny("llama-tied"), PreTrainedModel.tie_weights
    start = threading.Barrier(4)

    def ask(_: int) -> bool:
        start.wait(10)
        return check_loads(llama.config, llama.shapes).clean

    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(4)))
        assert PreTrainedModel.tie_weights is before
