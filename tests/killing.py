"""A process of its own for test_resume: starts a merge in a child again and again, and kills it at random moments.

Usage: killing.py RECIPE OUT KILLS. Prints, as JSON, how many tensors were finished after each kill. The imports are
done once, before the first fork, so that a kill lands in the merge and not in an import.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import dopkit


def start(recipe: str, out: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            dopkit.run(dopkit.load_recipe(recipe), out)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def finished_tensors(out: str) -> int:
    journal = Path(out + ".partial") / "journal.jsonl"
    return len({line for line in journal.read_text().split("\n") if '"crc"' in line}) if journal.exists() else 0


def wait_until_merging(child: int, out: str) -> None:
    """Return when the child has begun to write, or has ended."""
    before = finished_tensors(out)
    while os.waitpid(child, os.WNOHANG) == (0, 0) and finished_tensors(out) == before:
        time.sleep(0.001)


def main(recipe: str, out: str, kills: int) -> None:
    dopkit.plan(dopkit.load_recipe(recipe))  # imports torch and transformers here, not in each child
    begin = time.monotonic()
    assert os.waitpid(start(recipe, out + "-timed"), 0)[1] == 0, "the merge fails by itself"
    whole = time.monotonic() - begin
    merging = json.loads(Path(out + "-timed", "dopkit_receipt.json").read_text())["run"]["seconds"]
    moments = random.Random(7)
    done = []
    for number in range(kills):
        child = start(recipe, out)
        if number % 2:  # anywhere, from the first header on
            time.sleep(moments.uniform(0, whole))
        else:  # in the merge itself, of which each kill may use up a part
            wait_until_merging(child, out)
            time.sleep(moments.uniform(0, merging / kills))
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if Path(out).exists():  # it was faster than the kill: begin anew
            os.rename(out, f"{out}-early-{number}")
        done.append(finished_tensors(out))
    assert os.waitpid(start(recipe, out), 0)[1] == 0, "the last run does not finish"
    print(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
