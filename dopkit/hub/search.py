"""Looking for models that carry a tag. Part of ``hub``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from huggingface_hub import ModelInfo

from dopkit.hub.explain import asking
from dopkit.hub.reading import api

Order = Literal["newest", "likes", "downloads"]


@dataclass(frozen=True)
class Found:
    """One repository, with what its card says of itself. All of it is somebody else's word."""

    repo: str
    likes: int
    downloads: int
    updated: datetime | None
    tags: tuple[str, ...]
    card: Mapping[str, Any]  # the metadata of its README; empty when there is none


def search(tag: str, words: str = "", order: Order = "newest", limit: int = 20) -> list[Found]:
    """Model repositories that carry ``tag`` and have ``words`` in their name, first by ``order``. Raises HubError."""
    sort: Literal["last_modified", "likes", "downloads"] = "last_modified" if order == "newest" else order
    with asking("search the Hub"):
        listed = api().list_models(
            filter=tag, search=words or None, sort=sort, limit=limit, full=True, cardData=True
        )  # fmt: skip
        return [_found(info) for info in listed]


def _found(info: ModelInfo) -> Found:
    card = info.card_data.to_dict() if info.card_data is not None else {}
    updated = info.last_modified or info.created_at
    return Found(info.id, info.likes or 0, info.downloads or 0, updated, tuple(info.tags or ()), card)
