"""How these files were made, once, with mergekit 0.1.5 from PyPI on the CPU (torch 2.13.0). No test runs this.

    python -m venv v && v/bin/pip install torch==2.13.0 mergekit==0.1.5
    PYTHONPATH=tests v/bin/python tests/golden/tokenizers/make.py

The models are those of tests/wordy.py, made anew. CASE.json holds, of what mergekit wrote for each of the merged models
alone, the first number of the row of every token, in the embedding and in the head, and of the rows without a token.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import tiny
import wordy
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

HERE = Path(__file__).parent


def rows(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Token, or the number of a row without one, to its first numbers in the embedding and in the head."""
    tensors, ids = tiny.read(folder), wordy.ids(folder)
    tokens = {number: token for token, number in ids.items()}
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {
        tokens.get(row, str(row)): [float(tensors[name][row, 0]) for name in names]
        for row in range(len(tensors[names[0]]))
    }


def merged(root: Path, case: dict, alone: str) -> dict:
    """What is written with all weight on one model."""
    weights = {name: float(name == alone) for name in case["models"]}
    recipe = {
        "merge_method": "linear",
        "models": [{"model": f"{root}/{name}", "parameters": {"weight": own}} for name, own in weights.items()],
        **yaml.safe_load(yaml.safe_dump(case["recipe"]).replace("./", f"{root}/")),
    }
    if not case.get("no_base"):
        recipe["base_model"] = f"{root}/base"
    options = MergeOptions(copy_tokenizer=True, write_model_card=False, random_seed=0, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        run_merge(MergeConfiguration.model_validate(recipe), folder, options)
        return rows(Path(folder))


if __name__ == "__main__":
    for name, case in yaml.safe_load((HERE / "cases.yaml").read_text()).items():
        with tempfile.TemporaryDirectory() as root:
            (wordy.make_others if case.get("others") else wordy.make_three)(Path(root))
            found = {model: merged(Path(root), case, model) for model in case["models"]}
        (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
