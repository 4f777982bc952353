"""Points the real client at a hub: a child process by its environment, this process by what is patched.

The client reads its environment once, at import, so patching this process means patching
every name that was made from it then. Knows nothing of the server but its two addresses.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import pytest

# The client's own LFS upload warns like this (huggingface_hub 2.4 on httpx2). A test that uploads
# and turns warnings into errors needs `pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)`.
CLIENT_WARNING = "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# of the surroundings, that which would lead the client elsewhere
FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "DISABLE_TELEMETRY")


class Endpoints(Protocol):
    endpoint: str


def hub_settings(hub: Endpoints, home: Path, token: str | None, xet: bool) -> dict[str, str]:
    """The variables themselves, for a client that has nothing but the hub."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "HF_XET_CACHE": str(home / "xet"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return settings | ({"HF_TOKEN": token} if token else {})


def hub_environment(
    hub: Endpoints, cache_dir: Path | str, token: str | None = None, *, xet: bool = False
) -> dict[str, str]:
    """The whole environment for a child process: this one's, without its Hub and proxy settings, and ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name.upper() not in PROXIES
    }
    return kept | hub_settings(hub, Path(cache_dir), token, xet)


def connect(
    monkeypatch: pytest.MonkeyPatch,
    hub: Endpoints,
    cache_dir: Path | str,
    token: str | None = None,
    *,
    xet: bool = False,
) -> None:
    """Make the client in this process talk to `hub`, with its caches and tokens under `cache_dir`."""
    home = Path(cache_dir)
    if any(name.upper() in PROXIES for name in os.environ):
        from huggingface_hub.utils._http import close_session

        close_session()  # it may have been told of the proxy
    for name in list(os.environ):
        if name.startswith(FOREIGN) or name.upper() in PROXIES:
            monkeypatch.delenv(name)
    for name, value in hub_settings(hub, home, token, xet).items():
        monkeypatch.setenv(name, value)
    patch_constants(monkeypatch, hub.endpoint, home, xet)
    patch_copies(monkeypatch, hub.endpoint, home)


def patch_constants(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path, xet: bool) -> None:
    from huggingface_hub import constants

    hosts = constants.HF_URL_HOSTS | {urlsplit(endpoint).hostname or ""}
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": hosts,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HUGGINGFACE_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "CHECK_FOR_UPDATE_DONE_PATH": str(home / ".check_for_update_done"),
        "CHECK_FOR_SKILL_UPDATE_DONE_PATH": str(home / ".check_for_skill_update_done"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": not xet,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_UPDATE_CHECK": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)


def patch_copies(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """What other modules made of the constants when they were imported."""
    from huggingface_hub import hf_api
    from huggingface_hub.utils import _cache_assets, _cache_manager, _git_credential, _http

    origin = _http._url_origin(endpoint)
    monkeypatch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {origin})
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)  # behind whoami, model_info and the like
    monkeypatch.setattr(hf_api.api, "_whoami_cache", {})
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(home / "assets"))
    monkeypatch.setattr(_git_credential, "ENDPOINT", endpoint)
    bars = import_module("huggingface_hub.utils.tqdm")  # the name in the package is the class
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    modules = str(home / "modules")
    for module, name, value in (
        ("huggingface_hub.cli.auth", "ENDPOINT", endpoint),
        ("transformers.utils", "HF_MODULES_CACHE", modules),
        ("transformers.utils.hub", "HF_MODULES_CACHE", modules),
        ("transformers.dynamic_module_utils", "HF_MODULES_CACHE", modules),
    ):
        if module in sys.modules:  # not loaded yet: it will read the right value when it is
            monkeypatch.setattr(sys.modules[module], name, value)
    files = sys.modules.get("huggingface_hub.hf_file_system")
    if files is not None:
        files.HfFileSystem.clear_instance_cache()  # they remember listings, and ports come back
        monkeypatch.setattr(files, "hffs", files.HfFileSystem(endpoint=endpoint))
