"""Merges by dopkit in another process than the one that scores, on one thread, each with its time and memory.

`Merger` starts `python merger.py`, which reads a line of JSON for every merge and answers with one. It knows neither
suites nor rows.

Seconds are the processor's, of the merge alone. The peak is the most that was resident during the merge less what was
resident right before it, when everything had been imported and the headers read; what libraries load at their first
use is part of it. It is known of the first merge of a process only: an allocator keeps what earlier ones gave back, and
the next one would look too small (`dop` on the quickstart: 5 MB instead of 25).
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Measured = dict[str, float | None]  # seconds, and peak in bytes where it is known


class Merger:
    """Every merge in a process of its own; or (`in_process`) those that need not be alone in one, started once."""

    def __init__(self, in_process: bool) -> None:
        self._in_process = in_process
        self._shared: subprocess.Popen[str] | None = None

    def merge(self, recipe: Path, out: Path, steps: bool, alone: bool = False) -> Measured:
        """Merge what `recipe` says into `out`, with `--save-steps` if `steps`; `alone`: so that the peak is known."""
        request = {"recipe": str(recipe), "out": str(out), "steps": steps}
        if alone or not self._in_process:
            child = _start()
            answer = _ask(child, request)
            child.communicate()
            return answer
        if self._shared is None:
            self._shared = _start()
        return _ask(self._shared, request) | {"peak": None}

    def close(self) -> None:
        """End the shared process, if there is one."""
        if self._shared is not None:
            self._shared.communicate()
            self._shared = None


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(child: subprocess.Popen[str], request: dict[str, Any]) -> Measured:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(json.dumps(request) + "\n")
    child.stdin.flush()
    if not (answer := child.stdout.readline()):
        raise SystemExit(f"the merge of {request['recipe']} failed (its message is above)")
    return json.loads(answer)


def serve() -> None:
    """The other process: answer every line of standard input."""
    import torch

    import dopkit
    from dopkit.measure import peak_resident_bytes, resident_bytes

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        recipe, out = dopkit.load_recipe(request["recipe"]), request["out"]
        dopkit.plan(recipe, out)  # imports everything
        before, started = resident_bytes(), time.process_time()
        dopkit.run(recipe, out, dopkit.Options(save_steps=request["steps"]))
        measured = {"seconds": time.process_time() - started, "peak": peak_resident_bytes() - before}
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    serve()
