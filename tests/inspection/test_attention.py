"""Where a model looked: the numbers of its alignment, and the picture of them in any script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import font_manager

from throughtime.data import Tokenizer
from throughtime.data.pairs import TextsSource
from throughtime.decoding import given
from throughtime.errors import StorageError, UsageError
from throughtime.inspection.attention import END, Alignment, attention
from throughtime.inspection.attention_pictures import draw_attention, fonts_for
from throughtime.models import EncoderDecoder, EncoderDecoderConfig
from throughtime.storage import write_file
from throughtime.tasks import transduce
from throughtime.tasks.transduce_configuration import TransduceConfiguration
from throughtime.training.run_folder import RunFolder


def make_run(folder: Path, **shape: Any) -> Path:
    """The run folder of an untrained model that reads and writes the letters a, b, c."""
    run = RunFolder.create(folder, "transduce")
    tokenizer = Tokenizer.train("chars", TextsSource(["abc 東"], "letters"))
    sizes = {"hidden_size": 8, "embedding_size": 4, **shape}
    torch.manual_seed(0)
    model = EncoderDecoder(
        EncoderDecoderConfig(
            **sizes,
            source_vocabulary_size=tokenizer.vocabulary_size,
            target_vocabulary_size=tokenizer.vocabulary_size,
            border_id=tokenizer.border_id,
        )
    )
    model.tokenizer_json = tokenizer.to_json()
    model.save(run.path)
    write_file(run.path / "source-tokenizer.json", tokenizer.to_json())
    values = {"model": sizes, "training": {"max_steps": 1}, "generation": {"max_length": 5}, "data": {"max_length": 6}}
    write_file(run.config, TransduceConfiguration.model_validate(values).toml())
    return run.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("attention") / "run")


def test_the_alignment_is_that_of_the_answer(run: Path) -> None:
    for number in (1, 2, 3):
        found = attention(run, "ab c", answer=number)
        (answered,) = transduce.transducer(run, n_best=3).answer(["ab c"])
        answer = answered.answers[number - 1]
        assert (found.answer, found.source_tokens) == (answer.text, ("a", "b", " ", "c"))
        assert found.score == pytest.approx(answer.score, abs=1e-5)
        assert answer.attention is not None
        torch.testing.assert_close(found.weights, answer.attention, atol=1e-5, rtol=0)
        assert found.weights.shape == (len(found.answer_tokens), 4)
        assert (found.answer_tokens[-1] == END) == answer.ended


def test_the_weights_are_those_of_the_models_steps(run: Path) -> None:
    found = attention(run, "abc", minimum_length=2)
    model, tokenizers, _ = transduce.load(run)
    source, target = tokenizers.source.encode("abc"), tokenizers.target.encode(found.answer).tolist()
    steps = given(model, inputs=torch.from_numpy(source)[:, None], lengths=torch.tensor([3]))
    state = steps.initial_state(1)
    rows = []
    for token in [model.config.border_id, *target][: len(found.answer_tokens)]:
        _, state = steps.step(torch.tensor([token]), state)
        rows.append(steps.attention(state)[0])
    torch.testing.assert_close(found.weights, torch.stack(rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(len(rows)))


def test_it_says_what_was_new_and_what_was_cut(run: Path) -> None:
    found = attention(run, "abxabca")
    assert (found.unknown, found.cut, len(found.source_tokens)) == (("x",), 1, 6)


def test_as_text_and_as_json() -> None:
    weights = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.25, 0.75]])
    found = Alignment("a b", "xy", -1.5, ("a", " ", "b"), ("xy", END), weights, (), 0)
    assert str(found) == "xy     0.90  1 'a'\n<end>  0.75  3 'b'"
    assert found.as_dict()["weights"] == [[pytest.approx(value) for value in row] for row in weights.tolist()]
    assert found.as_dict()["answer_tokens"] == ("xy", END)


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("", {}, r"attention: the source is empty, got ''; give a text to answer"),
        ("abc", {"answer": 0}, "attention: answers are numbered from 1, got 0"),
        ("abc", {"answer": 3, "banned": list("abc "), "max_length": 1}, "expected answer 3, but the search found 2"),
        ("abc", {"max_length": 0}, "the answer has no tokens, so that nothing was looked at"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_told(run: Path, source: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        attention(run, source, **options)


def test_a_model_without_attention_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", attention="none")
    with pytest.raises(UsageError) as caught:
        attention(run, "abc")
    assert str(caught.value) == (
        f'attention: the model of {run} has none to show (model.attention = "none"); train one with '
        "model.attention=general"
    )


# -- pictures ----------------------------------------------------------------------------------------------------------


def an_alignment(source: str, answer: str) -> Alignment:
    weights = torch.full((len(answer), len(source)), 1 / len(source))
    return Alignment(source, answer, -1.0, tuple(source), tuple(answer), weights, (), 0)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn_in_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"made/attention.{ending}"
    assert draw_attention(an_alignment("Straße $x_1$", "улица شارع"), path) == ()
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF-"}[ending]
    assert path.read_bytes().startswith(start)
    again = tmp_path / f"again.{ending}"
    draw_attention(an_alignment("Straße $x_1$", "улица شارع"), again)
    assert again.read_bytes() == path.read_bytes()


def test_what_no_font_has_is_drawn_as_code_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.name in ("DejaVu Sans", "Last Resort High-Efficiency")
    ]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    assert fonts_for("abя東नه") == (["DejaVu Sans"], ("न", "東"))
    # Warnings are errors here: matplotlib warns of every glyph that it lacks.
    assert draw_attention(an_alignment("東京 ab", "न"), tmp_path / "a.png") == ("न", "京", "東")


def test_a_font_that_has_them_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """STIX has mathematical letters that DejaVu Sans lacks; here it stands for any font that is installed."""
    lacking = fonts_for(map(chr, range(0x2000, 0x2C00)))
    assert lacking[0][0] == "DejaVu Sans"
    known = {entry.name for entry in font_manager.fontManager.ttflist}
    assert set(lacking[0]) <= known
    assert len(lacking[0]) > 1


@pytest.mark.parametrize(("source", "answer"), [(1, 1), (150, 3), (3, 150)])
def test_long_and_short_alignments_can_be_drawn(tmp_path: Path, source: int, answer: int) -> None:
    draw_attention(an_alignment("a" * source, "b" * answer), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a name that ends in .png, .svg, .pdf, got '.gif'"):
        draw_attention(an_alignment("a", "b"), tmp_path / "a.gif")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        draw_attention(an_alignment("a", "b"), tmp_path / "file" / "a.png")
