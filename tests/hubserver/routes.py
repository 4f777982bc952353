"""The routing table: method and path to the function that answers.

Paths are matched as sent, percent-encoded, because a revision may hold an encoded slash
(refs%2Fpr%2F1); the named parts are decoded afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote, unquote, urlencode

from hubserver import api, lfs, push, search, storage, tree, xet
from hubserver.site import Site
from hubserver.wire import Answer, Refusal, Request, json_answer, redirect

REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
OF_KIND = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
PREFIX = r"/(?P<prefix>datasets/|spaces/)?"
REVISION = r"(?P<revision>[^/]+)"
PATH = r"(?P<path>.+)"

HUB: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", r"/api/whoami-v2", api.whoami),
    ("GET", r"/api/(?P<kind>models|datasets|spaces)", search.list_repos),
    ("POST", r"/api/repos/create", api.create_repo),
    ("DELETE", r"/api/repos/delete", api.delete_repo),
    ("POST", r"/api/repos/move", api.move_repo),
    ("POST", r"/api/validate-yaml", api.validate_yaml),
    ("GET", r"/api/agent-harnesses", api.agent_harnesses),
    ("GET", r"/api/telemetry/.*", api.telemetry),
    (
        "GET",
        rf"/api/resolve-cache/(?P<kind>models|datasets|spaces)/{REPO}/{REVISION}/{PATH}",
        storage.resolve_cache,
    ),
    ("PUT", rf"{OF_KIND}/settings", api.settings),
    ("GET", rf"{OF_KIND}/auth-check", api.auth_check),
    ("GET", rf"{OF_KIND}/auth-check/write", api.auth_check_write),
    ("GET", rf"{OF_KIND}/revision/{REVISION}", api.info),
    ("GET", rf"{OF_KIND}/tree/{REVISION}(?P<folder>(?:/.*)?)", tree.tree),
    ("POST", rf"{OF_KIND}/paths-info/{REVISION}", tree.paths_info),
    ("GET", rf"{OF_KIND}/safetensors-metadata/{PATH}", tree.safetensors_metadata),
    ("GET", rf"{OF_KIND}/refs", api.refs),
    ("GET", rf"{OF_KIND}/commits/{REVISION}", api.commits),
    ("POST", rf"{OF_KIND}/branch/(?P<name>[^/]+)", api.create_branch),
    ("DELETE", rf"{OF_KIND}/branch/(?P<name>[^/]+)", api.delete_branch),
    ("POST", rf"{OF_KIND}/tag/{REVISION}", api.create_tag),
    ("DELETE", rf"{OF_KIND}/tag/(?P<name>[^/]+)", api.delete_tag),
    ("POST", rf"{OF_KIND}/discussions", push.create_discussion),
    ("GET", rf"{OF_KIND}/discussions", push.discussions),
    ("GET", rf"{OF_KIND}/discussions/(?P<num>\d+)", push.discussion),
    ("POST", rf"{OF_KIND}/preupload/{REVISION}", push.preupload),
    ("POST", rf"{OF_KIND}/commit/{REVISION}", push.commit),
    ("GET", rf"{OF_KIND}/xet-write-token/{REVISION}", xet.write_token),
    ("GET", rf"{OF_KIND}/xet-read-token/{REVISION}", xet.read_token),
    ("GET", OF_KIND, api.info),
    ("POST", rf"{PREFIX}{REPO}\.git/info/lfs/objects/batch", lfs.batch),
    ("POST", rf"/lfs-verify/(?P<kind>models|datasets|spaces)/{REPO}", lfs.verify),
    ("POST", r"/complete-multipart/(?P<upload>\w+)", lfs.complete),
    ("GET", rf"{PREFIX}{REPO}/resolve/{REVISION}/{PATH}", storage.resolve),
)

STORAGE: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    (
        "GET",
        rf"/objects/(?P<kind>models|datasets|spaces)/{REPO}/(?P<sha256>[0-9a-f]{{64}})",
        storage.get_object,
    ),
    ("PUT", r"/upload/(?P<upload>\w+)", lfs.put_object),
    ("PUT", r"/upload/(?P<upload>\w+)/(?P<part>\d+)", lfs.put_part),
)

TABLES = {
    host: [(method, re.compile(path), answer) for method, path, answer in table]
    for host, table in (("hub", HUB), ("storage", STORAGE))
}


def dispatch(site: Site, request: Request) -> Answer:
    """The answer to a request, refusals included. HEAD is GET; whoever sends it leaves out the body."""
    method = "GET" if request.method == "HEAD" else request.method
    try:
        if request.host == "hub":
            site.authenticate(request)
        for wanted, pattern, answer in TABLES[request.host]:
            found = pattern.fullmatch(request.path) if wanted == method else None
            if found is not None:
                named = {name: unquote(text) for name, text in found.groupdict().items() if text is not None}
                return moved(site, request, found) or answer(site, request, **named)
    except Refusal as refusal:
        return refusal.answer()
    return json_answer({"error": f"Sorry, we can't find the page {request.path}"}, status=404)


def moved(site: Site, request: Request, found: re.Match[str]) -> Answer | None:
    """A repo that was renamed: the same address under its new name."""
    parts = found.groupdict()
    if "repo" not in parts or request.host == "storage":
        return None
    kind = parts.get("kind") or (parts.get("prefix") or "models").rstrip("/")
    new = site.store.moved.get((kind, unquote(parts["repo"])))
    if new is None:
        return None
    start, stop = found.span("repo")
    location = request.path[:start] + quote(new) + request.path[stop:]
    if request.query:
        location += "?" + urlencode(request.query, doseq=True)
    return redirect(307, location)
