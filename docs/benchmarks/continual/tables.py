"""The tables of the harness's results, in Markdown.

    python docs/benchmarks/continual/tables.py SUITE-results.jsonl            # a table for each file
    python docs/benchmarks/continual/tables.py --compare A.jsonl B.jsonl      # choices side by side, a column a file

`--into FILE --mark NAME` puts them between `<!-- NAME -->` and `<!-- /NAME -->` in FILE instead.
"""

import argparse
import statistics
from pathlib import Path

import results
from results import Key, Line, Spread

ORDERS = 10  # fewer are told in the row
EXACT, ALL, ADAM = "dop exact, last", "dop exact, all", "dop adam, last"
SCALES = ("1", "norm")
OTHERS: list[Key] = [("wudi", "mean", "1"), ("nullspace", "mean", None), ("opcm", None, None), ("ties", None, None)]
# What is chosen, beside what; the row with it, the row without.
CHOICES: list[tuple[str, str, Key, Key]] = [
    *[("`history: all`, not `last`", f"scale {s}", (ALL, "mean", s), (EXACT, "mean", s)) for s in SCALES],
    *[
        (f"`alpha: {alpha}`, not 0.8", f"scale {s}", (f"{EXACT}, alpha {alpha}", "mean", s), (EXACT, "mean", s))
        for alpha in ("0.5", "by-count")
        for s in SCALES
    ],
    *[("`scale: norm`, not 1", m, (m, "mean", "norm"), (m, "mean", "1")) for m in (EXACT, ALL, ADAM, "wudi")],
    *[
        (f"`other: {other}`, not `mean`", merge, (merge, other, "1"), (merge, "mean", "1"))
        for other in ("half", "base")
        for merge in (EXACT, ALL)
    ],
    *[("`solver: adam`, not `exact`", f"scale {s}", (ADAM, "mean", s), (EXACT, "mean", s)) for s in SCALES],
    *[("another method, not `dop`", key[0], key, (EXACT, "mean", "1")) for key in OTHERS],
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the harness's results as Markdown tables.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--compare", action="store_true", help="the choices, instead of all rows")
    parser.add_argument("--into", type=Path, help="a file with the marks")
    parser.add_argument("--mark", help="the marks' name")
    options = parser.parse_args()
    if (options.into is None) != (options.mark is None):
        parser.error("--into and --mark go together")
    suites = {file.stem.removesuffix("-results"): results.read(file) for file in options.results}
    text = comparison(suites) if options.compare else "\n\n".join(table(lines) for lines in suites.values())
    if options.into is None:
        print(text)
    else:
        options.into.write_text(put(options.into.read_text(encoding="utf-8"), options.mark, text), encoding="utf-8")


def put(page: str, mark: str, text: str) -> str:
    """`page` with `text` between the marks. SystemExit when they are not there once each."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if page.count(first) != 1 or page.count(last) != 1 or page.index(first) > page.index(last):
        raise SystemExit(f"the page needs one {first}, and one {last} after it")
    return page[: page.index(first) + len(first)] + f"\n\n{text}\n\n" + page[page.index(last) :]


def table(lines: list[Line]) -> str:
    """Every row that has been done: means and standard deviations in percent, seconds, MB."""
    rows = [_row("method", "`other`", "`scale`", "ACC", "BWT", "merge, s", "peak, MB"), "|" + "---|" * 7]
    rows += [
        _row(line["merge"], "", "", f"{100 * line['acc']:.1f}", "", "", "") for line in lines if "seed" not in line
    ]
    done = {key: list(found.values()) for key in results.every_key() if (found := results.of(lines, key))}
    acc = {key: results.spread([line["acc"] for line in found]) for key, found in done.items()}
    top, defaults = best(lines, acc), results.defaults()
    for key, found in done.items():
        name = f"{key[0]} (default)" if key in defaults else key[0]
        bwt = results.spread([line["bwt"] for line in found])
        count = "" if len(found) == ORDERS else f" (n = {len(found)})"
        values = (shown(acc[key], key in top) + count, shown(bwt, sign="+"), *cost(found))
        rows.append(_row(name, key[1] or "", key[2] or "", *values))
    return "\n".join(rows)


def _row(*cells: str) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def best(lines: list[Line], acc: dict[Key, Spread]) -> set[Key]:
    """The row of the highest mean, and those that are within one standard error of it: the larger one of the two."""
    if not acc:
        return set()
    first = max(acc, key=lambda key: acc[key].mean)
    found = {key: results.difference(lines, key, first) for key in acc}
    return {key for key, one in found.items() if one is not None and -one.mean <= one.error + 1e-9}


def shown(found: Spread, bold: bool = False, sign: str = "") -> str:
    mean = f"{100 * found.mean:{sign}.1f}"
    text = f"**{mean}**" if bold else mean
    return text if found.deviation is None else f"{text} ± {100 * found.deviation:.1f}"


def cost(lines: list[Line]) -> tuple[str, str]:
    """CPU seconds and MB of memory at the peak, medians, of the merges that the rows came from."""
    seconds = statistics.median(line["seconds"] for line in lines)
    peaks = [line["peak"] for line in lines if line["peak"] is not None]
    return f"{seconds:.1f}", f"{statistics.median(peaks) / 1e6:.0f}" if peaks else ""


def comparison(suites: dict[str, list[Line]]) -> str:
    """Differences of ACC in points, one column a suite: mean (standard error over orders; over tasks)."""
    rows = [_row("choice", "with", *suites), "|---|---|" + "---|" * len(suites)]
    for choice, beside, one, other in CHOICES:
        cells = [_difference(lines, one, other) for lines in suites.values()]
        if any(cells):
            rows.append(_row(choice, beside, *cells))
    return "\n".join(rows)


def _difference(lines: list[Line], one: Key, other: Key) -> str:
    found = results.difference(lines, one, other)
    if found is None:
        return ""
    mean = f"{100 * found.mean:+.1f}"
    errors = ["?" if error is None else f"{100 * error:.1f}" for error in (found.over_orders, found.over_tasks)]
    text = f"**{mean}**" if found.clear else mean
    return f"{text} ({'; '.join(errors)})" + ("" if found.orders == ORDERS else f", n = {found.orders}")


if __name__ == "__main__":
    main()
