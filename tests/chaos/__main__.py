"""Run the matrix, or rows of it, and print one line a row.

python -m tests.chaos [--rows F1,F2] [--seed N] [--quick] [--brokers 3]
                      [--unsafe fence|epoch|ids|silent|transaction] [--keep DIR] [--markdown FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import orjson

import tests.chaos.rows  # noqa: F401  (enters the rows)
from tests.chaos.harness import ROWS, Result, World
from tests.chaos.report import enter


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="The fault matrix.")
    parser.add_argument("--rows", help="names, with commas; default: all")
    parser.add_argument("--seed", type=int, help="default: of the clock")
    parser.add_argument("--quick", action="store_true", help="fewer faults, a smaller load")
    parser.add_argument("--brokers", type=int, choices=(1, 3, 4, 5), default=1, help="each topic has three replicas")
    parser.add_argument("--unsafe", help="switch one guarantee off: the rows must go red")
    parser.add_argument("--no-replay", action="store_true", help="leave out the comparison with a replay")
    parser.add_argument("--keep", type=Path, help="keep the processes' logs and the brokers' folders here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page with a table of results, whose lines are replaced")
    options = parser.parse_args()
    wanted = options.rows.split(",") if options.rows else [row.name for row in ROWS.values() if row.of_the_matrix]
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    size = f"{'quick' if options.quick else 'full'}, {seed}"
    if options.brokers > 1:
        size += f", {options.brokers} brokers"
    print(size, flush=True)
    results: list[Result] = []
    with World(options.keep, brokers=options.brokers) as world:
        for name in wanted:
            replay = not options.no_replay and options.unsafe is None
            result = world.run(
                ROWS[name], seed=seed, quick=options.quick, unsafe=options.unsafe, replay=replay, timed=True
            )
            results.append(result)
            print(result.line(), flush=True)
            for note in result.verdict.notes:
                print(f"     {note}", flush=True)
            if options.markdown and not options.unsafe:
                enter(options.markdown, result, size)
    if options.json:
        options.json.write_bytes(orjson.dumps([r.figures() for r in results], option=orjson.OPT_INDENT_2))
    red = [result.row.name for result in results if not result.ok]
    if red:
        raise SystemExit(f"red: {', '.join(red)}")


if __name__ == "__main__":
    main()
