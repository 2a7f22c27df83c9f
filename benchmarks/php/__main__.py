"""Benchmark of PHP's exact rewrites: ``python benchmarks/php --rows texts,step-ave --json``; every row checks equality first."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "avmoe"))  # the clock of the other benchmark


def main() -> None:
    """Run the rows that the command line names and print a markdown table or JSON."""
    from clock import Row, Unequal, machine, table
    from php_rows import ROWS, Setup

    parser = argparse.ArgumentParser(prog="python benchmarks/php", description=__doc__)
    parser.add_argument(
        "--rows", default="texts,generator,adapter,flops,checkpoint", help=f"of {','.join(ROWS)}, or all"
    )
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="towers and token counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, default=None, help="also write FILE.json and FILE.md")
    given = parser.parse_args()
    wanted = list(ROWS) if given.rows == "all" else given.rows.split(",")
    for name in wanted:
        if name not in ROWS:
            parser.error(f"unknown row {name}; expected of {', '.join(ROWS)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    setup = Setup(torch.device(given.device), given.size, given.repeats)
    rows: list[Row] = []
    wrong = None
    for name in wanted:
        print(name, file=sys.stderr, flush=True)
        try:
            rows += ROWS[name](setup)
        except Unequal as error:  # the run fails, with what was measured before
            wrong = str(error)
            break
    record = {
        "machine": machine(setup.device),
        "size": given.size,
        "error": wrong,
        "rows": [row.to_json() for row in rows],
    }
    if given.out:
        given.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(table(rows) + "\n")
    print(json.dumps(record, indent=1) if given.json else table(rows))
    if wrong:
        sys.exit(f"error: {wrong}")


if __name__ == "__main__":
    main()
