"""The Hugging Face Hub. The only package of dopkit that imports huggingface_hub.

Knows nothing of tensors or recipes. Tokens, endpoint, cache and offline mode are huggingface_hub's own business
(HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE); no token is printed, logged or written here.
"""

from __future__ import annotations

from dopkit.hub.pushing import Push, not_stored, prepare
from dopkit.hub.ranges import RemoteFile
from dopkit.hub.reading import Listing, cache_disk, cached, fetch, files, listing, pin, pin_dataset, read_range
from dopkit.hub.remote import Outgoing, Remote, Target, holds, look, require_access
from dopkit.hub.search import Found, Order, search
from dopkit.hub.sharing import Shared, share

__all__ = [
    "Found",
    "Listing",
    "Order",
    "Outgoing",
    "Push",
    "Remote",
    "RemoteFile",
    "Shared",
    "Target",
    "cache_disk",
    "cached",
    "fetch",
    "files",
    "holds",
    "listing",
    "not_stored",
    "look",
    "pin",
    "pin_dataset",
    "prepare",
    "read_range",
    "require_access",
    "search",
    "share",
]
