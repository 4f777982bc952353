"""An adapter on its base gives, tensor by tensor, what PEFT's merge_and_unload gives; or says why it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapters import make_adapter
from safetensors.torch import load_file, save_file

from dopkit import refs
from dopkit.checkpoints import AdapterCheckpoint, Checkpoint, IsAdapter, Shelf, open_checkpoint
from dopkit.errors import CheckpointError

CLOSE = 5e-7  # of the largest element: four roundings in float32


def on(base: Path, adapter: Path) -> refs.ModelRef:
    return refs.parse(str(base), Path()).with_adapter(refs.parse(str(adapter), Path()))


def merged(base: Path, adapter: Path) -> AdapterCheckpoint:
    opened = open_checkpoint(on(base, adapter))
    assert isinstance(opened, AdapterCheckpoint)
    return opened


def refusal(base: Path, adapter: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(on(base, adapter))
    return [line.replace(f"{base.parent}/", "") for line in str(caught.value).splitlines()]


def assert_same(model: Checkpoint, wanted: tiny.Tensors) -> None:
    assert model.specs.keys() == wanted.keys()
    for name, tensor in wanted.items():
        tolerance = CLOSE * float(tensor.abs().max())
        found = model.read(name)
        torch.testing.assert_close(found.float(), tensor, rtol=0, atol=tolerance, msg=name)
        rows, step = model.specs[name].rows, max(1, model.specs[name].rows // 3)
        parts = [model.read(name, (start, min(rows, start + step))) for start in range(0, rows, step)]
        torch.testing.assert_close(torch.cat(parts), found, rtol=0, atol=tolerance, msg=f"rows of {name}")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model of each kind: a bfloat16 Llama, GPT-2, BERT and ViT with classifiers, a mixture of experts."""
    from transformers import GptOssConfig, GptOssForCausalLM

    root = tmp_path_factory.mktemp("bases")
    config = GptOssConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
        layer_types=["full_attention"], pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(root / "oss")
    return {
        "llama": tiny.make_llama(root / "llama"),
        "gpt2": tiny.make_gpt2(root / "gpt2"),
        "bert": tiny.make_bert(root / "bert", labels=3),
        "vit": tiny.make_vit(root / "vit", labels=3),
        "oss": root / "oss",
    }


CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: base, what PEFT is told, how many tensors change
    "plain": ("llama", {}, 6),
    "rslora": ("llama", {"use_rslora": True}, 6),
    "initialised from the base": ("llama", {"init_lora_weights": "mica"}, 6),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}, 6),
    "patterns": (
        "llama",
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6, "proj": 3},
            "alpha_pattern": {"v_proj": 3, "model.layers.0.self_attn.q_proj": 7, r"(?:up|down)_proj": 5},
        },
        6,
    ),
    "layers": ("llama", {"layers_to_transform": [1], "exclude_modules": ["v_proj"]}, 2),
    "dora": ("llama", {"use_dora": True}, 6),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, 3),
    "embedding dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}, 1),
    "head": ("llama", {"target_modules": ["lm_head"]}, 1),
    "whole modules": ("llama", {"modules_to_save": ["lm_head", "embed_tokens"]}, 8),
    "tokens": ("llama", {"trainable_token_indices": [1, 5, 63]}, 7),
    "parameters": (
        "llama",
        {"target_modules": [], "target_parameters": ["q_proj.weight"], "rank_pattern": {"q_proj.weight": 2}},
        2,
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, 6),
    "conv1d dora": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True}, 4),
    "biases of targets": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}, 4),
    "bias of B": ("gpt2", {"target_modules": ["c_attn"], "lora_bias": True, "fan_in_fan_out": True}, 4),
    "classifier": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}, 6),
    "all biases": (
        "bert",
        {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"], "bias": "all"},
        29,
    ),
    "vit": ("vit", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}, 6),
    "convolution": ("vit", {"target_modules": ["projection"]}, 1),
    "convolution dora": ("vit", {"target_modules": ["projection"], "use_dora": True}, 1),
    "experts": ("oss", {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}, 3),
    "stacked experts": ("oss", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}, 1),
}


def auto_class(kind: str) -> Any:
    import transformers

    classes = {"bert": "AutoModelForSequenceClassification", "vit": "AutoModelForImageClassification"}
    return getattr(transformers, classes.get(kind, "AutoModelForCausalLM"))


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_is_what_peft_merges_it_to(case: str, bases: dict[str, Path], tmp_path: Path) -> None:
    kind, config, changed = CASES[case]
    wanted = make_adapter(bases[kind], tmp_path / "adapter", auto_class(kind), **config)
    model = merged(bases[kind], tmp_path / "adapter")
    assert_same(model, wanted)
    base = open_checkpoint(refs.parse(str(bases[kind]), Path()))
    different = [name for name in wanted if not torch.equal(model.read(name).float(), base.read(name).float())]
    assert len(different) == changed
    assert set(different) == model.changes.keys()
    assert model.config == base.config


