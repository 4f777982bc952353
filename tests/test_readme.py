"""What README and docs show is true: commands run, recipes check, links lead somewhere, CI does what is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import dopkit
from dopkit.cli import main
from dopkit.evaluation.tasks import parse_tasks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_first_command_comes_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if "dopkit run" in line)
    assert first <= 25


def test_ci_runs_the_lines_that_readme_prints() -> None:
    shown = {
        line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    pip install")
    }
    ran = set((ROOT / ".ci" / "run").read_text().splitlines())
    assert len(shown) == 2
    assert shown <= ran


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_recipes_in_prose_check(page: Path) -> None:
    for text in blocks(page, "yaml"):
        if text.startswith("tasks:"):
            parse_tasks(text)
        else:
            dopkit.parse_recipe(text)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_check(recipe: Path) -> None:
    dopkit.load_recipe(recipe)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_readme_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dopkit command and every Python block, in the order in which README shows them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^    (?:.*&& )?dopkit ([^\n]*?)(?:  +.*)?$", text, re.MULTILINE)
    assert commands[0].startswith("run recipes/quickstart.yaml")
    assert commands[1].startswith("add quickstart")
    ours = (ROOT / "recipes" / "quickstart.yaml").read_text().replace("./quickstart/", "./recipes/quickstart/")
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, f"{command}: {result.output}"
        if command == "init":  # what it writes names models that nobody has
            (tmp_path / "recipe.yaml").write_text(ours)
    for code in blocks(ROOT / "README.md", "python"):
        exec(compile(code, "README.md", "exec"), {})
    tree = re.findall(r"[├└]── (\w[\w.]+\.\w+)", text)
    assert len(tree) == 8
    for name in tree:
        assert (tmp_path / "quickstart" / name).exists(), name
