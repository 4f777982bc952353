"""The ``adapter_config.json`` of PEFT: what of it changes a merged weight, and what cannot be merged at all.

Knows no tensors and no model. Names, defaults and the meaning of the patterns are PEFT's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dopkit.errors import CheckpointError, Problem, count

CONFIG = "adapter_config.json"
_INSTEAD = "Merge it into its base with PEFT (merge_and_unload, then save_pretrained) and name the result."

# Set for training or for loading; nothing of it is in a merged weight.
_HARMLESS = frozenset((
    "peft_type", "task_type", "peft_version", "auto_mapping", "inference_mode", "base_model_name_or_path", "revision",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size",
    "library_name", "merge_weights", "ephemeral_gpu_offload",
))  # fmt: skip
_READ = frozenset((
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "lora_bias",
    "modules_to_save", "target_parameters", "trainable_token_indices", "init_lora_weights", "ensure_weight_tying",
))  # fmt: skip
# Initialisations that take a part out of the base's own weights: such an adapter fits no other copy of the base.
_TAKES_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """What a LoRA adapter says of itself."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    fan_in_fan_out: bool  # counts only where the kind of layer is not known
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]
    tokens: tuple[int, ...] | Mapping[str, tuple[int, ...]]  # rows of embeddings that were trained alone
    ties_weights: bool
    base: str | None  # the model it was trained on, as its author wrote it
    revision: str | None
    task: str | None  # "CAUSAL_LM", for whoever loads it

    def rank_of(self, module: str) -> int:
        """The rank that the config gives to a module (``model.layers.0.self_attn.q_proj``)."""
        return self.rank_pattern.get(_key(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha, rank = self.alpha_pattern.get(_key(self.alpha_pattern, module), self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether the module was trained and stored whole, by itself or as a part of another: PEFT asks for endings."""
        words = module.split(".")
        around = [".".join(words[: number + 1]) for number in range(len(words))]
        return any(one.endswith(name) for one in around for name in self.modules_to_save)

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """The rows of an embedding that were trained alone, in the order they are stored in."""
        if not isinstance(self.tokens, Mapping):
            return self.tokens
        found = (rows for name, rows in self.tokens.items() if module == name or module.endswith(f".{name}"))
        return next(found, ())


def _key(patterns: Mapping[str, Any], module: str) -> str:
    """The pattern that a module falls under: the first, as a regular expression for the end of its name."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def read_adapter_config(text: str, shown: str) -> AdapterConfig:
    """The config of the adapter ``shown``. Raises CheckpointError with everything that cannot be merged."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown}: {CONFIG} is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{shown}: {CONFIG} is not a JSON object")
    if wrong := list(_wrong(data)):
        headline = f"{shown} cannot be merged as a model"
        if len(wrong) == 1:
            raise CheckpointError(f"{headline}: {wrong[0]}", [Problem("", "", _INSTEAD)])
        raise CheckpointError(f"{headline}: {count(len(wrong), 'problem')}", [Problem("", what) for what in wrong])
    tokens = data.get("trainable_token_indices") or ()
    return AdapterConfig(
        rank=data["r"],
        alpha=data["lora_alpha"],
        rank_pattern=data.get("rank_pattern") or {},
        alpha_pattern=data.get("alpha_pattern") or {},
        rslora=bool(data.get("use_rslora")),
        dora=bool(data.get("use_dora")),
        fan_in_fan_out=bool(data.get("fan_in_fan_out")),
        modules_to_save=tuple(data.get("modules_to_save") or ()),
        target_parameters=tuple(data.get("target_parameters") or ()),
        tokens={key: tuple(rows) for key, rows in tokens.items()} if isinstance(tokens, dict) else tuple(tokens),
        ties_weights=bool(data.get("ensure_weight_tying")),
        base=data.get("base_model_name_or_path") or None,
        revision=data.get("revision") or None,
        task=str(data["task_type"]) if data.get("task_type") else None,
    )


def _wrong(data: Mapping[str, Any]) -> Iterator[str]:
    kind = data.get("peft_type")
    if kind != "LORA":
        yield f"{CONFIG} names no peft_type" if kind is None else f"peft_type: {kind} is no LoRA"
        return
    for key, value in data.items():
        if value and key not in _HARMLESS and key not in _READ:
            yield f"the option {key} has an effect that only PEFT knows"
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_TAKES_FROM_BASE):
        yield f"init_lora_weights: {start} took a part out of the base's own weights; convert it to a plain LoRA"
    if not _is_rank(data.get("r")):
        yield f"r is {data.get('r')!r}, which is no rank"
    if not _is_number(data.get("lora_alpha")):
        yield f"lora_alpha is {data.get('lora_alpha')!r}, which is no number"
    yield from _wrong_patterns(data, "rank_pattern", _is_rank)
    yield from _wrong_patterns(data, "alpha_pattern", _is_number)
    for key in ("modules_to_save", "target_parameters"):
        if not _is_list_of(str, data.get(key) or []):
            yield f"{key} is no list of names"
    tokens = data.get("trainable_token_indices") or []
    if not all(_is_list_of(int, rows) for rows in (tokens.values() if isinstance(tokens, dict) else [tokens])):
        yield "trainable_token_indices are no numbers of tokens"
    for key in ("base_model_name_or_path", "revision"):
        if data.get(key) is not None and not isinstance(data[key], str):
            yield f"{key} is {data[key]!r}, which is no name"


def _wrong_patterns(data: Mapping[str, Any], key: str, is_value: Any) -> Iterator[str]:
    patterns = data.get(key) or {}
    if not isinstance(patterns, dict) or not all(is_value(value) for value in patterns.values()):
        yield f"{key} is no mapping of patterns to numbers"
        return
    for pattern in patterns:
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error:
            yield f"{key}: {pattern!r} is no regular expression"


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)