def test_pickled_factors_and_names_of_adapters_in_keys(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    wanted = make_adapter(bases["llama"], adapter, modules_to_save=["lm_head"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    spelled = {
        name.replace("lora_A.", "lora_A.default.").replace("lm_head.", "lm_head.modules_to_save.default."): tensor
        for name, tensor in tensors.items()
    }
    spelled["base_model.model.lm_head.original_module.weight"] = torch.zeros(64, 16)
    torch.save(spelled, adapter / "adapter_model.bin")
    model = merged(bases["llama"], adapter)
    assert_same(model, wanted)
    assert model.notes[-1].endswith("1 tensor left unread: copies that PEFT keeps beside the trained ones")


def test_names_of_another_day_and_of_a_model_without_a_head(bases: dict[str, Path], tmp_path: Path) -> None:
    wanted = make_adapter(bases["vit"], tmp_path / "adapter", auto_class("vit"), target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    old = {
        name.replace("vit.layers", "vit.encoder.layer").replace("attention.q_proj", "attention.attention.query"): tensor
        for name, tensor in load_file(file).items()
    }
    assert any("encoder.layer.0.attention.attention.query" in name for name in old)
    bare = {name.replace("base_model.model.vit.", "base_model.model."): tensor for name, tensor in old.items()}
    for spelling in (old, bare):
        save_file(spelling, file)
        assert_same(merged(bases["vit"], tmp_path / "adapter"), wanted)


def test_a_class_that_is_not_known_is_matched_by_its_names(bases: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("llama", "gpt2"):
        base = shutil.copytree(bases[kind], tmp_path / kind)
        tiny.set_config(base, model_type="of_its_own")
        config = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} if kind == "gpt2" else {}
        wanted = make_adapter(bases[kind], tmp_path / f"{kind}-adapter", **config)
        assert_same(merged(base, tmp_path / f"{kind}-adapter"), wanted)


def test_a_tied_embedding_changes_in_both_places(tmp_path: Path) -> None:
    base = tiny.make_llama(tmp_path / "base", tied=True)
    wanted = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    model = merged(base, tmp_path / "adapter")
    assert_same(model, wanted)
    assert model.notes[-1].endswith("uses in two places: merged, it changes in both")

    def stored_twice(tensors: tiny.Tensors) -> tiny.Tensors:
        embedding = "model.embed_tokens.weight"
        return {**tensors, "lm_head.weight": tensors[embedding].clone()} if embedding in tensors else tensors

    twice = tiny.edit(tiny.make_llama(tmp_path / "one", tied=True, shards=False), tmp_path / "twice", stored_twice)
    model = merged(twice, tmp_path / "adapter")
    assert_same(model, {**wanted, "lm_head.weight": wanted["model.embed_tokens.weight"]})


def test_a_stored_head_may_be_of_another_size_and_a_new_one(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(bases["vit"], adapter, auto_class("vit"), target_modules=["q_proj"], modules_to_save=["classifier"])
    wide = tiny.make_vit(tmp_path / "wide", labels=7)
    model = merged(wide, adapter)
    assert model.specs["classifier.weight"].shape == (3, 16) == model.read("classifier.weight").shape
    bare = merged(tiny.make_vit(tmp_path / "bare"), adapter)
    assert torch.equal(bare.read("classifier.weight"), model.read("classifier.weight"))
    assert torch.equal(bare.read("classifier.bias", (1, 3)), model.read("classifier.bias")[1:])


def test_adapters_on_one_base_read_it_once(bases: dict[str, Path], tmp_path: Path) -> None:
    shelf, base = Shelf(), refs.parse(str(bases["llama"]), Path())
    for seed in range(2):
        make_adapter(bases["llama"], tmp_path / f"a{seed}", seed=seed)
    plain = shelf.open(base)
    models = [shelf.open(on(bases["llama"], tmp_path / f"a{seed}")) for seed in range(2)]
    first, second = (model for model in models if isinstance(model, AdapterCheckpoint))
    shared = shelf.latest(plain)
    assert first.base is second.base is shared
    reads: list[str] = []
    read = plain.read
    plain.read = lambda name, rows=None: reads.append(name) or read(name, rows)  # type: ignore[func-returns-value, method-assign]
    names = ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    parts = [model.read(name) for name in names for model in (shared, first, second)]
    assert reads == names
    assert not torch.equal(parts[1], parts[2])
    assert torch.equal(parts[0], read(names[0]))
    for part in parts:
        part.zero_()  # what was given is the reader's own
    assert torch.equal(shared.read(names[1]), read(names[1]))


def test_identity_and_state_are_those_of_both(bases: dict[str, Path], tmp_path: Path) -> None:
    make_adapter(bases["llama"], tmp_path / "adapter")
    before = merged(bases["llama"], tmp_path / "adapter")
    change(tmp_path / "adapter", lora_alpha=13)
    after = merged(bases["llama"], tmp_path / "adapter")
    other = merged(shutil.copytree(bases["llama"], tmp_path / "base"), tmp_path / "adapter")
    tiny.edit(bases["llama"], tmp_path / "changed", lambda tensors: {key: one + 1 for key, one in tensors.items()})
    changed = merged(tmp_path / "changed", tmp_path / "adapter")
    assert len({before.identity, after.identity, changed.identity}) == 3
    assert after.identity == other.identity
    assert len({before.state, after.state, changed.state}) == 3


def test_an_adapter_trained_on_something_else_is_noted(bases: dict[str, Path], tmp_path: Path) -> None:
    make_adapter(bases["llama"], tmp_path / "adapter")
    assert len(merged(bases["llama"], tmp_path / "adapter").notes) == 1
    change(tmp_path / "adapter", base_model_name_or_path="user/other")
    first, second = merged(bases["llama"], tmp_path / "adapter").notes
    assert first.endswith("adapter of rank 4 on 6 of 21 tensors")
    assert second.endswith(f"it was trained on user/other and is applied to {bases['llama']}")
    change(tmp_path / "adapter", base_model_name_or_path=None)
    assert len(merged(bases["llama"], tmp_path / "adapter").notes) == 1


# Refusals


def change(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


INSTEAD = "  Merge it into its base with PEFT (merge_and_unload, then save_pretrained) and name the result."


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "IA3"}, ["peft_type: IA3 is no LoRA", INSTEAD]),
        ({"peft_type": "PROMPT_TUNING"}, ["peft_type: PROMPT_TUNING is no LoRA", INSTEAD]),
        ({"peft_type": None}, ["adapter_config.json names no peft_type", INSTEAD]),
        ({"layer_replication": [[0, 2]]}, ["the option layer_replication has an effect that only PEFT knows", INSTEAD]),
        ({"use_qalora": True}, ["the option use_qalora has an effect that only PEFT knows", INSTEAD]),
        (
            {"init_lora_weights": "pissa_niter_4"},
            [
                "init_lora_weights: pissa_niter_4 took a part out of the base's own weights; "
                "convert it to a plain LoRA",
                INSTEAD,
            ],
        ),
        ({"rank_pattern": {"(": 2}}, ["rank_pattern: '(' is no regular expression", INSTEAD]),
        (
            {"r": 0, "lora_alpha": "16", "alpha_pattern": {"a": "b"}},
            [
                "3 problems",
                "  r is 0, which is no rank",
                "  lora_alpha is '16', which is no number",
                "  alpha_pattern is no mapping of patterns to numbers",
            ],
        ),
    ],
)
def test_what_is_no_lora_is_refused_by_name(
    values: dict[str, Any], said: list[str], bases: dict[str, Path], tmp_path: Path
) -> None:
    make_adapter(bases["llama"], tmp_path / "adapter")
    change(tmp_path / "adapter", **values)
    assert refusal(bases["llama"], tmp_path / "adapter") == [
        f"{tmp_path}/adapter cannot be merged as a model: {said[0]}",
        *said[1:],
    ]


def changed(adapter: Path, edit: Callable[[tiny.Tensors], tiny.Tensors]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(edit(load_file(file)), file)


def test_tensors_without_a_place_and_of_other_shapes_are_all_named(bases: dict[str, Path], tmp_path: Path) -> None:
    make_adapter(bases["llama"], tmp_path / "adapter", use_dora=True, target_modules=["q_proj", "v_proj"])
    prefix = "base_model.model.model.layers"

    def damage(tensors: tiny.Tensors) -> tiny.Tensors:
        tensors[f"{prefix}.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 17)
        tensors[f"{prefix}.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 16)
        tensors[f"{prefix}.7.self_attn.q_proj.lora_B.weight"] = torch.zeros(16, 4)
        tensors[f"{prefix}.7.self_attn.q_proj.lora_magnitude_vector"] = torch.zeros(16)
        tensors[f"{prefix}.0.self_attn.v_proj.lora_magnitude_vector"] = torch.zeros(5)
        tensors[f"{prefix}.1.self_attn.q_proj.lora_E"] = torch.zeros(4, 1)
        del tensors[f"{prefix}.1.self_attn.q_proj.lora_magnitude_vector"]
        del tensors[f"{prefix}.1.self_attn.v_proj.lora_B.weight"]
        return tensors

    changed(tmp_path / "adapter", damage)
    lines = refusal(bases["llama"], tmp_path / "adapter")
    assert lines[0] == f"{tmp_path}/adapter cannot be applied to llama"
    q0, v0 = (f"{prefix}.0.self_attn.{name}_proj" for name in "qv")
    assert sorted(lines[1:]) == sorted(
        [
            f"  {q0}.lora_A.weight: the factors are 4x17 and 16x4 at rank 4, in llama "
            "model.layers.0.self_attn.q_proj.weight is 16x16",
            f"  {v0}.lora_magnitude_vector: is 5, in llama model.layers.0.self_attn.v_proj.weight is 8x16",
            f"  {prefix}.1.self_attn.q_proj.lora_A.weight: use_dora says it has a magnitude, and it has none",
            f"  {prefix}.1.self_attn.v_proj.lora_A.weight: is not a pair of factors: A, magnitude",
            f"  4 tensors without a place in llama: {prefix}.1.self_attn.q_proj.lora_E, "
            f"{prefix}.7.self_attn.q_proj.lora_A.weight, {prefix}.7.self_attn.q_proj.lora_B.weight, "
            f"{prefix}.7.self_attn.q_proj.lora_magnitude_vector",
        ]
    )


def test_what_the_config_and_the_tensors_disagree_on_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    make_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"], layers_to_transform=[0])
    change(tmp_path / "adapter", r=8)
    tensor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert refusal(bases["llama"], tmp_path / "adapter")[1:] == [
        f"  {tensor}: the factors are 4x16 and 16x4 at rank 8, in llama model.layers.0.self_attn.q_proj.weight is 16x16"
    ]
    change(tmp_path / "adapter", r=4)
    other = tensor.replace("lora_A", "lora_A.other")
    changed(tmp_path / "adapter", lambda tensors: {**tensors, other: torch.ones(4, 16)})
    assert f"  {tensor}: is for the same place as {other}" in refusal(bases["llama"], tmp_path / "adapter")


def test_tied_weights_that_were_trained_apart_are_refused(tmp_path: Path) -> None:
    base = tiny.make_llama(tmp_path / "base", tied=True)
    make_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    assert refusal(base, tmp_path / "adapter")[1:] == [
        "  base_model.model.lm_head.weight: base uses one tensor in two places, "
        "the adapter trained lm_head.weight apart"
    ]


def test_a_tied_twin_that_is_stored_is_no_embedding(tmp_path: Path) -> None:
    base = tiny.make_llama(tmp_path / "base", tied=True)
    make_adapter(base, tmp_path / "adapter")
    head = "base_model.model.lm_head.weight"
    changed(tmp_path / "adapter", lambda tensors: {**tensors, head: torch.zeros(64, 16)})
    assert refusal(base, tmp_path / "adapter")[1:] == [
        f"  {head}: base uses one tensor in two places, the adapter trained lm_head.weight apart"
    ]


def test_parts_of_a_module_that_was_trained_whole(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    wanted = make_adapter(
        tmp_path / "base", tmp_path / "adapter", auto_class("bert"), target_modules=["query"], task_type="SEQ_CLS"
    )
    model = merged(tmp_path / "base", tmp_path / "adapter")
    assert_same(model, wanted)
    assert {name for name in model.changes if name.startswith("classifier")} == {
        f"classifier.{part}.{leaf}" for part in ("dense", "out_proj") for leaf in ("weight", "bias")
    }
    config.num_labels = 5
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "wide")
    wide = merged(tmp_path / "wide", tmp_path / "adapter")
    assert wide.specs["classifier.out_proj.weight"].shape == (3, 16)
    assert wide.config is not None and len(wide.config["id2label"]) == 3


def test_an_adapter_alone_is_told_from_a_model(bases: dict[str, Path], tmp_path: Path) -> None:
    make_adapter(bases["llama"], tmp_path / "adapter")
    with pytest.raises(IsAdapter, match="holds no model weights"):
        open_checkpoint(refs.parse(str(tmp_path / "adapter"), Path()))
    assert refusal(bases["llama"], bases["gpt2"]) == [
        "gpt2 holds no adapter of PEFT",
        "  none of adapter_model.safetensors, adapter_model.bin is there",
    ]
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert refusal(bases["llama"], tmp_path / "adapter") == [
        f"{tmp_path}/adapter is no adapter of PEFT",
        "  it has no adapter_config.json, so its scale is not known",
    ]
