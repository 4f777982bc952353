"""Disk and memory of a merge that streams from the Hub and is pushed to it, shard by shard.

    python docs/benchmarks/hub.py [--layers 73] [--folder DIR] [--json results.json]

Four synthetic Llamas (base and three experts, 2 GB each in bfloat16 by default) lie on a Hub of the test suite, on
loopback, in this process. A child process merges them with `average`, once from local folders and once with
`--stream --push-to-hub`. Reported are the child's peak memory (the kernel's count), the most that lay on disk in the
output folder and in the cache at any time, and how many bytes the server sent beside those that were needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

MODELS = ("base", "e0", "e1", "e2")
SHARD = 500_000_000

CHILD = """
import json, os, sys, time
import dopkit, dopkit.pipeline, dopkit.cli
from dopkit.measure import peak_resident_bytes
start = time.monotonic()
try:
    dopkit.cli.main(sys.argv[1:], standalone_mode=True)
finally:
    print(json.dumps({"seconds": time.monotonic() - start, "peak_bytes": peak_resident_bytes()}))
"""


def make_model(folder: Path, shapes: dict[str, tuple[int, ...]], layers: int, seed: int) -> None:
    """One model, in shards of 500 MB or less."""
    import torch
    from huggingface_hub import save_torch_state_dict
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    LlamaConfig(
        vocab_size=shapes["lm_head.weight"][0], hidden_size=shapes["lm_head.weight"][1], num_hidden_layers=layers,
        intermediate_size=shapes["model.layers.0.mlp.up_proj.weight"][0], num_attention_heads=16,
        num_key_value_heads=16, architectures=["LlamaForCausalLM"], dtype="bfloat16", tie_word_embeddings=False,
    ).save_pretrained(folder)  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)


class DiskWatch(threading.Thread):
    """Looks at some folders many times a second and keeps the most bytes they held together."""

    def __init__(self, folders: list[Path]) -> None:
        super().__init__(daemon=True)
        self.folders, self.most, self.stop = folders, 0, threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.02):
            self.most = max(self.most, sum(self._used(folder) for folder in self.folders))

    def _used(self, folder: Path) -> int:
        total = 0
        for path in folder.rglob("*"):
            try:
                total += 0 if path.is_symlink() else path.stat().st_blocks * 512
            except OSError:  # gone in the meantime
                continue
        return total


def run_child(arguments: list[str], watched: list[Path], environment: dict[str, str]) -> dict[str, Any]:
    watch = DiskWatch(watched)
    watch.start()
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], env=environment, capture_output=True, text=True)
    watch.stop.set()
    watch.join()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "disk_bytes": watch.most}


def measure(folder: Path) -> dict[str, Any]:
    from hubserver import TestHub, hub_environment

    recipe = folder / "local.yaml"
    recipe.write_text("base_model: ./base\nmerge_method: average\nmodels: [./e0, ./e1, ./e2]\n")
    local = run_child(["run", str(recipe), "-o", str(folder / "out")], [folder / "out.partial"], dict(os.environ))
    streamed_recipe = folder / "streamed.yaml"
    streamed_recipe.write_text("base_model: org/base\nmerge_method: average\nmodels: [org/e0, org/e1, org/e2]\n")
    with TestHub() as hub:
        for name in MODELS:
            hub.create_repo(f"org/{name}", {path.name: path for path in sorted((folder / name).iterdir())})
        hub.clear_log()
        cache, out = folder / "cache", folder / "streamed"
        environment = hub_environment(hub, cache, hub.token("me"))
        arguments = ["run", str(streamed_recipe), "-o", str(out), "--stream", "--push-to-hub", "--repo-id", "me/merged"]
        arguments += ["--max-shard-size", str(SHARD)]
        watched = [out.with_name("streamed.partial"), out, cache]
        streamed = run_child(arguments, watched, environment)
        sent = sum(
            entry.sent for entry in hub.log if entry.method == "GET" and "safetensors" in entry.path + entry.query
        )
        streamed["sent_bytes"] = sent
    needed = sum(path.stat().st_size for name in MODELS[1:] for path in (folder / name).glob("*.safetensors"))
    return {"local": local, "streamed": streamed, "needed_bytes": needed, "shard_bytes": SHARD}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=73, help="73 make 2 GB a model (default)")
    parser.add_argument(
        "--folder", type=Path, help="where to make the models (six times their size; default: temporary)"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    import memory

    memory.LAYERS = arguments.layers
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        for seed, name in enumerate(MODELS):
            make_model(folder / name, memory.shapes(), arguments.layers, seed)
        start = time.monotonic()
        found = measure(folder)
        print(f"measured in {time.monotonic() - start:.0f} s")
    for case in ("local", "streamed"):
        one = found[case]
        print(
            f"{case:9} {one['seconds']:6.1f} s   peak memory {one['peak_bytes'] / 1e6:6.0f} MB"
            f"   most on disk {one['disk_bytes'] / 1e6:6.0f} MB"
        )
    sent, needed = found["streamed"]["sent_bytes"], found["needed_bytes"]
    print(f"the server sent {sent / 1e6:.0f} MB of weights; {needed / 1e6:.0f} MB were needed ({sent / needed:.1%})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
