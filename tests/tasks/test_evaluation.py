"""Units of a loss by hand, and the loss of a stream against one exact pass over it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import Tokenizer
from throughtime.data.sources import TextSource
from throughtime.data.tokens import TokenFile, prepare
from throughtime.errors import DataError
from throughtime.models import LanguageModel
from throughtime.tasks.evaluation import TextSize, nats, units


def test_units_by_hand() -> None:
    """8 tokens at 2 bits each make 16 bits: 4 for each of 4 bytes, 8 for each of 2 characters."""
    found = units(2 * math.log(2), TextSize(tokens=8, bytes=4, characters=2))
    assert found == pytest.approx({"bits_per_byte": 4.0, "bits_per_character": 8.0, "perplexity": 4.0})


@given(
    nats=st.floats(0, 20),
    tokens=st.integers(1, 10**9),
    bytes=st.integers(1, 10**9),
    characters=st.integers(1, 10**9),
)
def test_units_are_one_loss(nats: float, tokens: int, bytes: int, characters: int) -> None:
    found = units(nats, TextSize(tokens, bytes, characters))
    total = nats * tokens
    assert found["bits_per_byte"] * bytes * math.log(2) == pytest.approx(total)
    assert found["bits_per_character"] * characters * math.log(2) == pytest.approx(total)
    assert math.log(found["perplexity"]) == pytest.approx(nats)


def test_a_hopeless_loss_has_a_finite_perplexity() -> None:
    assert math.isfinite(units(1e6, TextSize(1, 1, 1))["perplexity"])


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    written = []
    for number, length in enumerate((150, 1, 260)):
        letters = torch.randint(97, 123, (length,), generator=generator).tolist()
        (tmp_path / f"{number}.txt").write_text("".join(map(chr, letters)) + "é" * (number == 2))
        written.append(str(tmp_path / f"{number}.txt"))
    return written


@pytest.fixture
def stream(texts: list[str]) -> TokenFile:
    return prepare(TextSource(texts), Tokenizer.train("bytes"))


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(vocabulary_size=257, border_id=256, hidden_size=8, embedding_size=8).double().eval()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
        model.readout.bias_ho.normal_()
    return model


def exact(model: LanguageModel, texts: list[str]) -> float:
    """−log p of each document by itself, its end included, per token."""
    total, count = 0.0, 0
    for text in texts:
        tokens = torch.tensor([*Path(text).read_bytes(), 256])[:, None]
        with torch.no_grad():
            total -= float(model.log_prob(tokens).total)
        count += len(tokens)
    return total / count


def test_the_size_of_a_text(stream: TokenFile, texts: list[str]) -> None:
    assert TextSize.of(stream) == TextSize(tokens=413 + 3, bytes=413, characters=412)


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
def test_one_row_is_exact(model: LanguageModel, stream: TokenFile, texts: list[str], window: int) -> None:
    assert nats(model, stream, batch_size=1, window=window) == pytest.approx(exact(model, texts), rel=1e-6)


@pytest.mark.parametrize("batch_size", [2, 5, 500])
def test_many_rows_are_close(model: LanguageModel, stream: TokenFile, texts: list[str], batch_size: int) -> None:
    assert nats(model, stream, batch_size=batch_size, window=32) == pytest.approx(exact(model, texts), rel=5e-3)


def test_parts_of_several_processes_add_up(model: LanguageModel, stream: TokenFile, texts: list[str]) -> None:
    parts: list[list[float]] = []

    def keep(values: object) -> list[float]:
        parts.append(list(values))  # type: ignore[call-overload]
        return parts[-1]

    for rank in range(3):
        nats(model, stream, batch_size=2, window=16, rank=rank, world_size=3, total=keep)
    alone = nats(model, stream, batch_size=6, window=16)
    assert sum(part[1] for part in parts) == TextSize.of(stream).tokens
    assert sum(part[0] for part in parts) / sum(part[1] for part in parts) == pytest.approx(alone)


def test_a_text_without_characters(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,n\n"",1\n"",2\n')
    stream = prepare(TextSource([str(tmp_path / "rows.csv")]), Tokenizer.train("bytes"))
    with pytest.raises(DataError, match=r"^data: expected text to predict, got 2 empty documents; give more text$"):
        TextSize.of(stream)
