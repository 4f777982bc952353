"""Reading files: resolve on the hub, redirects to the storage host, and ranges.

Small files come straight from resolve; LFS files are a redirect to a signed address on the other port.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from hubserver.site import Site
from hubserver.store import Blob, Commit
from hubserver.tree import absent
from hubserver.wire import Answer, Refusal, Request, redirect

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def resolve(
    site: Site,
    request: Request,
    repo: str,
    revision: str,
    path: str,
    prefix: str | None = None,
) -> Answer:
    kind = prefix.rstrip("/") if prefix else "models"
    found, commit = site.revision(request, kind, repo, revision)
    site.open_files(request, found)
    blob = entry(commit, path, revision)
    if blob.sha256 is not None:
        return to_storage(site, commit, kind, found.id, path, blob)
    if site.settings.resolve_cache:
        location = f"/api/resolve-cache/{kind}/{found.id}/{commit.sha}/{quote(path)}"
        return redirect(307, location, {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"'})
    return small_file(request, commit, path, blob)


def resolve_cache(site: Site, request: Request, kind: str, repo: str, revision: str, path: str) -> Answer:
    found, commit = site.revision(request, kind, repo, revision)
    site.open_files(request, found)
    return small_file(request, commit, path, entry(commit, path, revision))


def entry(commit: Commit, path: str, revision: str) -> Blob:
    if path not in commit.files:
        raise absent(path, revision, commit)
    return commit.files[path]


def small_file(request: Request, commit: Commit, path: str, blob: Blob) -> Answer:
    answer = ranged(request, blob)
    answer.headers |= {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"'}
    answer.headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}"
    return answer


def to_storage(site: Site, commit: Commit, kind: str, repo_id: str, path: str, blob: Blob) -> Answer:
    # the repo is part of the address because each repo has its own objects
    address = f"/objects/{kind}/{repo_id}/{blob.sha256}"
    headers = {
        "X-Repo-Commit": commit.sha,
        "X-Linked-Size": str(blob.size),
        "X-Linked-ETag": f'"{blob.sha256}"',
        "Accept-Ranges": "bytes",
    }
    if blob.xet:
        headers["X-Xet-Hash"] = blob.xet
        headers["X-Xet-Refresh-Route"] = f"{site.endpoint}/api/{kind}/{repo_id}/xet-read-token/{commit.sha}"
    return redirect(302, site.storage_endpoint + site.signer.sign(address, filename=path), headers)


def get_object(site: Site, request: Request, kind: str, repo: str, sha256: str) -> Answer:
    """On the storage host, for whoever holds a valid signature."""
    site.signer.check(request)
    if "Authorization" in request.headers:
        # S3 refuses two ways of signing in at once; and the token had no business coming here
        raise Refusal(400, "InvalidArgument: Only one auth mechanism allowed")
    found = site.store.repo(kind, repo)
    if found is None or sha256 not in found.objects:
        raise Refusal(404, "NoSuchKey")
    answer = ranged(request, found.objects[sha256])
    answer.headers |= {"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"}
    return answer


def ranged(request: Request, blob: Blob) -> Answer:
    """All of the blob, or the one range asked for. Several ranges at once get it whole, as S3 does."""
    whole = Answer(200, blob.cut(0, blob.size), {"Accept-Ranges": "bytes"})
    found = RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None or not (found[1] or found[2]):
        return whole
    if found[1]:
        start, stop = int(found[1]), min(int(found[2] or blob.size - 1) + 1, blob.size)
    else:
        start, stop = max(blob.size - int(found[2]), 0), blob.size
    if start >= stop:
        raise Refusal(416, "InvalidRange", headers={"Content-Range": f"bytes */{blob.size}"})
    content_range = f"bytes {start}-{stop - 1}/{blob.size}"
    return Answer(206, blob.cut(start, stop), {"Accept-Ranges": "bytes", "Content-Range": content_range})
