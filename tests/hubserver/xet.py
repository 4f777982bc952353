"""Xet, as far as a folder goes: the client's hf_xet keeps its store at a `local://` address of ours.

So nothing of the Xet protocol passes over a port, and one client at a time may write. The hub only
has to find, after an upload, which Xet file has which sha256: that stands in the store's shards,
https://huggingface.co/docs/xet/shard. Needs hf_xet, and only when a hub is made with `xet=True`.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hubserver.site import Site
from hubserver.wire import Answer, Refusal, Request, json_answer

RECORD = 48  # bytes; a shard is a row of records of this size
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30


def hex_of(raw: bytes) -> str:
    """A hash as the client writes it: four little-endian words of eight bytes, each in hexadecimal."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def files_in(shard: bytes) -> Iterator[tuple[str, str]]:
    """(sha256, Xet hash) of each file that a shard describes."""
    place = RECORD  # behind the header
    while place + RECORD <= len(shard):
        name, flags, entries = shard[place : place + 32], *struct.unpack_from("<II", shard, place + 32)
        if name == b"\xff" * 32:
            return  # the bookend
        place += RECORD * (1 + entries * (2 if flags & WITH_VERIFICATION else 1))
        if flags & WITH_SHA256:
            yield hex_of(shard[place : place + 32]), hex_of(name)
            place += RECORD


def find(store: Path, sha256: str) -> str | None:
    """The Xet hash of the file with this sha256, if the store has it."""
    for path in (store / "xet" / "xorbs" / "shards").glob("*.mdb"):
        for digest, name in files_in(path.read_bytes()):
            if digest == sha256:
                return name
    return None


def fetch(store: Path, name: str, size: int, target: Path) -> None:
    """Put a file of the store together again. From a copy, because a client may hold the store open."""
    import hf_xet  # type: ignore[import-untyped, unused-ignore]

    with tempfile.TemporaryDirectory(prefix="hubserver-xet-") as copy:
        shutil.copytree(store, copy, dirs_exist_ok=True)
        session = hf_xet.XetSession()
        with session.new_file_download_group(endpoint=f"local://{copy}") as group:
            group.start_download_file(hf_xet.XetFileInfo(name, size), str(target))


def write_token(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    site.writable(request, kind, repo, as_pull_request=request.flag("create_pr"))
    return token(site)


def read_token(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    site.open_files(request, site.repo(request, kind, repo))
    return token(site)


def token(site: Site) -> Answer:
    """Where the store is. The client reads the body, hf_xet the headers, or the other way round."""
    if not site.settings.xet:
        raise Refusal(404, "This hub has no Xet")
    url, expires = f"local://{site.xet_folder}", int(time.time() + 3600)
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
    return json_answer({"casUrl": url, "accessToken": "xet", "exp": expires}, headers=headers)
