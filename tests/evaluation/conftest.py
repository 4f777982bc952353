"""A merge with steps and heads, made once for the tests that only read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import scored


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``scored.make_merge``; not to be written to."""
    return scored.make_merge(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "root"))
