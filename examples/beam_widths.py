"""Beam against greedy: quality, time and model score of several widths, for a run of `throughtime train transduce`.

    python examples/beam_widths.py runs/pronounce --data runs/pronounce-data/test.tsv --json beam-widths.json

One process; the widths take turns, so that what else the machine does weighs on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from throughtime.errors import ThroughtimeError
from throughtime.storage import write_file
from throughtime.tasks.benchmarks.machine import describe
from throughtime.tasks.experiments.transduction_widths import WIDTHS, compare, table


def main() -> None:
    """Print the table, and write all figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", nargs="+", required=True, help="files of pairs to judge by")
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), help="%(default)s")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        widths = compare(given.run, given.data, given.widths)
        if given.json is not None:
            content = {"machine": describe(), "widths": [asdict(one) for one in widths]}
            write_file(given.json, json.dumps(content, indent=2) + "\n")
    except ThroughtimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(table(widths))


if __name__ == "__main__":
    main()
