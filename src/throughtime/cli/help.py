"""The last lines of every --help."""

from __future__ import annotations


def example(*lines: str) -> str:
    """An epilog that shows command lines as they are typed."""
    # \b keeps the lines as they are.
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])
