"""Pairs trained on, answered and judged: a model that learns to write strings backwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.errors import ConfigError, RunFolderError, UsageError
from throughtime.models import EncoderDecoder
from throughtime.tasks import transduce
from throughtime.tasks.transducer import Answered, Transducer

KEYS = (
    "model.hidden_size=32", "model.embedding_size=16", "training.batch_size=32", "training.learning_rate=0.02",
    "training.warmup_steps=5", "training.max_steps=80", "training.evaluate_every=40", "training.precision=fp32",
    "training.device=cpu", "generation.max_length=8", "generation.beam=3",
)  # fmt: skip
FEW_STEPS = ("training.max_steps=4", "training.evaluate_every=4", "model.hidden_size=8", "model.embedding_size=4")
SOURCES = ["".join(word) for length in (1, 2, 3, 4) for word in itertools.product("abc", repeat=length)]


def backwards(text: str) -> str:
    return text[::-1].upper()


def write_pairs(path: Path, sources: Iterable[str] = SOURCES) -> Path:
    path.write_text("".join(f"{source}\t{backwards(source)}\n" for source in sources), "utf-8")
    return path


def train(run: Path, *overrides: str, data: dict[str, Any], **options: Any) -> Any:
    return transduce.train(run, data=data, overrides=[*KEYS, *overrides], tell=lambda line: None, **options)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of the training loop see drawn costs more than these trainings."""
    monkeypatch.setattr("throughtime.training.loop.draw_curve", lambda *arguments: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned it."""
    folder = tmp_path_factory.mktemp("transduce")
    outcome = train(folder / "run", data={"paths": [str(write_pairs(folder / "train.tsv"))], "max_length": 8})
    assert outcome.best["exact_match"] == 1.0
    return folder / "run"


@pytest.fixture(scope="module")
def learned(run: Path) -> Transducer:
    return transduce.transducer(run, n_best=3)


def answers(found: Iterable[Answered]) -> list[str]:
    return [one.answers[0].text for one in found]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_it_answers_what_it_has_learned(learned: Transducer) -> None:
    assert answers(learned.answer(["abca", "bb", "c"])) == ["ACBA", "BB", "C"]


def test_answers_do_not_depend_on_batch_or_order(learned: Transducer, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [*SOURCES[::3], "", "cabcab", "aaaaaaaaaaaaaa"]
    together = learned.answer(sources)
    turned = learned.answer(sources[::-1])[::-1]
    monkeypatch.setattr("throughtime.tasks.transducer._ROWS", 1)
    alone = learned.answer(sources)
    for one, other in ((together, alone), (together, turned)):
        for left, right in zip(one, other, strict=True):
            assert left.source == right.source
            assert [answer.text for answer in left.answers] == [answer.text for answer in right.answers]
            assert [answer.score for answer in left.answers] == pytest.approx(
                [answer.score for answer in right.answers], abs=1e-4
            )


@pytest.mark.parametrize(("name", "limit"), [("_POSITIONS", 8), ("_NUMBERS", 60)])
def test_a_batch_is_bounded_by_what_it_costs(
    learned: Transducer, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    expected = answers(learned.answer(SOURCES[:20]))
    monkeypatch.setattr(f"throughtime.tasks.transducer.{name}", limit)
    sizes: list[tuple[int, int]] = []
    searched = Transducer._searched

    def counting(self: Transducer, sources: Any) -> Any:
        sizes.append((len(sources), max(map(len, sources))))
        return searched(self, sources)

    monkeypatch.setattr(Transducer, "_searched", counting)
    assert answers(learned.answer(SOURCES[:20])) == expected
    assert sum(rows for rows, _ in sizes) == 20
    cost = {"_POSITIONS": 1, "_NUMBERS": 3 * learned.tokenizers.target.vocabulary_size}[name]
    assert all(rows * cost * (longest if name == "_POSITIONS" else 1) <= limit for rows, longest in sizes)


def test_the_best_answer_comes_first_and_scores_add_up(learned: Transducer) -> None:
    for found in learned.answer(["abc", "cc"]):
        assert len(found.answers) == 3
        assert len({answer.text for answer in found.answers}) == 3
        rankings = [answer.ranking for answer in found.answers]
        assert rankings == sorted(rankings, reverse=True)
        for answer in found.answers:
            assert sum(answer.token_scores) == pytest.approx(answer.score)
            assert len(answer.tokens) == len(answer.token_scores) == len(answer.text) + answer.ended
            assert answer.attention is not None
            assert answer.attention.shape == (len(answer.tokens), len(found.source))
            torch.testing.assert_close(answer.attention.sum(1), torch.ones(len(answer.tokens)))


def test_scores_are_the_models_own_log_probabilities(run: Path, learned: Transducer) -> None:
    model = EncoderDecoder.load(run)
    source = torch.from_numpy(learned.tokenizers.source.encode("abc"))
    (found,) = learned.answer(["abc"])
    for answer in found.answers:
        if answer.ended:
            target = torch.from_numpy(learned.tokenizers.target.encode(answer.text))
            with torch.no_grad():
                log_p = -model(
                    (source[:, None], torch.tensor([3])), targets=target[:, None], lengths=torch.tensor([len(target)])
                ).sum()
            assert answer.score == pytest.approx(float(log_p), abs=1e-3)


def test_what_is_empty_long_or_new_has_a_defined_answer(learned: Transducer) -> None:
    empty, blank, long, new = learned.answer(["", "  ", "abcabcabcabc", "axb"])
    assert [answer.text for answer in empty.answers] == [answer.text for answer in blank.answers] == [""]
    assert (empty.tokens, empty.cut, empty.unknown) == ((), 0, ())
    assert (len(long.tokens), long.cut) == (8, 4)
    assert long.answers[0].text == learned.answer(["abcabcab"])[0].answers[0].text
    assert new.unknown == ("x",)
    assert "\ufffd" not in "".join(answer.text for answer in new.answers)


def test_a_stream_reads_no_more_than_is_ready(learned: Transducer) -> None:
    read: list[str] = []

    def sources() -> Iterable[str]:
        for source in ("a", "b", "ab", "ba", "c"):
            read.append(source)
            yield source

    stream = learned.stream(sources(), ready=lambda: len(read) in (3, 4))
    assert next(stream).source == "a"
    assert read == ["a"]
    assert next(stream).source == "b"
    assert next(stream).source == "ab"
    assert read == ["a", "b", "ab", "ba", "c"][: len(read)]
    assert [found.source for found in stream] == ["ba", "c"]


def test_a_stream_reads_ahead_no_more_than_it_may(learned: Transducer) -> None:
    read: list[str] = []

    def sources() -> Iterable[str]:
        for source in SOURCES:
            read.append(source)
            yield source

    stream = learned.stream(sources(), read_ahead=10)
    next(stream)
    assert len(read) == 10
    assert len([*stream]) == len(SOURCES) - 1


def test_answers_hold_what_they_must(run: Path) -> None:
    (found,) = transduce.transducer(run, prefix="CC", required=["AB"], banned=["BA"], n_best=2).answer(["abc"])
    assert len(found.answers) == 2
    for answer in found.answers:
        assert answer.text.startswith("CC")
        assert "AB" in answer.text
        assert "BA" not in answer.text


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"required": ["AX"]}, "'AX' holds what is not in the vocabulary: 'X'; leave that out"),
        ({"bean": 3}, "search: 1 fault: bean: unknown key, did you mean beam?"),
    ],
)
def test_what_cannot_be_searched_is_told(run: Path, search: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        transduce.transducer(run, **search)


def test_more_is_required_than_an_answer_may_hold(run: Path) -> None:
    with pytest.raises(
        ConfigError, match="required phrases take at least 4 tokens, the maximum length is 2; require less"
    ):
        transduce.transducer(run, max_length=2, required=["ABCA"]).answer(["abc"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (('generation.prefix="AX"',), "'AX' holds what is not in the vocabulary: 'X'"),
        (
            ('generation.prefix="ABCA"', "generation.max_length=2"),
            "generation: prefix has 4 tokens, the maximum length",
        ),
        (("generation.coverage_penalty=1", 'model.attention="none"'), "attention"),
    ],
)
def test_answers_that_cannot_be_had_are_told_before_training(
    tmp_path: Path, overrides: tuple[str, ...], told: str
) -> None:
    (tmp_path / "train.tsv").write_text("abc\tCBA\nbca\tACB\n" * 9)
    with pytest.raises(ConfigError, match=told):
        transduce.train(tmp_path / "run", data={"paths": [str(tmp_path / "train.tsv")]}, overrides=overrides)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_beam_may_be_wider_than_the_vocabulary(run: Path) -> None:
    assert answers(transduce.transducer(run, beam=50).answer(["abc"])) == ["CBA"]


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_run_is_what_every_model_is_loaded_from(run: Path, learned: Transducer) -> None:
    model = EncoderDecoder.load(run)
    assert model.tokenizer_json == (run / "tokenizer.json").read_text("utf-8")
    assert all(
        torch.equal(one, other) for one, other in zip(model.parameters(), learned.models[0].parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.shared_vocabulary=true", "model.tied=all", "model.embedding_size=8"),
        ("data.source_tokenizer=words", "data.target_tokenizer=words", "training.inputs=mixed_losses"),
        ("data.source_tokenizer=bytes", "data.target_tokenizer=bpe", "data.target_vocabulary_size=300"),
        ("training.inputs=scheduled_sampling", "model.input_feeding=true", "model.coverage=true"),
        ("training.inputs=free_running", "model.attention=none", "model.cell=gru"),
        ("training.inputs=professor_forcing", "data.batch_tokens=200"),
        ("model.stop=predicted_length", "model.max_length=8"),
        ("model.stop=bernoulli_halt",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_kind_of_run_trains_and_answers(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    data = {"paths": [str(write_pairs(tmp_path / "train.tsv", SOURCES[:30]))]}
    outcome = train(tmp_path / "run", *FEW_STEPS, *overrides, data=data)
    assert outcome.steps == 4
    found = transduce.transducer(tmp_path / "run", n_best=2).answer(["ab", "c", ""])
    assert [one.source for one in found] == ["ab", "c", ""]
    assert all(answer.score <= 0 for one in found for answer in one.answers)
    results = transduce.evaluate(tmp_path / "run", data["paths"])
    assert (results["sources"], results["pairs"]) == (30, 30)
    assert results["loss"] > 0


def test_going_on_is_never_having_stopped(tmp_path: Path) -> None:
    data = {"paths": [str(write_pairs(tmp_path / "train.tsv", SOURCES[:40]))]}
    keys = (*FEW_STEPS, "model.dropout=0.2", "training.schedule=constant", "training.evaluate_every=2")
    train(tmp_path / "whole", *keys, "training.max_steps=8", data=data)
    train(tmp_path / "parts", *keys, data=data)
    transduce.train(tmp_path / "parts", overrides=["training.max_steps=8"], resume=True, tell=lambda line: None)
    whole, parts = (EncoderDecoder.load(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))
    assert (tmp_path / "parts" / "config.toml").read_text() == (tmp_path / "whole" / "config.toml").read_text()


def test_a_run_does_not_go_on_with_other_pairs(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "train.tsv", SOURCES[:30])
    train(tmp_path / "run", *FEW_STEPS, data={"paths": [str(pairs)]})
    write_pairs(pairs, SOURCES[:40])
    told = r"the train pairs are not those that the run was begun with \(28 then, 38 now\); restore them"
    with pytest.raises(RunFolderError, match=told):
        transduce.train(tmp_path / "run", resume=True)
    (tmp_path / "run" / "data.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"its data.json is missing or damaged; restore it"):
        transduce.train(tmp_path / "run", resume=True)


def test_a_refused_command_leaves_a_run_as_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *FEW_STEPS, data={"paths": [str(write_pairs(tmp_path / "train.tsv", SOURCES[:30]))]})
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for change, told in (
        ("model.hidden_size=50", f"model.hidden_size: the run in {run} has 8, got 50; a run keeps its model: train"),
        ("model.residual=true", f"model.residual: the run in {run} has False, got True; a run keeps its model: train"),
        ("data.source_tokenizer=words", "data.source_tokenizer: .* has 'chars', got 'words'; a run keeps its vocabul"),
    ):
        with pytest.raises(ConfigError, match=f"^{told}"):
            transduce.train(run, overrides=[change], resume=True, tell=lambda line: None)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    transduce.train(run, overrides=["training.max_steps=5"], resume=True, tell=lambda line: None)


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_pairs_of_one_source_are_one_question(run: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "test.tsv"
    pairs.write_text("abc\tXYZ\nbb\tBB\nabc\tCBA\nca\tCC\n")
    asked: dict[str, tuple[str, Any]] = {}
    results = transduce.evaluate(
        run,
        [str(pairs)],
        answered=lambda found, references: asked.update({found.source: (answers([found])[0], references)}),
    )
    assert asked == {"abc": ("CBA", ("XYZ", "CBA")), "bb": ("BB", ("BB",)), "ca": ("AC", ("CC",))}
    assert (results["sources"], results["pairs"], results["left_out"]) == (3, 4, 0)
    assert results["exact_match"] == pytest.approx(2 / 3)
    assert results["token_error_rate"] == pytest.approx(1 / 7)
    assert results["perplexity"] == pytest.approx(2.718281828 ** results["loss"], rel=1e-5)


def test_an_evaluation_is_of_whole_sources(run: Path, tmp_path: Path) -> None:
    """As in training: there is no loss of one source beside an answer to another."""
    pairs = write_pairs(tmp_path / "test.tsv", ["abcabcabcabc"])
    asked: list[Answered] = []
    transduce.evaluate(run, [str(pairs)], answered=lambda found, references: asked.append(found))
    (found,) = asked
    assert (len(found.tokens), found.cut) == (12, 0)


def test_the_metrics_and_the_reading_of_an_evaluation(run: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "test.csv"
    pairs.write_text("from,to\nabc,CBA\n")
    reading = {"source_column": "from", "target_column": "to"}
    results = transduce.evaluate(run, [str(pairs)], metrics=["chrf"], reading=reading, beam=1)
    assert results["chrf"] == 100.0
    assert "exact_match" not in results
    with pytest.raises(UsageError, match=r"metrics: expected some of exact_match, .* got 'f1'"):
        transduce.evaluate(run, [str(pairs)], metrics=["f1"], reading=reading)
    with pytest.raises(ConfigError, match="reading: 1 fault: sauce_column: unknown key, did you mean source_column"):
        transduce.evaluate(run, [str(pairs)], reading={"sauce_column": "a"})


def test_folders_of_others(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    other.mkdir()
    (other / "run.json").write_text('{"format": 1, "task": "lm"}')
    with pytest.raises(RunFolderError, match="expected a run of transduce, got one of lm"):
        transduce.load(other)
    (other / "run.json").write_text('{"format": 1, "task": "transduce"}')
    with pytest.raises(RunFolderError, match="expected a trained model, got none yet"):
        transduce.load(other)


def test_runs_of_one_vocabulary_answer_together(run: Path, tmp_path: Path) -> None:
    alone, twice = transduce.transducer(run), transduce.transducer(run, together=[run, run])
    for one, same in zip(alone.answer(SOURCES[:9]), twice.answer(SOURCES[:9]), strict=True):
        assert [answer.text for answer in one.answers] == [answer.text for answer in same.answers]
        for answer, other in zip(one.answers, same.answers, strict=True):
            assert answer.score == pytest.approx(other.score, abs=1e-5)
            assert answer.attention is not None
            torch.testing.assert_close(answer.attention, other.attention)
    pairs = [str(tmp_path / "pairs.tsv")]
    Path(pairs[0]).write_text("".join(f"{source}\t{source}\n" for source in SOURCES[:9]))
    judged, of_one = transduce.evaluate(run, pairs, together=[run]), transduce.evaluate(run, pairs)
    assert judged == {name: value for name, value in of_one.items() if name not in ("loss", "perplexity")}


def test_runs_of_other_vocabularies_do_not(run: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("xy\tXY\nyx\tYX\nxx\tXX\n")
    transduce.train(
        tmp_path / "other",
        data={"paths": [str(tmp_path / "pairs.tsv")]},
        overrides=["model.hidden_size=4", "training.max_steps=1", "training.evaluate_sources=0"],
        tell=lambda line: None,
    )
    with pytest.raises(RunFolderError, match=r"other: expected the source vocabulary of .*, got another; runs answer"):
        transduce.transducer(run, together=[tmp_path / "other"])
