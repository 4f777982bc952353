"""The listings: a repo's tree page by page, chosen paths, and the headers of its safetensors shards.

Knows nothing of how files are served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlencode

from hubserver.cards import timestamp
from hubserver.site import Site
from hubserver.store import Blob, Commit, Repo
from hubserver.wire import Answer, Piece, Refusal, Request, json_answer


def file_item(path: str, blob: Blob) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.sha256:
        item["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    if blob.xet:
        item["xetHash"] = blob.xet
    return item


def folder_item(path: str, commit: Commit) -> dict[str, Any]:
    inside = sorted((name, blob.oid) for name, blob in commit.files.items() if name.startswith(f"{path}/"))
    return {
        "type": "directory",
        "oid": hashlib.sha1(repr(inside).encode()).hexdigest(),
        "size": 0,
        "path": path,
    }


def folders(paths: Iterable[str]) -> set[str]:
    found = set()
    for path in paths:
        while "/" in path:
            path = path.rpartition("/")[0]
            found.add(path)
    return found


def listing(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    items = [file_item(path, blob) for path, blob in commit.files.items()]
    items += [folder_item(path, commit) for path in folders(commit.files)]
    inside = [item for item in items if item["path"].startswith(prefix)]
    if not recursive:
        inside = [item for item in inside if "/" not in item["path"][len(prefix) :]]
    return sorted(inside, key=lambda item: str(item["path"]))


def absent(path: str, revision: str, commit: Commit) -> Refusal:
    """The client remembers that this commit lacks the path, so it must learn which commit."""
    message = f"{path} does not exist on {revision!r}"
    return Refusal(404, message, "EntryNotFound", {"X-Repo-Commit": commit.sha})


def last_change(repo: Repo, commit: Commit, path: str) -> dict[str, str]:
    """The commit at or before `commit` that gave this path its present content."""
    content = commit.files.get(path)
    while commit.parent is not None and content is not None:
        before = repo.commits[commit.parent]
        if before.files.get(path) != content:
            break
        commit = before
    return {"id": commit.sha, "title": commit.title, "date": timestamp(commit.date)}


def expanded(repo: Repo, commit: Commit, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item | {"lastCommit": last_change(repo, commit, item["path"])} for item in items]


def tree(site: Site, request: Request, kind: str, repo: str, revision: str, folder: str = "") -> Answer:
    found, commit = site.revision(request, kind, repo, revision)
    folder = folder.strip("/")
    items = listing(commit, folder, request.flag("recursive"))
    if folder and not items:
        raise absent(folder, revision, commit)
    page, link = paged(site, request, items)
    if request.flag("expand"):
        page = expanded(found, commit, page)
    return json_answer(page, headers={"X-Repo-Commit": commit.sha} | link)


def paged(site: Site, request: Request, items: list[Any]) -> tuple[list[Any], dict[str, str]]:
    """This page of the items, and the Link header if there is another. The cursor is a count."""
    size = min(int(request.first("limit") or site.settings.page_size), site.settings.page_size)
    start = int(request.first("cursor") or 0)
    if start + size >= len(items):
        return items[start:], {}
    query = urlencode({**request.query, "cursor": [start + size]}, doseq=True)
    link = f'<{site.endpoint}{request.path}?{query}>; rel="next"'
    return items[start : start + size], {"Link": link}


def paths_info(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    found, commit = site.revision(request, kind, repo, revision)
    form = parse_qs(request.body().decode())
    known = folders(commit.files)
    items = []
    for path in form.get("paths", []):
        if path in commit.files:
            items.append(file_item(path, commit.files[path]))
        elif path in known:
            items.append(folder_item(path, commit))
    if form.get("expand", ["false"])[0].lower() in ("1", "true"):
        items = expanded(found, commit, items)
    return json_answer(items)


def safetensors_metadata(site: Site, request: Request, kind: str, repo: str, path: str) -> Answer:
    """All shard headers of main in one answer."""
    found, commit = site.revision(request, kind, repo, "main")
    site.open_files(request, found)
    if path not in commit.files:
        raise absent(path, "main", commit)
    index = json.loads(commit.files[path].read())
    shards = sorted(set(index.pop("weight_map").values()))
    return json_answer({"index": index, "headers": {name: header(commit.files[name]) for name in shards}})


def header(blob: Blob) -> Any:
    length = int.from_bytes(stretch(blob, 0, 8), "little")
    return json.loads(stretch(blob, 8, 8 + length))


def stretch(blob: Blob, start: int, stop: int) -> bytes:
    content = blob.cut(start, stop)
    if isinstance(content, Piece):
        with content.path.open("rb") as stream:
            stream.seek(content.start)
            return stream.read(content.length)
    return content
