"""Throwaway environments for the peers, each made by pip from PyPI when it is first needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# One version of the arithmetic for everyone: a comparison is of programs, not of releases of torch.
CONSTRAINTS = ("torch==2.13.0",)
PEERS = {
    "mergekit": ("mergekit==0.1.5",),
    "fusionbench": ("fusion_bench==0.2.33", "transformers<5", "datasets<4", "huggingface_hub<1"),
}
_DONE = "installed"


def python_of(peer: str, folder: Path, given: str | None = None) -> str:
    """The interpreter of a peer's environment: ``given``, or one under ``folder``, made when it is not there."""
    if given:
        return given
    place = folder / peer
    python = place / "bin" / "python"
    if not (place / _DONE).exists():
        print(f"installing {peer} from PyPI into {place}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        constraints = place / "constraints.txt"
        constraints.write_text("\n".join(CONSTRAINTS) + "\n")
        _pip(python, "-c", str(constraints), *PEERS[peer])
        (place / _DONE).touch()
    return str(python)


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """What an interpreter has installed of these packages."""
    code = (
        "import sys\nfrom importlib.metadata import version, PackageNotFoundError\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, version(name))\n"
        "    except PackageNotFoundError: pass\n"
    )
    done = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines())


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
