"""`GET /api/models`: filter, search, sort, page.

Knows the query as the client sends it. Ranking by relevance, parameter counts and inference are not known.
"""

from __future__ import annotations

from typing import Any

from hubserver import cards
from hubserver.api import visible
from hubserver.site import Site
from hubserver.tree import paged
from hubserver.wire import Answer, Refusal, Request, json_answer

BRIEF: tuple[str, ...] = ("_id", "id", "modelId", "private", "likes", "downloads", "trendingScore")
BRIEF += ("createdAt", "tags", "library_name", "pipeline_tag")
FULL = (*BRIEF, "author", "sha", "lastModified", "gated", "disabled", "siblings")
SORTS = ("likes", "downloads", "lastModified", "createdAt", "trendingScore")


def list_repos(site: Site, request: Request, kind: str) -> Answer:
    with site.store.lock:
        repos = [repo for repo in site.store.repos.values() if repo.kind == kind and visible(repo, request)]
        records = [cards.record(repo, repo.find("main")) for repo in repos]
    found = [record for record in records if matches(record, request)]
    found = ordered(found, request.first("sort") or "trendingScore", request.first("direction", "-1"))
    page, link = paged(site, request, found)
    return json_answer([shown(record, request) for record in page], headers=link)


def matches(record: dict[str, Any], request: Request) -> bool:
    have = {tag.lower() for tag in record["tags"]}
    wanted = [part for value in request.query.get("filter", []) for part in value.split(",")]
    wanted += request.query.get("pipeline_tag", [])
    if not all(tag.lower() in have for tag in wanted):
        return False
    if not all(word.lower() in record["id"].lower() for word in request.query.get("search", [])):
        return False
    if request.first("author") and record["author"].lower() != request.first("author").lower():
        return False
    return "gated" not in request.query or bool(record["gated"]) == request.flag("gated")


def ordered(records: list[dict[str, Any]], sort: str, direction: str) -> list[dict[str, Any]]:
    if sort not in SORTS:
        raise Refusal(400, f"Invalid sort parameter: {sort}")
    by_name = sorted(records, key=lambda record: str(record["id"]))
    return sorted(by_name, key=lambda record: record[sort], reverse=direction != "1")


def shown(record: dict[str, Any], request: Request) -> dict[str, Any]:
    expand = request.query.get("expand", []) + request.query.get("expand[]", [])
    names = ("_id", "id", *expand) if expand else FULL if request.flag("full") else BRIEF
    if request.flag("cardData"):
        names = (*names, "cardData")
    return {name: record[name] for name in names if name in record}
