"""The structure itself: who may import whom, what loads torch, how long a file gets, and that every option is read."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dopkit
from dopkit import methods

PACKAGE = Path(dopkit.__file__).parent

DESIGN = PACKAGE.parent / "docs" / "design.md"


def read_table() -> dict[int, list[str]]:
    """The table of docs/design.md: floor to modules."""
    floors: dict[int, list[str]] = {0: ["__init__"]}
    for number, names in re.findall(r"^\| (\d+)(?: T)? \| (`[^|]*) \|", DESIGN.read_text(), re.MULTILINE):
        floors.setdefault(int(number), []).extend(names.replace("`", "").split())
    return floors


FLOORS = read_table()
# The only importers of a library.
ONLY = {
    "huggingface_hub": ["hub"],
    "transformers": ["skeleton", "loading"],
    "accelerate": ["device", "processes"],
    "ray": ["cluster"],
    "click": ["cli"],
    "rich": ["cli"],
}
LIGHT = [
    "errors",
    "units",
    "refs",
    "specs",
    "roles",
    "progress",
    "layout",
    "methods",
    "recipe.reading",
    "planning.building",
    "cli",
]


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def room(module: str) -> str:
    """The entry of the table that a module belongs to: itself, or the package around it."""
    known = {name for names in FLOORS.values() for name in names}
    while module not in known:
        assert "." in module, f"{module} stands on no floor: add it to the table"
        module = module.rpartition(".")[0]
    return module


def floor(module: str) -> int:
    return next(number for number, names in FLOORS.items() if room(module) in names)


@functools.cache
def imports(path: Path) -> list[str]:
    """Every module that a file imports anywhere, but for type checking only."""
    return list(imported_by(path))


def imported_by(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    known = modules()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}".removeprefix("dopkit.")
                yield f"dopkit.{inside}" if node.module.startswith("dopkit") and inside in known else node.module


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_imports_go_downwards(module: str) -> None:
    for imported in imports(modules()[module]):
        if not imported.startswith("dopkit"):
            continue
        other = imported.removeprefix("dopkit").lstrip(".") or "__init__"
        if room(other) == room(module):
            continue
        assert floor(other) < floor(module), f"{module} (floor {floor(module)}) imports {other} (floor {floor(other)})"


@pytest.mark.parametrize("module", modules())
def test_a_library_has_one_importer(module: str) -> None:
    for imported in imports(modules()[module]):
        library = imported.partition(".")[0]
        if library in ONLY:
            assert room(module) in ONLY[library], (
                f"{module} imports {library}; that is the business of {' and '.join(ONLY[library])}"
            )


def test_light_modules_load_nothing_heavy() -> None:
    """`--help`, `check` and `methods` answer at once: no torch, no transformers, no Hub client."""
    code = f"import sys; [__import__('dopkit.' + name) for name in {LIGHT}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "transformers", "huggingface_hub", "accelerate", "numpy"} & set(loaded)


def test_help_loads_next_to_nothing() -> None:
    code = "import sys; from dopkit.cli import main; main(['--help'], standalone_mode=False); "
    code += "print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr.split()
    assert not {"torch", "transformers", "huggingface_hub", "pydantic", "rich", "yaml"} & set(loaded)


@pytest.mark.parametrize("module", modules())
def test_a_file_is_read_in_one_sitting(module: str) -> None:
    assert len(modules()[module].read_text().splitlines()) <= 320


@pytest.mark.parametrize("method", methods.BUILTIN)
def test_every_parameter_is_read(method: str) -> None:
    """An option that nobody reads is a lie: each is used somewhere in the methods' own code."""
    code = "".join(path.read_text() for path in (PACKAGE / "methods").glob("*.py"))
    for name in methods.BUILTIN[method].parameters.model_fields:
        assert f".{name}" in code, f"{method} declares {name} and never reads it"


def test_threads_wait_patiently() -> None:
    """dopkit asks OpenMP for sleeping threads before torch is loaded, unless the user asked for something else."""
    code = "import dopkit, os; print(os.environ['OMP_WAIT_POLICY'])"
    for given, found in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        done = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True)
        assert done.stdout.strip() == found
