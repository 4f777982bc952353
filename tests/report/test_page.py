"""The page as a whole: everything that is known is on it, nothing is fetched, nothing from outside is markup."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dopkit.report import FolderData, render, style
from dopkit.report.scales import SHADES

SHAPES = {
    "layers.0.attn.q_proj.weight": (4, 8),
    "layers.1.attn.q_proj.weight": (8, 8),
    "layers.0.mlp.fc1.weight": (8, 4),
}
ADDRESSES = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "background")


@pytest.fixture
def folder(receipt: dict[str, Any], evaluation: dict[str, Any], relations: dict[str, Any]) -> FolderData:
    receipt |= {"evaluation": evaluation, "relations": relations}
    return FolderData("pair", receipt, "merge_method: dop\n", SHAPES)


def titles(page: Any) -> list[str]:
    return [heading.text for heading in page.find("h2")]


def matrix(page: Any) -> dict[str, list[str]]:
    table = page.find("table", class_="heat")[0]
    rows = table.find("tr")
    return {row.find("th")[0].text: [cell.text for cell in row.find("td")] for row in rows[1:]}


def test_sections_come_in_reading_order(folder: FolderData, parse: Any) -> None:
    page = parse(render(folder))
    assert page.find("title")[0].text == "pair: merge report"
    assert titles(page) == [
        "What was merged", "Accuracy", "Task vectors", "Layer by layer", "The run", "Notes and what was left out",
        "Recipe",
    ]  # fmt: skip
    lede = page.find("p", class_="lede")[0].text
    assert lede == (
        "2 models merged onto org/base by dop (exact), in this order: a, b. "
        "Mean accuracy over 2 tasks is 87.7%, backward transfer −5.6 points."
    )


def test_every_score_stands_in_its_cell(folder: FolderData, parse: Any) -> None:
    page = parse(render(folder))
    assert [head.text for head in page.find("table", class_="heat")[0].find("tr")[0].find("th")] == [
        "", "task-a", "task-b", "mean", "text, perplexity",
    ]  # fmt: skip
    assert matrix(page) == {
        "base": ["11.1", "22.2", "16.7", "12.5"],
        "expert a": ["95.5", "19.9", "57.7", "–"],
        "expert b": ["17.7", "93.3", "55.5", "–"],
        "step 1 · a": ["94.4", "", "94.4", "11.5"],
        "step 2 · b": ["88.8", "86.6", "87.7", "10.5"],
    }
    cells = page.find("table", class_="heat")[0].find("td")
    assert [cell.text for cell in cells if cell.has("class_", "strong")] == ["94.4", "86.6"]  # just learned
    shades = {cell.text: cell.attributes["class"].split()[0] for cell in cells if cell.attributes.get("class")}
    # The scale goes from 10 to 100 percent; of perplexity the least is the best.
    assert (shades["11.1"], shades["95.5"]) == ("h0", "h9")
    assert (shades["12.5"], shades["10.5"]) == ("h0", "h9")
    assert {"ACC: a mean.", "BWT: a change."} <= {item.text for item in page.find("li")}


def test_forgetting_is_drawn(folder: FolderData, parse: Any) -> None:
    page = parse(render(folder))
    said = [dot.text for dot in page.find("circle")]
    assert {"task-a, step 1: 0", "task-a, step 2: 5.6", "merged, step 1: 94.4", "merged, step 2: 87.7",
            "each task's own expert, step 2: 94.4", "base, step 2: 16.7"} <= set(said)  # fmt: skip


def test_models_are_linked_at_their_commits(folder: FolderData, parse: Any, receipt: dict[str, Any]) -> None:
    page = parse(render(folder))
    links = {link.text: link.attributes["href"] for link in page.find("a")}
    assert links["org/vit-a"] == "https://huggingface.co/org/vit-a/tree/" + "a" * 40
    receipt["models"][0] |= {"model": "../secret/place/mine", "identity": "sampled:1"}
    page = parse(render(FolderData("pair", receipt)))
    assert "org/vit-a" not in {link.text for link in page.find("a")}
    assert "secret" not in page.text and "local folder" in page.text  # no path of anybody's machine


def test_layers(folder: FolderData, parse: Any) -> None:
    page = parse(render(folder))
    said = {dot.text for dot in page.find("circle")}
    assert {"stability after, layer 1: 0.00500", "plasticity before, layer 0: 0.00400"} <= said
    tables = {table.find("th")[0].text: table for table in page.find("table")}
    step = [cell.text for cell in tables["step"].find("tr")[1].find("td")]
    assert step == ["b", "3", "0.44 → 0.056", "0.44 → 0.33", "25.0%", "0.8", "83.3%", "41.7%"]
    assert "0.8 for every matrix at every step." in page.text
    cells = [cell.text for cell in page.find("rect")]
    assert {"q, layer 0: 50.0%", "q, layer 1: 25.0%", "mlp up, layer 0: 50.0%"} <= set(cells)  # ranks
    assert "q, layer 1: 250 ms" in cells


def test_nothing_is_fetched(folder: FolderData, parse: Any) -> None:
    text = render(folder)
    page = parse(text)
    for node in page.everything():
        assert node.name not in {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video"}
        assert not [name for name in node.attributes if name.startswith("on")]
        for name in ADDRESSES:
            if (value := node.attributes.get(name)) is not None:
                assert node.name == "a" and value.startswith("https://huggingface.co/"), f"<{node.name} {name}={value}>"
    assert "url(" not in text and "@import" not in text


def test_a_reader_who_sees_nothing_is_told(folder: FolderData, parse: Any) -> None:
    page = parse(render(folder))
    for svg in page.find("svg"):
        assert svg.attributes.get("aria-hidden") == "true" or svg.attributes["aria-label"]
    for table in page.find("table"):
        heads = table.find("th")
        assert {head.attributes.get("scope") for head in heads} == {"col", "row"}
    levels = [int(node.name[1]) for node in page.everything() if re.fullmatch("h[1-6]", node.name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert page.find("html")[0].attributes["lang"] == "en"


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & \u202e\x00"


def poisoned(value: Any) -> Any:
    """Every string and every key that is free replaced by a hostile one."""
    free = {"method", "model", "rule", "device", "label", "name", "why", "tensor", "finite", "dopkit", "solver"}
    if isinstance(value, dict):
        return {
            (f"{key}{HOSTILE}" if key.startswith(("layers.", "task-", "text")) else key): (
                f"{one}{HOSTILE}" if key in free and isinstance(one, str) else poisoned(one)
            )
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [poisoned(one) if isinstance(one, dict | list) else f"{one}{HOSTILE}" if isinstance(one, str) else one
                for one in value]  # fmt: skip
    return value


def test_what_comes_from_outside_stays_text(folder: FolderData, parse: Any) -> None:
    receipt = poisoned(dict(folder.receipt))
    shapes = {f"{name}{HOSTILE}": shape for name, shape in SHAPES.items()}
    clean, dirty = (
        parse(render(one)) for one in (folder, FolderData(f"pair{HOSTILE}", receipt, f"recipe{HOSTILE}", shapes))
    )
    assert dirty.text.count("<script>alert(1)</script>") > 30
    assert {node.name for node in dirty.everything()} <= {node.name for node in clean.everything()}
    assert not [node for node in dirty.everything() if {"onerror", "src"} & node.attributes.keys()]
    assert "\x00" not in dirty.text and "\u202e" not in dirty.text


def test_sections_without_data(receipt: dict[str, Any], parse: Any) -> None:
    page = parse(render(FolderData("pair", receipt)))
    assert titles(page) == ["What was merged", "Accuracy", "Task vectors", "Layer by layer", "The run",
                            "Notes and what was left out"]  # fmt: skip
    commands = {code.text for code in page.find("code")}
    assert {"dopkit eval FOLDER --tasks tasks.yaml", "dopkit inspect RECIPE"} <= commands
    assert "The weight files are not here to tell the full ranks." in page.text
    assert page.find("p", class_="lede")[0].text == "2 models merged onto org/base by dop (exact), in this order: a, b."


def test_a_plain_average(receipt: dict[str, Any], parse: Any) -> None:
    for tensor in receipt["tensors"].values():
        tensor.pop("steps", None)
    receipt |= {"method": "average", "parameters": {}, "base": None, "notes": [], "dropped": []}
    page = parse(render(FolderData("mean", receipt)))
    assert titles(page) == ["What was merged", "Accuracy", "Task vectors", "The run"]
    assert page.find("p", class_="lede")[0].text == "2 models merged by average, in this order: a, b."


def test_one_model_scored_alone(receipt: dict[str, Any], evaluation: dict[str, Any], parse: Any) -> None:
    evaluation["rows"] = [evaluation["rows"][-1] | {"label": "pair", "kind": "model", "step": None, "model": None}]
    page = parse(render(FolderData("pair", receipt | {"evaluation": evaluation | {"bwt": None}})))
    assert matrix(page) == {"pair": ["88.8", "86.6", "87.7", "10.5"]}
    assert "dopkit run --save-steps" in page.text  # what would draw the steps
    assert not page.find("polyline", class_="merged")


def test_weights_that_differ_are_drawn(folder: FolderData, parse: Any) -> None:
    for index, tensor in enumerate(folder.receipt["tensors"].values()):
        for step in tensor.get("steps", []):
            step["weight"] = 0.5 + index / 10
    page = parse(render(folder))
    cells = {cell.text for cell in page.find("rect")}
    assert {"q, layer 0: 0.500", "q, layer 1: 0.600", "mlp up, layer 0: 0.700"} <= cells
    by_step = parse(render(FolderData("x", with_two_steps(dict(folder.receipt)))))
    assert "step 2: 0.5; step 3: 0.667, for every matrix." in by_step.text


def with_two_steps(receipt: dict[str, Any]) -> dict[str, Any]:
    for tensor in receipt["tensors"].values():
        if "steps" in tensor:
            first = tensor["steps"][0]
            tensor["steps"] = [first | {"weight": 1 / 2}, first | {"step": 3, "weight": 2 / 3}]
    return receipt


def test_a_large_model_stays_readable(receipt: dict[str, Any], parse: Any) -> None:
    """80 layers of 7 parts over 19 steps: panels a part, tables a step or a part, never a row a matrix."""
    matrix = receipt["tensors"]["layers.0.attn.q_proj.weight"]
    steps = [matrix["steps"][0] | {"step": step} for step in range(2, 21)]
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(80) for part in parts]
    receipt["tensors"] = {name: matrix | {"steps": steps} for name in names}
    text = render(FolderData("large", receipt, shapes=dict.fromkeys(names, (16, 8))))
    page = parse(text)
    panels = page.find("div", class_="panels")[0].find("figcaption")
    assert [panel.text for panel in panels] == ["q", "k", "v", "o", "mlp gate", "mlp up", "mlp down"]
    assert max(len(table.find("tr")) for table in page.find("table")) <= 20
    assert len(page.find("text")) < 500 and len(text) < 1_000_000


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_contrast(theme: style.Theme) -> None:
    """WCAG 2 AA: 4.5 for text, 3 for lines; and ramps go one way, so that they read in grey."""
    for step, ramps in enumerate(zip(theme.ramp, theme.negative, strict=True)):
        for colour in ramps:
            assert contrast(colour, theme.near if step < theme.turn else theme.far) >= 4.5, colour
    for name in ("ink", "quiet", "link", "orange", "blue"):
        assert contrast(theme.names[name], theme.names["page"]) >= 4.5, name
    assert contrast(theme.names["grey"], theme.names["page"]) >= 3
    assert contrast(theme.names["quiet"], theme.names["faint"]) >= 4.5
    for ramp in (theme.ramp, theme.negative):
        assert len(ramp) == SHADES
        light = [luminance(colour) for colour in ramp]
        assert light == sorted(light, reverse=theme is style.LIGHT)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_mean_forgetting_ends_at_bwt(receipt: dict[str, Any], parse: Any) -> None:
    scores = [
        {"a": 0.9},
        {"a": 0.8, "b": 0.7},
        {"a": 0.75, "b": 0.72, "c": 0.6},
        {"a": 0.7, "b": 0.6, "c": 0.5, "d": 1},
    ]
    rows = [
        {"label": f"step {step}", "kind": "step", "step": step, "model": "abcd"[step - 1],
         "scores": {name: {"value": value} for name, value in found.items()}}
        for step, found in enumerate(scores, 1)
    ]  # fmt: skip
    tasks = [{"name": name, "metric": "accuracy", "model": name} for name in "abcd"]
    page = parse(render(FolderData("x", receipt | {"evaluation": {"tasks": tasks, "rows": rows}})))
    means = [dot.text for dot in page.find("circle") if dot.text.startswith("mean, ")]
    assert means == ["mean, step 2: 10", "mean, step 3: 6.5", "mean, step 4: 13.3"]  # (20 + 10 + 10) / 3
