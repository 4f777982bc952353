"""From a folder to report.html: what is read, what wins, what is refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dopkit
from dopkit import report
from dopkit.cli.report import report as command
from dopkit.errors import OutputError


@pytest.fixture
def folder(tmp_path: Path, receipt: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    path = tmp_path / "pair"
    path.mkdir()
    receipt["evaluation"] = evaluation | {"acc": 0.111}  # an older one
    (path / "dopkit_receipt.json").write_text(json.dumps(receipt))
    (path / "dopkit_evaluation.json").write_text(json.dumps(evaluation))
    (path / "dopkit_recipe.yaml").write_text("merge_method: dop  # ünïcode\n", encoding="utf-8")
    header = json.dumps({"layers.0.attn.q_proj.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}})
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(128))
    return path


def test_what_is_read(folder: Path) -> None:
    data = report.read(folder)
    assert data.name == "pair" and data.recipe == "merge_method: dop  # ünïcode\n"
    assert data.shapes == {"layers.0.attn.q_proj.weight": (4, 8)}
    assert data.receipt["evaluation"]["acc"] == 0.877  # the file goes before the receipt
    (folder / "dopkit_evaluation.json").unlink()
    (folder / "dopkit_recipe.yaml").unlink()
    (folder / "model.safetensors").write_bytes(b"damaged")
    data = report.read(folder)
    assert (data.receipt["evaluation"]["acc"], data.recipe, data.shapes) == (0.111, "", {})


def test_written_whole_and_again(folder: Path, tmp_path: Path) -> None:
    target = report.write(folder)
    assert target == folder / "report.html"
    page = target.read_text(encoding="utf-8")
    assert page == report.render(report.read(folder)) and page.startswith("<!doctype html>\n<html lang=")
    target.write_text("an earlier page")
    before = sorted(os.listdir(folder))
    assert report.write(folder).read_text(encoding="utf-8") == page
    assert sorted(os.listdir(folder)) == before  # nothing is left beside it
    assert report.write(folder, tmp_path / "other.html").read_text(encoding="utf-8") == page


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not a merged model"):
        report.write(tmp_path)
    with pytest.raises(OutputError, match="cannot write .*nowhere"):
        report.write(folder, tmp_path / "nowhere" / "report.html")
    (folder / "dopkit_evaluation.json").write_text("{")
    with pytest.raises(OutputError, match="dopkit_evaluation.json is damaged"):
        report.write(folder)
    (folder / "dopkit_evaluation.json").write_text('{"tasks": 3}')
    with pytest.raises(OutputError, match="the evaluation: tasks is missing or not what it should be"):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_a_lone_surrogate_can_be_written(folder: Path) -> None:
    text = (folder / "dopkit_receipt.json").read_text().replace("a note of the plan", "\\ud800")
    (folder / "dopkit_receipt.json").write_text(text)
    assert "<li>?</li>" in report.write(folder).read_text(encoding="utf-8")


def test_the_command_says_where(folder: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(command, [str(folder)])
    assert (result.exit_code, result.output) == (0, f"{folder / 'report.html'}\n"), result.output
    result = CliRunner().invoke(command, [str(folder), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == 0 and (tmp_path / "r.html").is_file()
    assert CliRunner().invoke(command, [str(folder), "-o", str(tmp_path)]).exit_code == 2  # a folder


def test_a_real_merge(llama: Path, tmp_path: Path, make_recipe: Any) -> None:
    dopkit.run(make_recipe(llama, ["e0", "e1", "e2"]), tmp_path / "out")
    page = report.write(tmp_path / "out").read_text(encoding="utf-8")
    assert "3 models merged onto base by dop (exact), in this order: e0, e1, e2." in page
    for part in ("q", "k", "v", "o", "mlp gate", "mlp up", "mlp down"):
        assert f"<figcaption>{part}</figcaption>" in page
    assert "Ranks" not in page and "Rank kept" in page and str(tmp_path) not in page.split("<h2>Recipe")[0]


def test_nothing_heavy_is_loaded(folder: Path) -> None:
    code = "import sys; from pathlib import Path; from dopkit import report; report.write(Path(sys.argv[1])); "
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    assert not {"torch", "transformers", "huggingface_hub", "numpy"} & set(done.stdout.split())
