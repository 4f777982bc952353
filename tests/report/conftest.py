"""A small receipt with everything in it, and a page taken apart by Python's own HTML parser."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

VOID = {"meta", "br", "hr", "col", "link", "img", "input", "base"}


@dataclass
class Node:
    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def find(self, name: str, **attributes: str) -> list[Node]:
        """Every element of that name below this one; ``class_`` must be among the classes."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if child.name == name and all(child.has(key, value) for key, value in attributes.items()):
                    found.append(child)
                found += child.find(name, **attributes)
        return found

    def has(self, key: str, value: str) -> bool:
        given = self.attributes.get(key.rstrip("_")) or ""
        return value in given.split() if key == "class_" else given == value

    def everything(self) -> list[Node]:
        below = [child for child in self.children if isinstance(child, Node)]
        return [self, *(node for child in below for node in child.everything())]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("document")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse_page(page: str) -> Node:
    """The tree; fails when elements are not closed in order."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].name}> is never closed"
    return parser.open[0]


COMMITS = {"base": "0" * 40, "vit-a": "a" * 40, "vit-b": "b" * 40}


def _step(step: int, scale: float) -> dict[str, Any]:
    return {
        "step": step, "objective_before": 4 * scale, "objective_after": scale, "stability_before": 4 * scale,
        "stability_after": scale / 2, "plasticity_before": 4 * scale, "plasticity_after": 3 * scale,
        "rank_merged": 4, "rank_incoming": 2, "weight": 0.8,
    }  # fmt: skip


def _tensor(rule: str = "mean", role: str = "norm", steps: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": role, "rule": rule, "device": "cpu", "seconds": 0.25}
    return entry if steps is None else {**entry, "steps": steps}


RECEIPT: dict[str, Any] = {
    "layout": 1, "fingerprint": "f", "method": "dop", "parameters": {"solver": "exact", "alpha": 0.8, "exclude": []},
    "base": {"model": f"org/base@{COMMITS['base']}", "identity": COMMITS["base"], "bytes": 1000},
    "models": [
        {"model": f"org/{name}@{COMMITS[name]}", "identity": COMMITS[name], "bytes": 1000}
        for name in ("vit-a", "vit-b")
    ],
    "order": {"shuffle": {"seed": 42}},
    "run": {"device": "cpu", "seconds": 61.0, "peak_resident_bytes": 398_000_000, "resumed": True},
    "verified": {"finite": "every value is finite"}, "versions": {"dopkit": "9.9", "torch": "2.99"},
    "shards": [{"file": "model.safetensors", "bytes": 1000, "sha256": "0"}],
    "tensors": {
        "layers.0.attn.q_proj.weight": _tensor("dop exact", "linear", [_step(2, 1e-3)]),
        "layers.1.attn.q_proj.weight": _tensor("dop exact", "linear", [_step(2, 1e-2)]),
        "layers.0.mlp.fc1.weight": _tensor("dop exact", "linear", [_step(2, 1e-1)]),
        "layers.0.norm.weight": _tensor(),
    },
    "dropped": [{"model": "org/vit-a", "tensor": "classifier.weight", "why": "heads: drop"}],
    "notes": ["a note of the plan"],
}  # fmt: skip

EVALUATION: dict[str, Any] = {
    "layout": 1,
    "tasks": [
        {"name": "task-a", "kind": "image-classification", "metric": "accuracy", "samples": 4, "model": "vit-a"},
        {"name": "task-b", "kind": "image-classification", "metric": "accuracy", "samples": 4, "model": "vit-b"},
        {"name": "text", "kind": "perplexity", "metric": "perplexity", "samples": 4, "model": None},
    ],
    "rows": [
        {"label": "base", "kind": "base", "step": 0, "model": None,
         "scores": {"task-a": {"value": 0.111}, "task-b": {"value": 0.222}, "text": {"value": 12.5}}},
        {"label": "expert vit-a", "kind": "expert", "step": None, "model": "vit-a",
         "scores": {"task-a": {"value": 0.955}, "task-b": {"value": 0.199}}},
        {"label": "expert vit-b", "kind": "expert", "step": None, "model": "vit-b",
         "scores": {"task-a": {"value": 0.177}, "task-b": {"value": 0.933}}},
        {"label": "step 1", "kind": "step", "step": 1, "model": "vit-a",
         "scores": {"task-a": {"value": 0.944}, "text": {"value": 11.5}}},
        {"label": "step 2", "kind": "step", "step": 2, "model": "vit-b",
         "scores": {"task-a": {"value": 0.888}, "task-b": {"value": 0.866}, "text": {"value": 10.5}}},
    ],
    "acc": 0.877, "bwt": -0.056, "definitions": {"acc": "ACC: a mean.", "bwt": "BWT: a change."},
}  # fmt: skip

RELATIONS: dict[str, Any] = {
    "models": ["vit-a", "vit-b"], "norms": [3.0, 4.0], "base_norm": 100.0, "energy": 0.99,
    "cosines": [[1.0, -0.25], [-0.25, 1.0]],
    "tensors": {
        "layers.0.attn.q_proj.weight": {
            "norms": [3.0, 1.0], "base_norm": 10.0, "cosines": [[1, 0.5], [0.5, 1]], "ranks": [2, 4], "full_rank": 4,
        },
        "layers.0.mlp.fc1.weight": {
            "norms": [4.0, 1.0], "base_norm": None, "cosines": [[1, 0.0], [0.0, 1]], "ranks": None,
        },
        "layers.1.attn.q_proj.weight": {
            "norms": [1.0, 2.0], "base_norm": 20.0, "cosines": [[1, -0.5], [-0.5, 1]], "ranks": [1, 3], "full_rank": 4,
        },
    },
}  # fmt: skip


@pytest.fixture
def receipt() -> dict[str, Any]:
    """Without evaluation and relations."""
    return copy.deepcopy(RECEIPT)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return copy.deepcopy(EVALUATION)


@pytest.fixture
def relations() -> dict[str, Any]:
    return copy.deepcopy(RELATIONS)


@pytest.fixture
def parse() -> Any:
    """A page as a tree of nodes."""
    return parse_page
