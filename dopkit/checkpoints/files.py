"""Which files of a model hold its weights, and which ones belong beside a merged model.

Judges by names and by the text of an index. Names that come from a repository are not trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dopkit.errors import CheckpointError, Problem

SAFETENSORS, PICKLE = "safetensors", "pickle"

# In transformers' own order of preference: a single file wins over an index beside it.
_WEIGHTS = (
    ("model.safetensors", SAFETENSORS),
    ("model.safetensors.index.json", SAFETENSORS),
    ("pytorch_model.bin", PICKLE),
    ("pytorch_model.bin.index.json", PICKLE),
)

Names = tuple[tuple[str, str], ...]  # of weight files, the first that is there counts, with their kind
MODEL: Names = _WEIGHTS
ADAPTER: Names = (("adapter_model.safetensors", SAFETENSORS), ("adapter_model.bin", PICKLE))

_SIDE_FILES = (
    "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "*.tiktoken", "tekken.json", "normalizer.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "image_processor_config.json", "feature_extractor_config.json",
    "modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*/config.json",
    "*.py",
    "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip


# A module of sentence-transformers behind the model, a dense layer say: small, and no part of the model's class.
_MODULE_WEIGHTS = ("[0-9]_*/model.safetensors", "[0-9]_*/pytorch_model.bin")


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights are: one file, or the shards that ``index`` names."""

    kind: str  # SAFETENSORS or PICKLE
    index: str | None
    files: tuple[str, ...]  # () with an index: it says which


class IsAdapter(CheckpointError):
    """There is an adapter, and no whole model."""


def find_weights(names: Collection[str], shown: str, wanted: Names = MODEL) -> WeightFiles:
    """Pick the weight files out of a model's file names; those of an adapter are ``wanted`` by their own names.

    Raises CheckpointError saying what was found instead, IsAdapter for an adapter.
    """
    for name, kind in wanted:
        if name in names:
            return WeightFiles(kind, name, ()) if name.endswith(".json") else WeightFiles(kind, None, (name,))
    if wanted is ADAPTER:
        what = "none of " + ", ".join(name for name, _ in ADAPTER) + " is there"
        raise CheckpointError(f"{shown} holds no adapter of PEFT", [Problem("", what)])
    error = IsAdapter if "adapter_config.json" in names else CheckpointError
    raise error(f"{shown} holds no model weights", [_instead(names)])


def _instead(names: Collection[str]) -> Problem:
    """What kind of repository this is, if it is not a model dopkit can read."""
    if "adapter_config.json" in names:
        what = "it is an adapter (adapter_config.json), not a whole model"
        return Problem("", what, "Name its base before it: user/base+user/adapter.")
    if any(name.endswith(".gguf") for name in names):
        what = "it holds GGUF files, which are quantised for inference"
        return Problem("", what, "Merge the original weights that they were made from.")
    if "model_index.json" in names:
        return Problem("", "it is a diffusers pipeline; dopkit merges transformers models")
    return Problem("", "none of " + ", ".join(name for name, _ in _WEIGHTS) + " is there")


def read_index(text: str, index: str, names: Collection[str], shown: str) -> dict[str, str]:
    """The weight map of an index: tensor name to file name, every file a plain name out of ``names``.

    Raises CheckpointError when the text is no index, or names a file that is not there or lies elsewhere.
    """
    try:
        pairs = json.loads(text)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pairs = None
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(file, str) for file in pairs.values()):
        raise CheckpointError(f"{shown}: {index} is not an index of weight files")
    for file in sorted(set(pairs.values())):
        if not is_plain(file):
            raise CheckpointError(f"{shown}: {index} names a file outside the model: {file!r}")
        if file not in names:
            raise CheckpointError(f"{shown}: {index} names {file}, which is not there", [Problem("", _AGAIN)])
    return dict(pairs)


_AGAIN = "The download may be incomplete: fetch the model again."


def read_text(path: Path, shown: str) -> str:
    """A text file of the model ``shown``. Raises CheckpointError when it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{shown}: {path.name} is not UTF-8 text") from None
    except OSError as error:
        raise CheckpointError(f"{shown}: cannot read {path.name}: {error.strerror}") from error


def digests(path: Path) -> frozenset[str]:
    """What the Hub calls this content: as a file of git, and as one of Git LFS."""
    content = path.read_bytes()
    as_git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return frozenset((as_git.hexdigest(), hashlib.sha256(content).hexdigest()))


def is_plain(name: str) -> bool:
    """Whether a file name stays inside the folder it is meant for."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def side_files(names: Collection[str]) -> list[str]:
    """The files that travel with the merged model: tokenizer, processor, chat template, custom code, licence."""
    return sorted(name for name in names if _is_side_file(name))


def _is_side_file(name: str) -> bool:
    parts = name.split("/")
    if len(parts) > 2 or not all(is_plain(part) for part in parts):
        return False
    if name.endswith((".safetensors", ".bin")):
        return _matches(name, _MODULE_WEIGHTS)
    return _matches(name, _SIDE_FILES)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    # A `*` must not reach into sub-folders.
    return any(pattern.count("/") == name.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def module_weights(names: Iterable[str]) -> list[str]:
    """The folders of sentence-transformers' modules that hold weights, which are no tensors of the model."""
    return sorted({name.partition("/")[0] for name in names if _matches(name, _MODULE_WEIGHTS)})
