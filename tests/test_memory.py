"""Memory follows the largest tensor, whatever the number of models: the kernel's count, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SIDE = 4096  # one tensor of 64 MiB in float32

# The imports are made once; each count of models has a fork of its own, which begins with nothing held.
CHILD = """
import os, sys
from pathlib import Path
import dopkit
from dopkit.measure import peak_resident_bytes, resident_bytes

folder = Path(sys.argv[1])

def merging(count):
    text = f"merge_method: average\\nmodels: {['./m%d' % n for n in range(count)]}"
    return dopkit.parse_recipe(text, folder=folder)

dopkit.plan(merging(3), folder / "out")  # imports everything
for count in map(int, sys.argv[2:]):
    if os.fork() == 0:
        before = resident_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        dopkit.run(merging(count), folder / f"out{count}")
        print(peak_resident_bytes() - before, flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"no merge of {count} models")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resets the kernel's peak through /proc")
def test_memory_does_not_grow_with_the_number_of_models(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"m{number}").mkdir()
        tensor = torch.full((SIDE, SIDE), float(number))
        save_file({"layer.weight": tensor}, tmp_path / f"m{number}" / "model.safetensors")
    for number in range(3, 12):
        (tmp_path / f"m{number}").mkdir()
        os.link(tmp_path / f"m{number % 3}" / "model.safetensors", tmp_path / f"m{number}" / "model.safetensors")
    command = [sys.executable, "-c", CHILD, tmp_path, "3", "12"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a pool of them would not live on in a fork
    done = subprocess.run(command, env=one_thread, capture_output=True, check=True)
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == 2
    tensor_bytes = 4 * SIDE * SIDE
    assert max(peaks) < 3 * tensor_bytes, peaks
    # What the allocator keeps varies by some blocks; holding nine more models would add nine tensors.
    assert peaks[1] < peaks[0] + tensor_bytes, peaks
