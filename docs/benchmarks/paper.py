"""What a large merge reads, writes and computes, on paper: from `dopkit plan`'s own jobs and the assumptions below.

    python docs/benchmarks/paper.py [--experts 3] [--workers 64]

Makes models that are headers and holes (sparse files, a few kB on the disk), plans their merge, and divides. Nothing is
merged. What is not arithmetic of the plan stands in ``RATES`` and is an assumption, not a measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import zlib
from pathlib import Path

import dopkit
from dopkit.device import choose
from dopkit.planning import Plan, TensorJob
from dopkit.planning.building import Room
from dopkit.planning.sharing import shares
from dopkit.progress import Progress
from dopkit.sources import open_sources

LLAMA_405B = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
              "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000}  # fmt: skip
RATES = {
    "storage": 50e9,  # bytes a second that all machines together read from or write to the shared file system
    "link": 3e9,  # bytes a second that one worker gets of its machine's network: 200 Gb/s for eight of them
    "gpu": 25e9,  # bytes a second of casts and elementwise arithmetic, with the way to the GPU and back
    "float64": 5e12,  # floating-point operations a second that eigensolvers reach on a GPU made for float64
}
METHODS: dict[str, dict[str, object]] = {
    "linear": {"parameters": {"weight": 1.0}},
    "ties": {"parameters": {"density": 0.2}},
    "dop": {"parameters": {"solver": "exact"}},
}
UNLIMITED = Room(1 << 62, 1 << 62, 1 << 62)


def shapes(config: dict[str, int]) -> dict[str, list[int]]:
    """Of a Llama, by name."""
    wide, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = wide * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = {"self_attn.q_proj": [wide, wide], "self_attn.k_proj": [keys, wide], "self_attn.v_proj": [keys, wide],
             "self_attn.o_proj": [wide, wide], "mlp.gate_proj": [inner, wide], "mlp.up_proj": [inner, wide],
             "mlp.down_proj": [wide, inner], "input_layernorm": [wide],
             "post_attention_layernorm": [wide]}  # fmt: skip
    found = {"model.embed_tokens.weight": [words, wide], "model.norm.weight": [wide], "lm_head.weight": [words, wide]}
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def make_model(folder: Path, config: dict[str, int]) -> None:
    """A folder that looks like the model to whoever reads headers alone."""
    folder.mkdir()
    kind: dict[str, object] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "tie_word_embeddings": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **kind}))
    header, offset = {}, 0
    for name, shape in shapes(config).items():
        nbytes = 2 * (shape[0] * shape[1] if len(shape) > 1 else shape[0])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + folder.name.encode())
        os.truncate(file.fileno(), 8 + len(text) + offset)


def planned(folder: Path, experts: int, method: str) -> Plan:
    models = [f"./e{number}" for number in range(experts)]
    data: dict[str, object] = {"base_model": "./base", "merge_method": method, "models": models, **METHODS[method]}
    if method == "linear":
        del data["base_model"]
        data["models"] = ["./base", *models]
    recipe = dopkit.parse_recipe(json.dumps(data), name="paper", folder=folder)
    with open_sources(recipe, lambda program: UNLIMITED, Progress(), 5_000_000_000, choose("cpu")) as sources:
        return sources.plan


def read_bytes(job: TensorJob) -> int:
    """Base and models, each in the dtype that is written."""
    return job.nbytes * (max(1, len(job.inputs)) + (job.base is not None))


def solver_operations(job: TensorJob) -> float:
    """Of the closed form of DOP: two symmetric eigenproblems for every model after the first, 10 k^3 each."""
    if "dop" not in job.rule.name:
        return 0.0
    m, n = sorted(job.shape[-2:])
    return 10.0 * (m**3 + min(n, 2 * m) ** 3) * max(0, len(job.inputs) - 1)


def seconds(job: TensorJob) -> float:
    """Of one worker for one job: read and written, moved to the GPU and back in float32, and solved."""
    moved = read_bytes(job) + job.nbytes
    return moved / RATES["link"] + 2 * moved / RATES["gpu"] + solver_operations(job) / RATES["float64"]


def hash_rate() -> float:
    """Bytes a second of checksum and hash on one core here."""
    data, start, rounds = os.urandom(1 << 24), time.process_time(), 8
    digest = hashlib.sha256()
    for _ in range(rounds):
        zlib.crc32(data)
        digest.update(data)
    return rounds * len(data) / (time.process_time() - start)


def show(name: str, plan: Plan, workers: int) -> None:
    jobs, read, written = plan.jobs, sum(map(read_bytes, plan.jobs)), plan.output_bytes
    longest = max(jobs, key=seconds)
    loads = [sum(map(seconds, own)) for own in shares(jobs, workers, seconds)]
    floor = (read + written) / RATES["storage"]
    print(
        f"{name:8} {len(jobs):6} jobs  read {read / 1e12:6.2f} TB  written {written / 1e12:6.3f} TB  "
        f"{sum(map(solver_operations, jobs)):9.2e} flop  one worker {sum(map(seconds, jobs)) / 3600:7.1f} h  "
        f"{workers}: {max(loads):7.0f} s  storage {floor:5.0f} s  longest {seconds(longest):6.1f} s "
        f"({longest.name} {'x'.join(map(str, longest.shape))}, {longest.working_bytes / 1e9:.0f} GB)  "
        f"most of use {sum(loads) / seconds(longest):5.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--workers", type=int, default=64)
    given = parser.parse_args()
    for title, config in (("Llama 405B", LLAMA_405B), ("Llama 7B", LLAMA_7B)):
        with tempfile.TemporaryDirectory() as scratch:
            for model in ("base", *(f"e{number}" for number in range(given.experts))):
                make_model(Path(scratch) / model, config)
            print(f"\n{title}, base and {given.experts} experts in bfloat16")
            for method in METHODS:
                show(method, planned(Path(scratch), given.experts, method), given.workers)
    print(f"\nchecksum and hash, one core here: {hash_rate() / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
