"""Speed and memory of the recurrent layers against `torch.nn`'s: `python benchmarks/recurrence.py [options]`.

The same as `throughtime bench recurrence [options]`; --help lists the options.
"""

from __future__ import annotations

import sys

from throughtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "recurrence", *sys.argv[1:]]))
