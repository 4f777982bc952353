"""A repo's card and what the Hub derives from it: card data, tags, library, the model record.

Knows the front matter of README.md and a few file names; nothing of requests.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import yaml

from hubserver.store import Blob, Commit, Repo

FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


def card_data(commit: Commit) -> dict[str, Any] | None:
    """The parsed front matter, or None if there is none or it cannot be read."""
    readme = commit.files.get("README.md")
    if readme is None:
        return None
    try:
        return parse_front_matter(readme.read().decode("utf-8", "replace"))
    except yaml.YAMLError:
        return None


def parse_front_matter(text: str) -> dict[str, Any] | None:
    found = FRONT_MATTER.match(text.replace("\r\n", "\n"))
    value = yaml.safe_load(found.group(1)) if found else None
    return value if isinstance(value, dict) else None


def as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def tags(card: dict[str, Any], files: dict[str, Blob]) -> list[str]:
    """The tags the Hub shows and searches: the card's own, and those it derives."""
    found = as_list(card.get("library_name")) + as_list(card.get("tags"))
    if any(path.endswith(".safetensors") for path in files):
        found.append("safetensors")
    found += as_list(card.get("pipeline_tag")) + as_list(card.get("language"))
    found += [f"dataset:{name}" for name in as_list(card.get("datasets"))]
    found += [f"license:{name}" for name in as_list(card.get("license"))]
    bases = as_list(card.get("base_model"))
    if bases:
        default = "merge" if len(bases) > 1 else "finetune"
        relation = card.get("base_model_relation") or default
        found += [f"base_model:{name}" for name in bases]
        found += [f"base_model:{relation}:{name}" for name in bases]
    return list(dict.fromkeys([*found, "region:us"]))


def timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def sibling(path: str, blob: Blob, blobs: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"rfilename": path}
    if blobs:
        record |= {"size": blob.size, "blobId": blob.oid}
        if blob.sha256:
            record["lfs"] = {"size": blob.size, "sha256": blob.sha256, "pointerSize": blob.pointer_size}
    return record


def record(repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """The JSON of one repo at one commit, complete. Search sends a part of it."""
    files = dict(sorted(commit.files.items()))
    card = card_data(commit)
    value: dict[str, Any] = {
        "_id": commit.sha[:24],
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.sha,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "createdAt": timestamp(repo.created),
        "lastModified": timestamp(repo.last_modified()),
        "likes": repo.likes,
        "downloads": repo.downloads,
        "trendingScore": repo.likes,
        "tags": tags(card or {}, files),
        "usedStorage": sum({blob.oid: blob.size for blob in files.values()}.values()),
        "siblings": [sibling(path, blob, blobs) for path, blob in files.items()],
    }
    if repo.kind == "models":
        value["modelId"] = repo.id
    if card is not None:
        value["cardData"] = card
        value |= {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
    return value
