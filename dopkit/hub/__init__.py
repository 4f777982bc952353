"""The Hugging Face Hub. The only package of dopkit that imports huggingface_hub.

Knows nothing of tensors or recipes. Tokens, endpoint, cache and offline mode are huggingface_hub's own business
(HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE); no token is printed, logged or written here.
"""

from __future__ import annotations

from dopkit.hub.reading import cache_disk, cached, fetch, files, pin, read_range

__all__ = ["cache_disk", "cached", "fetch", "files", "pin", "read_range"]
