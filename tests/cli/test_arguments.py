"""Several values after one flag."""

from __future__ import annotations

import pytest

from throughtime.cli.arguments import spread


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("train lm --data a b c --run r", "train lm --data a --data b --data c --run r"),
        ("train lm --data a --run r --data b", "train lm --data a --run r --data b"),
        ("evaluate r --data - b --json", "evaluate r --data - --data b --json"),
        ("train lm --data=a b --set x.y=1 z.w=2", "train lm --data=a --data b --set x.y=1 --set z.w=2"),
        ("bench recurrence --hidden 8 9 --ragged", "bench recurrence --hidden 8 --hidden 9 --ragged"),
        ("generate r --stop a b", "generate r --stop a b"),
        ("generate --precision int8 r", "generate --precision int8 r"),
        ("evaluate --data a -- r", "evaluate --data a -- r"),
        ("evaluate r --data", "evaluate r --data"),
        ("", ""),
    ],
)
def test_spread(typed: str, parsed: str) -> None:
    assert spread(typed.split()) == parsed.split()
