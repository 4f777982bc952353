"""Byte ranges of one file at one commit, straight into memory. Part of ``hub``.

The Hub answers a request for a large file with a signed address at its storage host. That address is asked for once and
used, without the token, until it expires. A body that breaks is continued at the byte where it broke; a busy server is
asked again at the pace it names (the client does that). Knows nothing of tensors.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from dopkit import __version__
from dopkit.errors import HubError, Problem
from dopkit.hub.explain import AGAIN, MISSING, ONLINE, explained, without_query
from dopkit.refs import ModelRef

TIMEOUT = 30.0  # seconds without a byte
_TRIES = 5  # in a row that bring nothing, each after the client's own tries
_AT_ONCE = threading.BoundedSemaphore(8)  # requests under way in this process
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _NoSignatures(logging.Filter):
    """The client logs the address of what it tries again; the query of a storage address is a signature."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = without_query(str(record.msg))
        return True


logging.getLogger("huggingface_hub.utils._http").addFilter(_NoSignatures())


class RemoteFile:
    """A file of a repository at a pinned commit, read in parts. Safe to use from several threads."""

    def __init__(self, ref: ModelRef, file: str) -> None:
        assert ref.repo is not None
        self._ref = ref
        self._file = file
        self._url = hf_hub_url(ref.repo, file, revision=ref.revision)
        self._signed: str | None = None  # where the storage host has it
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let reads under way in other threads end early, with a HubError."""
        self._stopped.set()

    def read(self, start: int, stop: int) -> bytes:
        """The file's bytes ``start`` to ``stop`` (exclusive). Raises HubError."""
        data = bytearray(max(0, stop - start))
        self.read_into(memoryview(data), start)
        return bytes(data)

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill ``view`` with the file's bytes from ``start`` on. Raises HubError."""
        if len(view) and constants.is_offline_mode():
            raise HubError(f"{self._ref.short}: {self._file} {MISSING}", [Problem("", "", ONLINE)])
        done = failures = 0
        while done < len(view):
            if self._stopped.is_set():
                raise HubError(f"{self._ref.short}: reading {self._file} was stopped")
            with explained(self._ref, self._file), _AT_ONCE:
                try:
                    got = self._read_some(view[done:], start + done)
                except RuntimeError:  # another thread's failure closed the client they share; the next is a new one
                    got = 0
            done += got
            failures = 0 if got else failures + 1
            if failures == _TRIES:
                raise self._short(len(view), done)
            if failures:
                time.sleep(2.0 ** (failures - 1))

    def _read_some(self, view: memoryview, start: int) -> int:
        """One answer into ``view``: how many bytes came before its end, or before it broke."""
        if (signed := self._signed) is not None:
            got = self._request(signed, build_hf_headers(token=False, **_OURSELVES), view, start)
            if got is not None:
                return got
            if self._signed == signed:  # no other thread has asked for a new one yet
                self._signed = None
        return self._request(self._url, build_hf_headers(**_OURSELVES), view, start) or 0

    def _request(self, url: str, headers: dict[str, str], view: memoryview, start: int) -> int | None:
        """See ``_read_some``; None when a signed address is no longer good."""
        headers |= {"Range": f"bytes={start}-{start + len(view) - 1}", "Accept-Encoding": "identity"}
        with http_stream_backoff("GET", url, headers=headers, timeout=TIMEOUT) as answer:
            # What is raised in here must not be what the context manager tries again on: it would begin another answer
            # inside this one.
            if answer.status_code >= 400:
                if url != self._url and answer.status_code != 416:
                    return None
                if not _read_whole(answer):
                    return 0
                hf_raise_for_status(answer)
            if answer.status_code != 206:  # it would send the whole file
                what = f"asked for a part of {self._file}, the server answered {answer.status_code}"
                raise HubError(f"{self._ref.short}: {what}")
            if not self._is_that_part(answer, len(view), start):
                return 0
            where = str(answer.url)
            if urlsplit(where)[:2] != urlsplit(self._url)[:2]:  # another host: storage
                self._signed = where
            return self._body(answer, view)

    def _is_that_part(self, answer: Any, length: int, start: int) -> bool:
        """Whether the answer is the part asked for, by its own account. Raises HubError beyond the end of the file."""
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            return False
        if found[3] != "*" and int(found[3]) < start + length:
            raise self._short(length, int(found[3]) - start)
        return int(found[2]) + 1 == start + length and int(answer.headers.get("Content-Length", 0)) <= length

    def _body(self, answer: Any, view: memoryview) -> int:
        done = 0
        try:
            for chunk in answer.iter_raw():
                if self._stopped.is_set() or done + len(chunk) > len(view):
                    break
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
        except (HTTPError, RuntimeError):  # broken, or another thread's failure closed the client they share
            pass
        return done

    def _short(self, asked: int, got: int) -> HubError:
        what = f"asked for {asked:,} bytes of {self._file}, got {got:,}"
        return HubError(f"{self._ref.short}: {what}", [Problem("", "", AGAIN)])


_OURSELVES: dict[str, Any] = {"library_name": "dopkit", "library_version": __version__}


def _read_whole(answer: Any) -> bool:
    """Take in the body of a refusal, which says more than its status; False when it broke."""
    try:
        answer.read()
    except (HTTPError, RuntimeError):
        return False
    return True
