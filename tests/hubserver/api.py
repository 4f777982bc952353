"""The JSON endpoints about accounts and repos: who am I, create, move, info, refs, branches, tags.

Knows nothing of how files are listed, pushed or served.
"""

from __future__ import annotations

from typing import Any

import yaml

from hubserver import cards
from hubserver.site import Site, may_read, may_write
from hubserver.store import Repo, regular_blob
from hubserver.wire import Answer, Refusal, Request, json_answer

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
# a new repo on the Hub is not empty: it holds this file
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def whoami(site: Site, request: Request) -> Answer:
    user = request.user
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    auth = {"type": "access_token", "accessToken": {"role": user.role, "displayName": user.name}}
    orgs = [{"type": "org", "name": name, "fullname": name} for name in user.orgs]
    return json_answer(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "orgs": orgs,
            "auth": auth,
        }
    )


def kind_of(asked: dict[str, Any]) -> str:
    name = asked.get("type") or "model"
    if name not in KINDS:
        raise Refusal(400, f"Unknown repo type {name!r}")
    return KINDS[name]


def create_repo(site: Site, request: Request) -> Answer:
    asked = request.json()
    if request.user is None:
        raise Refusal(401, "Invalid username or password.")
    namespace = asked.get("organization") or request.user.name
    user = may_write(request.user, namespace)
    kind = kind_of(asked)
    repo_id = f"{namespace}/{asked['name']}"
    answer = {"url": web_url(site, kind, repo_id), "name": repo_id, "id": repo_id}
    with site.store.lock:
        if site.store.repo(kind, repo_id):
            # the client reads `url` from this body when exist_ok is set
            return json_answer({"error": "You already created this repo", **answer}, status=409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        files = {".gitattributes": regular_blob(GITATTRIBUTES)}
        site.store.create(Repo(repo_id, kind, private=private), files, user.name)
    return json_answer(answer)


def delete_repo(site: Site, request: Request) -> Answer:
    asked = request.json()
    namespace = asked.get("organization") or (request.user.name if request.user else "")
    repo = site.writable(request, kind_of(asked), f"{namespace}/{asked['name']}")
    with site.store.lock:
        site.store.repos.pop((repo.kind, repo.id), None)
    return json_answer({})


def move_repo(site: Site, request: Request) -> Answer:
    asked = request.json()
    kind, new = kind_of(asked), asked["toRepo"]
    site.writable(request, kind, asked["fromRepo"])
    may_write(request.user, new.split("/")[0])
    if site.store.repo(kind, new):
        raise Refusal(409, f"{new} exists already")
    site.store.move(kind, asked["fromRepo"], new)
    return json_answer({"url": web_url(site, kind, new)})


def settings(site: Site, request: Request, kind: str, repo: str) -> Answer:
    found, asked = site.writable(request, kind, repo), request.json()
    found.gated = asked.get("gated", found.gated)
    if "visibility" in asked:
        found.private = asked["visibility"] == "private"
    return json_answer({"gated": found.gated, "private": found.private})


def auth_check(site: Site, request: Request, kind: str, repo: str) -> Answer:
    site.open_files(request, site.repo(request, kind, repo))
    return json_answer({})


def auth_check_write(site: Site, request: Request, kind: str, repo: str) -> Answer:
    site.writable(request, kind, repo)
    return json_answer({})


def validate_yaml(site: Site, request: Request) -> Answer:
    """Refuses front matter that is not YAML. The Hub's own rules for the fields are not known here."""
    content = request.json()["content"]
    try:
        found = cards.parse_front_matter(content)
    except yaml.YAMLError as error:
        return json_answer({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
    return json_answer({"errors": [], "warnings": warnings})


def info(site: Site, request: Request, kind: str, repo: str, revision: str = "main") -> Answer:
    found, commit = site.revision(request, kind, repo, revision)
    value = cards.record(found, commit, blobs=request.flag("blobs"))
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    if wanted:
        value = {name: value[name] for name in ("_id", "id", *wanted) if name in value}
    return json_answer(value, headers={"X-Repo-Commit": commit.sha})


def refs(site: Site, request: Request, kind: str, repo: str) -> Answer:
    found = site.repo(request, kind, repo)
    with site.store.lock:
        table = sorted(found.refs.items())

    def under(prefix: str, strip: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(strip), "ref": ref, "targetCommit": sha}
            for ref, sha in table
            if ref.startswith(prefix)
        ]

    value: dict[str, Any] = {
        "branches": under("refs/heads/", "refs/heads/"),
        "tags": under("refs/tags/", "refs/tags/"),
        "converts": [],
    }
    if request.flag("include_prs"):
        value["pullRequests"] = under("refs/pr/", "refs/")
    return json_answer(value)


def commits(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    found, commit = site.revision(request, kind, repo, revision)
    history = [commit]
    while history[-1].parent is not None:
        history.append(found.commits[history[-1].parent])
    return json_answer(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.message,
                "date": cards.timestamp(commit.date),
                "authors": [{"user": commit.author}],
            }
            for commit in history
        ]
    )


def create_branch(site: Site, request: Request, kind: str, repo: str, name: str) -> Answer:
    start = request.json().get("startingPoint") or "main"
    return add_ref(site, site.writable(request, kind, repo), f"refs/heads/{name}", start)


def create_tag(site: Site, request: Request, kind: str, repo: str, revision: str) -> Answer:
    name = request.json()["tag"]
    return add_ref(site, site.writable(request, kind, repo), f"refs/tags/{name}", revision)


def add_ref(site: Site, repo: Repo, ref: str, revision: str) -> Answer:
    with site.store.lock:
        if ref in repo.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        repo.refs[ref] = repo.find(revision).sha
    return json_answer({})


def delete_branch(site: Site, request: Request, kind: str, repo: str, name: str) -> Answer:
    return drop_ref(site, site.writable(request, kind, repo), f"refs/heads/{name}")


def delete_tag(site: Site, request: Request, kind: str, repo: str, name: str) -> Answer:
    return drop_ref(site, site.writable(request, kind, repo), f"refs/tags/{name}")


def drop_ref(site: Site, repo: Repo, ref: str) -> Answer:
    with site.store.lock:
        if repo.refs.pop(ref, None) is None:
            raise Refusal(404, f"No such reference: {ref}", "RevisionNotFound")
    return json_answer({})


def agent_harnesses(site: Site, request: Request) -> Answer:
    """Asked by a client that wants to know in which tool it runs. It knows of none after this."""
    return json_answer({"standardEnvVars": [], "harnesses": {}})


def telemetry(site: Site, request: Request) -> Answer:
    return json_answer({})


def web_url(site: Site, kind: str, repo_id: str) -> str:
    prefix = "" if kind == "models" else f"{kind}/"
    return f"{site.endpoint}/{prefix}{repo_id}"


def visible(repo: Repo, request: Request) -> bool:
    return not repo.private or may_read(repo, request.user)
