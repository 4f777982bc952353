"""Git LFS uploads: the batch that says where to send, the objects and parts that arrive, and verify.

Streams every object to a file in the hub's folder. Knows nothing of commits.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from math import ceil
from typing import Any

from hubserver.site import Site, Upload
from hubserver.store import Repo, lfs_blob
from hubserver.wire import Answer, Refusal, Request, json_answer

CHUNK = 1 << 20


def batch(site: Site, request: Request, repo: str, prefix: str | None = None) -> Answer:
    """For each object: nothing if this repo has it, else one address, or one per part."""
    kind = prefix.rstrip("/") if prefix else "models"
    # anyone who may open a pull request may send objects for it
    found = site.writable(request, kind, repo, as_pull_request=True)
    objects = []
    for item in request.json()["objects"]:
        oid, size = item["oid"], item["size"]
        value: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in found.objects:
            value["actions"] = actions(site, found, oid, size)
        objects.append(value)
    multipart = any(item["size"] > site.settings.multipart_over for item in objects)
    return json_answer({"transfer": "multipart" if multipart else "basic", "objects": objects})


def actions(site: Site, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    upload = new_upload(site, repo, oid, size)
    verify = {"href": f"{site.endpoint}/lfs-verify/{repo.kind}/{repo.id}"}
    if size <= site.settings.multipart_over:
        return {"upload": {"href": put_url(site, f"/upload/{upload}")}, "verify": verify}
    parts = ceil(size / site.settings.part_size)
    header = {f"{n:05d}": put_url(site, f"/upload/{upload}/{n}") for n in range(1, parts + 1)}
    header["chunk_size"] = str(site.settings.part_size)
    href = site.endpoint + site.signer.sign(f"/complete-multipart/{upload}")
    return {"upload": {"href": href, "header": header}, "verify": verify}


def new_upload(site: Site, repo: Repo, oid: str, size: int) -> str:
    name = secrets.token_hex(8)
    path = site.store.folder / f"{oid}.{name}"
    site.uploads[name] = Upload(repo, oid, size, site.settings.part_size, path, {})
    return name


def put_url(site: Site, path: str) -> str:
    return site.storage_endpoint + site.signer.sign(path)


def under_way(site: Site, name: str) -> Upload:
    if name not in site.uploads:
        raise Refusal(404, "NoSuchUpload")
    return site.uploads[name]


def put_object(site: Site, request: Request, upload: str) -> Answer:
    """The whole object. Written beside, hashed on the way, kept only if it is what was announced."""
    site.signer.check(request)
    asked = under_way(site, upload)
    digest, size = hashlib.sha256(), 0
    draft = asked.path.with_suffix(f".{secrets.token_hex(4)}")
    with draft.open("wb") as stream:
        while chunk := request.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            stream.write(chunk)
    if (digest.hexdigest(), size) != (asked.sha256, asked.size):
        draft.unlink()
        raise Refusal(400, f"BadDigest: {size} bytes with sha256 {digest.hexdigest()}")
    os.replace(draft, asked.path)
    keep(site, asked)
    return Answer(200, b"", {"ETag": f'"{asked.sha256}"'})


def put_part(site: Site, request: Request, upload: str, part: str) -> Answer:
    site.signer.check(request)
    asked, number = under_way(site, upload), int(part)
    digest, position = hashlib.md5(usedforsecurity=False), (number - 1) * asked.part_size
    target = os.open(asked.path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while chunk := request.read(CHUNK):
            digest.update(chunk)
            os.pwrite(target, chunk, position)
            position += len(chunk)
    finally:
        os.close(target)
    asked.etags[number] = f'"{digest.hexdigest()}"'
    return Answer(200, b"", {"ETag": asked.etags[number]})


def complete(site: Site, request: Request, upload: str) -> Answer:
    """Ends a multipart upload. The client calls this without its token: the address is signed."""
    site.signer.check(request)
    asked, body = under_way(site, upload), request.json()
    given = {part["partNumber"]: part["etag"] for part in body["parts"]}
    if body["oid"] != asked.sha256 or given != asked.etags:
        raise Refusal(400, "InvalidPart: the parts named are not the parts received")
    with asked.path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != asked.sha256 or asked.path.stat().st_size != asked.size:
        raise Refusal(400, f"BadDigest: {asked.path.stat().st_size} bytes with sha256 {sha256}")
    keep(site, asked)
    return json_answer({"location": f"/{asked.sha256}"})


def keep(site: Site, upload: Upload) -> None:
    with site.store.lock:
        upload.repo.objects.setdefault(upload.sha256, lfs_blob(upload.path, upload.sha256))


def verify(site: Site, request: Request, kind: str, repo: str) -> Answer:
    found, asked = site.writable(request, kind, repo, as_pull_request=True), request.json()
    blob = found.objects.get(asked["oid"])
    if blob is None or blob.size != asked["size"]:
        raise Refusal(404, f"Object {asked['oid']} of {asked['size']} bytes was not received")
    return json_answer({"message": "Verified"})
