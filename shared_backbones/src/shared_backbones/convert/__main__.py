"""The conversion process: ``python -m shared_backbones.convert SOURCE TARGET``, one line of JSON or one line of error."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared_backbones.convert import as_json, convert_in_process
from shared_backbones.errors import TowerError, WeightsError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shared_backbones.convert", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--converter")
    parser.add_argument("--tower")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    options = {name: value for name, _, value in (text.partition("=") for text in args.option)}
    try:
        print(as_json(convert_in_process(args.source, args.target, args.converter, args.tower, options)))
    except (WeightsError, TowerError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
