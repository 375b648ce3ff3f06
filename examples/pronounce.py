"""Cut CMUdict into words to train on, words to choose a model by, and words to judge it by.

    python examples/pronounce.py shared/data/cmudict_g2p/g014b2b.train runs/pronounce-data
    throughtime train transduce --config examples/pronounce.toml --run runs/pronounce
    throughtime evaluate runs/pronounce --data runs/pronounce-data/test.tsv

A word with several pronunciations has several lines; all of them go to one side, so that no word is both learnt and
judged. Which words those are hangs on a hash of their letters, not on their order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from throughtime.data.pairs import Pair, read_pairs, split_by_source
from throughtime.storage import write_file

# Of 106,837 words some 5,300 to judge by, and 2,540 of the rest to choose by.
TEST, VALID = 0.05, 0.025


def main() -> None:
    """Write train.tsv, valid.tsv and test.tsv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="word, tab, phonemes with spaces between")
    parser.add_argument("folder", type=Path, help="where the three files go")
    given = parser.parse_args()
    rest, test = split_by_source(list(read_pairs([given.pairs])), TEST, seed=1)
    train, valid = split_by_source(rest, VALID, seed=2)
    for name, pairs in (("train", train), ("valid", valid), ("test", test)):
        write_file(given.folder / f"{name}.tsv", _lines(pairs))
        print(f"{name}: {len({pair.source for pair in pairs}):,} words, {len(pairs):,} pronunciations")


def _lines(pairs: list[Pair]) -> str:
    return "".join(f"{pair.source}\t{pair.target}\n" for pair in pairs)


if __name__ == "__main__":
    main()
