"""One continual step of FusionBench's DOP on the matrices of a file, by its own code and with its own settings.

    python fusionbench_step.py MATRICES OUTPUT STEPS [DEVICE]

Runs in FusionBench's environment and imports nothing of this project. MATRICES is a safetensors file with
``NAME.base``, ``NAME.merged`` and ``NAME.incoming``; OUTPUT gets the merged matrices, OUTPUT.json the seconds of each.
DEVICE is one as `cuda` or `cuda:1`, `cpu` when it is not given; the matrices are on the host before and after.
"""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import lightning  # noqa: E402
from fusion_bench.method.dop.dop import ContinualDOPForCLIP  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

# As in fusion_bench_config/method/dop/dop.yaml of 0.2.33, but for the steps where fewer are asked for.
SETTINGS = {
    "shuffle_order": False, "save_on_every_step": False, "evaluate_on_every_step": False, "lr": 1e-4, "mgda": True,
    "alpha": 0.8, "ema": True, "ema_beta": 0.999, "svd_epsilon": 0.99999, "svd_proj_space": "uv",
}  # fmt: skip


def main() -> None:
    matrices, output, steps, *rest = sys.argv[1:]
    accelerator, _, index = (rest[0] if rest else "cpu").partition(":")
    algorithm = ContinualDOPForCLIP(num_steps=int(steps), **SETTINGS)
    algorithm.fabric = lightning.Fabric(accelerator=accelerator, devices=[int(index)] if index else 1)
    tensors = load_file(matrices)
    names = sorted(key.removesuffix(".base") for key in tensors if key.endswith(".base"))
    merged, seconds = {}, {}
    for name in names:
        models = {model: tensors[f"{name}.{model}"] for model in ("merged", "incoming")}
        start, cpu = time.monotonic(), time.process_time()
        merged[name] = algorithm._optimize_weight(tensors[f"{name}.base"], models, name, 1).contiguous()
        seconds[name] = {"wall_seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
    save_file(merged, output)
    with open(output + ".json", "w") as file:
        json.dump(seconds, file)


if __name__ == "__main__":
    main()
