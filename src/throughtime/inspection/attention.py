"""Where an encoder-decoder looks at its source while it writes an answer.

    c(t) = Σ_j α_j(t) h_j,   Σ_j α_j(t) = 1

α (τ, S): one row for each token of the answer, its end included, one column for each token of the source.

Source: Bahdanau, Cho & Bengio 2015, "Neural machine translation by jointly learning to align and translate", fig. 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from throughtime.errors import UsageError
from throughtime.tasks import transduce

END = "<end>"
"""What stands for the end of an answer."""


class Alignment(NamedTuple):
    """An answer and where each of its tokens looked.

    source_tokens (S) and answer_tokens (τ) are for display, with "<end>" last where the answer has ended; score is log
    p in nats; weights: α (τ, S). unknown: what of the source is not in the vocabulary; cut: how many of its tokens lay
    beyond the greatest length.
    """

    source: str
    answer: str
    score: float
    source_tokens: tuple[str, ...]
    answer_tokens: tuple[str, ...]
    weights: Tensor
    unknown: tuple[str, ...]
    cut: int

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {**self._asdict(), "weights": self.weights.tolist()}

    def __str__(self) -> str:
        """A line for each token of the answer: the place of the source that it looked at most, and how much."""
        shown = [token if token.strip() else repr(token) for token in self.answer_tokens]
        width = max(map(len, shown), default=0)
        lines = []
        for token, row in zip(shown, self.weights, strict=True):
            at = int(row.argmax())
            lines.append(f"{token:<{width}}  {float(row[at]):.2f}  {at + 1} {self.source_tokens[at]!r}")
        return "\n".join(lines)


def attention(run: str | Path, source: str, *, answer: int = 1, **search: Any) -> Alignment:
    """The attention of the best answer to a source, or of the `answer`-th best, by the model in a run folder.

    Keys of [generation] in `search` replace the run's own.

    Raises:
        UsageError: the model has no attention, the source is empty, or so many answers were not found.
        RunFolderError, CheckpointError, ConfigError: see `throughtime.tasks.transduce.transducer`.
    """
    if answer < 1:
        raise UsageError(f"attention: answers are numbered from 1, got {answer}")
    transducer = transduce.transducer(Path(run), **{**search, "n_best": answer})
    if transducer.models[0].config.attention == "none":
        raise UsageError(
            f'attention: the model of {run} has none to show (model.attention = "none"); train one with '
            "model.attention=general"
        )
    (found,) = transducer.answer([source])
    if not found.tokens:
        raise UsageError(f"attention: the source is empty, got {source!r}; give a text to answer")
    if len(found.answers) < answer:
        raise UsageError(
            f"attention: expected answer {answer}, but the search found {len(found.answers)}; ask for one of them"
        )
    chosen = found.answers[-1]
    if chosen.attention is None:
        raise UsageError("attention: the answer has no tokens, so that nothing was looked at; raise max_length")
    return Alignment(
        source,
        chosen.text,
        chosen.score,
        found.tokens,
        (*chosen.tokens[:-1], END) if chosen.ended else chosen.tokens,
        chosen.attention,
        found.unknown,
        found.cut,
    )
