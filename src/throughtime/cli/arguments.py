"""Options that take several values after one flag, as a shell's `--data *.txt` gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SEVERAL = ("--data", "--valid", "--set", "--metrics", "--require", "--ban", "--with")
SEVERAL_OF_BENCH = ("--cells", "--hidden", "--batch", "--passes", "--precision")


def spread(arguments: Sequence[str], options: Iterable[str] | None = None) -> list[str]:
    """`--data a b` as `--data a --data b`, for each of `options`; by default those of the command at the beginning.

    The values of such an option go on to the next word that begins with "-" ("-" itself, the standard input, is a
    value). Typer's options take one value each.
    """
    if options is None:
        options = (*SEVERAL, *SEVERAL_OF_BENCH) if list(arguments[:1]) == ["bench"] else SEVERAL
    several = frozenset(options)
    result: list[str] = []
    current, used = "", True
    for position, word in enumerate(arguments):
        if word == "--":
            return [*result, *arguments[position:]]
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            current, used = (name, bool(equals)) if name in several else ("", True)
            result.append(word)
        elif current and used:
            result += [current, word]
        else:
            result.append(word)
            used = True
    return result
