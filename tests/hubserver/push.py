"""Writing: preupload, commit, pull requests.

Knows the commit's lines of JSON; the bytes of large files come another way, see lfs.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from hubserver import cards, xet
from hubserver.api import web_url
from hubserver.site import Site, may_write
from hubserver.store import Blob, Commit, PullRequest, Repo, lfs_blob, regular_blob
from hubserver.wire import Answer, Refusal, Request, json_answer


def preupload(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    """How each file is to be sent, and what the repo holds in its place (so the client can skip it)."""
    found = site.writable(request, kind, repo, as_pull_request=request.flag("create_pr"))
    present = found.find(revision).files
    files = []
    for file in request.json()["files"]:
        mode = "lfs" if site.settings.is_lfs(file["path"], file["size"]) else "regular"
        item = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if file["path"] in present:
            blob = present[file["path"]]
            item["oid"] = blob.sha256 or blob.oid
        files.append(item)
    return json_answer({"files": files, "commitOid": found.find(revision).sha})


def commit(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    as_pull_request = request.flag("create_pr")
    found = site.writable(request, kind, repo, as_pull_request)
    user = may_write(request.user, "")
    lines = [json.loads(line) for line in request.body().splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    title, description = header["summary"], header.get("description") or ""
    with site.store.lock:
        ref = found.branch(revision)
        head = found.commits[found.refs[ref]]
        require_parent(head, header.get("parentCommit"))
        files = changed(site, found, dict(head.files), lines)
        answer: dict[str, Any] = {"success": True, "hookOutput": ""}
        if as_pull_request:
            num = open_pull_request(found, title, description, user.name, ref)
            ref = f"refs/pr/{num}"
            answer["pullRequestUrl"] = f"{web_url(site, kind, found.id)}/discussions/{num}"
        made = site.store.commit(found, ref, files, title, user.name, description)
    answer["commitUrl"] = f"{web_url(site, kind, found.id)}/commit/{made.sha}"
    answer["commitOid"] = made.sha
    return json_answer(answer)


def require_parent(head: Commit, parent: str | None) -> None:
    if parent is not None and parent != head.sha:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")


def changed(site: Site, repo: Repo, files: dict[str, Blob], lines: list[dict[str, Any]]) -> dict[str, Blob]:
    """The table of files after the commit's lines."""
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                files[value["path"]] = regular_blob(base64.b64decode(value["content"]))
            case "lfsFile":
                files[value["path"]] = pushed_object(site, repo, value)
            case "deletedFile":
                remove(files, [value["path"]])
            case "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                remove(files, [path for path in files if path.startswith(prefix)])
            case "header":
                pass
            case other:
                raise Refusal(400, f"Unknown key in a commit: {other}")
    return files


def pushed_object(site: Site, repo: Repo, value: dict[str, Any]) -> Blob:
    blob = repo.objects.get(value["oid"])
    if blob is None and site.settings.xet:
        blob = object_from_xet(site, value["oid"], value["size"])
    if blob is None:
        raise Refusal(400, f"LFS pointer of {value['path']} points to an object that was never uploaded here")
    if "size" in value and value["size"] != blob.size:
        raise Refusal(400, f"{value['path']} has {blob.size} bytes, the commit says {value['size']}")
    return blob


def object_from_xet(site: Site, sha256: str, size: int) -> Blob | None:
    name = xet.find(site.xet_folder, sha256)
    if name is None:
        return None
    target = site.store.folder / f"{sha256}.xet"
    xet.fetch(site.xet_folder, name, size, target)
    return lfs_blob(target, xet=name)


def remove(files: dict[str, Blob], paths: list[str]) -> None:
    if not paths or any(path not in files for path in paths):
        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    for path in paths:
        del files[path]


def open_pull_request(repo: Repo, title: str, description: str, author: str, base: str) -> int:
    """A new discussion whose branch starts where `base` stands."""
    num = len(repo.pulls) + 1
    now = datetime.now(UTC)
    repo.pulls[num] = PullRequest(num, title, description, author, now, base)
    repo.refs[f"refs/pr/{num}"] = repo.refs[base]
    return num


def create_discussion(site: Site, request: Request, kind: str, repo: str) -> Answer:
    found, asked = site.repo(request, kind, repo), request.json()
    user = may_write(request.user, "")
    with site.store.lock:
        num = open_pull_request(found, asked["title"], asked["description"], user.name, "refs/heads/main")
        if not asked.get("pullRequest"):
            found.pulls[num].is_pull_request = False
            del found.refs[f"refs/pr/{num}"]
        else:
            found.pulls[num].status = "draft"
    return json_answer({"num": num, "pullRequest": bool(asked.get("pullRequest"))})


def discussion_record(repo: Repo, pull: PullRequest) -> dict[str, Any]:
    return {
        "num": pull.num,
        "title": pull.title,
        "status": pull.status,
        "author": {"name": pull.author},
        "createdAt": cards.timestamp(pull.created),
        "isPullRequest": pull.is_pull_request,
        "repo": {"name": repo.id, "type": repo.kind.removesuffix("s")},
    }


def discussion(site: Site, request: Request, kind: str, repo: str, num: str) -> Answer:
    found = site.repo(request, kind, repo)
    pull = found.pulls.get(int(num))
    if pull is None:
        raise Refusal(404, f"No discussion {num}")
    comment = {
        "id": f"{num}-0",
        "type": "comment",
        "createdAt": cards.timestamp(pull.created),
        "author": {"name": pull.author},
        "data": {"edited": False, "hidden": False, "latest": {"raw": pull.description}},
    }
    value = discussion_record(found, pull) | {"events": [comment], "filesWithConflicts": []}
    if pull.is_pull_request:
        value["changes"] = {"base": pull.base}
    return json_answer(value)


def discussions(site: Site, request: Request, kind: str, repo: str) -> Answer:
    """All on one page. The filters for kind and status are those of the client."""
    found = site.repo(request, kind, repo)
    pulls = list(found.pulls.values())
    if request.first("type", "all") != "all":
        wanted = request.first("type") == "pull_request"
        pulls = [pull for pull in pulls if pull.is_pull_request == wanted]
    if request.first("status", "all") != "all":
        shut = request.first("status") == "closed"
        pulls = [pull for pull in pulls if (pull.status not in ("open", "draft")) == shut]
    records = [discussion_record(found, pull) for pull in reversed(pulls)]
    return json_answer({"discussions": records, "count": len(records), "start": 0})
