"""Peak memory and wall time of merging a synthetic Llama of about 340 M parameters in bfloat16.

    python docs/benchmarks/memory.py [--json results.json] [--folder DIR] [--only average]

Each merge runs in a process of its own. Memory is the kernel's count of the most that was resident at once, less what
the interpreter held after all imports and after looking at the headers; it is reported as a multiple of the largest
tensor in float32 (embedding and head, 32000 x 1024). With memory to spare a merge has as many parts of tensors in hand
as torch has threads; a limit at what the plan says is for one. The page cache is warm: the models were just written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH, INNER, LAYERS = 32000, 1024, 2816, 22
LARGEST = VOCABULARY * WIDTH * 4  # bytes in float32
CASES = (
    # name, method, parameters, number of experts, whether at the plan's limit
    ("average, 3 experts", "average", {}, 3, False),
    ("average, 12 experts", "average", {}, 12, False),
    ("average, 12 experts, limited", "average", {}, 12, True),
    ("dop exact, 3 experts", "dop", {}, 3, False),
)


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    }  # fmt: skip
    result = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    result |= {f"model.layers.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in layer.items()}
    return result | {"lm_head.weight": (VOCABULARY, WIDTH)}


def make_models(folder: Path) -> int:
    """A base and three experts whose task vectors are 2% of the weights; returns the number of parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=16, num_key_value_heads=16, architectures=["LlamaForCausalLM"], dtype="bfloat16",
        tie_word_embeddings=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    for model in ("base", "e0", "e1", "e2"):
        tensors = {
            name: (tensor if model == "base" else tensor + 4e-4 * torch.randn(tensor.shape, generator=generator))
            for name, tensor in base.items()
        }
        (folder / model).mkdir(parents=True)
        config.save_pretrained(folder / model)
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / model / "model.safetensors")
    for number in range(3, 12):  # other names for the same files: as many models to read, no more disk
        shutil.copytree(folder / f"e{number % 3}", folder / f"e{number}", copy_function=os.link)
    return sum(tensor.numel() for tensor in base.values())


def merge(folder: Path, method: str, parameters: dict[str, Any], experts: int, limited: bool) -> dict[str, float]:
    """One merge in this process: seconds, and peak bytes above what was resident before it."""
    os.environ["DOPKIT_CACHE"] = ""  # so that all libraries are imported by the plan
    import yaml

    import dopkit
    from dopkit.measure import peak_resident_bytes, resident_bytes

    models = [f"./e{number}" for number in range(experts)]
    recipe = {"base_model": "./base", "merge_method": method, "models": models, "parameters": parameters}
    loaded = dopkit.parse_recipe(yaml.safe_dump(recipe), folder=folder)
    plan = dopkit.plan(loaded, folder / "out")  # imports everything
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start = time.monotonic()
    planned = plan.memory_bytes - plan.program_bytes
    dopkit.run(loaded, folder / "out", dopkit.Options(max_memory=before + planned if limited else None))
    seconds = time.monotonic() - start
    return {"seconds": seconds, "peak_bytes": peak_resident_bytes() - before, "planned_bytes": planned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="where to make the models (3 GB; default: a temporary folder)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # run one case in this process
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(merge(arguments.folder, *CASES[int(arguments.one)][1:])))
        return
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        print(f"{make_models(folder) / 1e6:.0f} M parameters, largest tensor {LARGEST / 1e6:.0f} MB in float32")
        results = []
        for index, (name, *_) in enumerate(CASES):
            if arguments.only not in name:
                continue
            command = [sys.executable, __file__, "--one", str(index), "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append({"case": name, **json.loads(done.stdout.splitlines()[-1])})
            shutil.rmtree(folder / "out")
            show(results[-1])
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    peak, planned = result["peak_bytes"], result["planned_bytes"]
    print(
        f"{result['case']:42} {result['seconds']:7.1f} s   peak {peak / 1e6:6.0f} MB = {peak / LARGEST:4.1f} x largest"
        f"   (plan said {planned / 1e6:.0f} MB)"
    )


if __name__ == "__main__":
    main()
