"""`train transduce`, `evaluate`, `inspect attention` and `demo transduce` as a user types them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from throughtime.configuration import read_toml
from throughtime.tasks import transduce

Call = Callable[..., Any]

KEYS = (
    "model.hidden_size=8", "model.embedding_size=4", "training.batch_size=16", "training.warmup_steps=2",
    "training.max_steps=4", "training.precision=fp32", "training.device=cpu", "generation.max_length=6",
    "generation.beam=2",
)  # fmt: skip
SOURCES = ["".join(word) for length in (1, 2, 3) for word in itertools.product("abc", repeat=length)]
OUTCOME = SimpleNamespace(steps=9, best={"loss": 0.5, "exact_match": 0.75}, best_step=6, stopped_because="max_steps")


@pytest.fixture
def pairs() -> Path:
    """A file of pairs in the working folder."""
    Path("pairs.tsv").write_text("".join(f"{source}\t{source[::-1]}\n" for source in SOURCES))
    return Path("pairs.tsv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("transduce")
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{source[::-1]}\n" for source in SOURCES))
    data = {"paths": [str(folder / "pairs.tsv")]}
    transduce.train(folder / "run", data=data, overrides=KEYS, tell=lambda line: None)
    return folder / "run"


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the training is called with."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def train(run: Path, **options: Any) -> Any:
        options.pop("tell")("what a user should know")
        calls.append((run, options))
        return OUTCOME

    monkeypatch.setattr(transduce, "train", train)
    return calls


# -- train -------------------------------------------------------------------------------------------------------------


def test_train_hands_everything_on(call: Call, handed: list[Any]) -> None:
    line = (
        "train transduce --data a.tsv b.csv --valid c.tsv --run r --source-column x --target-column y --errors replace "
        "--max-length 9 --config f.toml --set model.cell=gru training.batch_size=4 --resume --tensorboard --seed 3"
    )
    called = call(*line.split())
    data = {
        "paths": ["a.tsv", "b.csv"], "source": None, "target": None, "valid": ["c.tsv"], "valid_source": None,
        "valid_target": None, "source_column": "x", "target_column": "y", "errors": "replace", "max_length": 9,
    }  # fmt: skip
    overrides = ["model.cell=gru", "training.batch_size=4", "training.seed=3"]
    options = {"config_file": Path("f.toml"), "overrides": overrides, "resume": True, "tensorboard": True}
    assert handed == [(Path("r"), {"data": data, **options})]
    assert called.out == "r: 9 steps (max_steps); best at step 6: loss 0.5000, exact match 0.7500\n"
    assert called.err == "what a user should know\n"


def test_two_parallel_files_take_the_place_of_others(call: Call, handed: list[Any]) -> None:
    line = "train transduce --run r --source en --target de --valid-source a --valid-target b"
    assert call(*line.split()).code == 0
    assert handed[0][1]["data"] == {
        "paths": [], "source": "en", "target": "de", "valid": [], "valid_source": "a", "valid_target": "b"
    }  # fmt: skip


@pytest.mark.parametrize("given", ["--resume", "--config f.toml", "--set data.paths=['a.tsv']", "--set data.source=a"])
def test_train_needs_no_data_where_it_is_known(call: Call, handed: list[Any], given: str) -> None:
    assert call("train", "transduce", "--run", "r", *given.split()).code == 0
    assert handed[0][1]["data"] == {}


def test_only_the_main_process_tells_the_outcome(
    call: Call, handed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert call("train", "transduce", "--data", "a", "--run", "r").out == ""


NEEDED = "train transduce: no pairs given; name some with --data PATH..., two parallel files with --source FILE "
NEEDED += "--target FILE, or a configuration with --config FILE.toml"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", NEEDED),
        ("--set data.source_column=a", NEEDED),
        ("--source a", "train transduce: --source needs --target, the other of two parallel files; give both"),
        (
            "--data a --valid-target b",
            "train transduce: --valid-target needs --valid-source, the other of two parallel files; give both",
        ),
        (
            "--data a --source b --target c",
            "train transduce: expected --data PATH... or two parallel files, got both; leave one out",
        ),
        ("--data nothing.tsv", "nothing.tsv: no such file or folder; did you mean torn.tsv?"),
        ("--data torn.tsv", "torn.tsv:2: expected a source, a tab and a target, got no tab; mend the line, or give two "
         "parallel files with --source and --target"),
        ("--data empty-source.tsv", "empty-source.tsv:3: the source is empty; write it, or take the pair out"),
        ("--data empty-target.tsv", "empty-target.tsv:1: the target is empty; write it, or take the pair out"),
        ("--source three.txt --target two.txt", "three.txt:3: no partner: three.txt has 3 lines, two.txt 2 lines; give "
         "one target for each source, in the same order"),
        ("--data pairs.tsv --set modle.cell=gru", "--set: 1 fault: modle: unknown key, did you mean model?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(call: Call, pairs: Path, given: str, told: str) -> None:
    Path("torn.tsv").write_text("a\tb\nc\n")
    Path("empty-source.tsv").write_text("a\tb\nc\td\n\tb\n")
    Path("empty-target.tsv").write_text("a\t \n")
    Path("three.txt").write_text("a\nb\nc\n")
    Path("two.txt").write_text("a\nb\n")
    assert call("train", "transduce", "--run", "r", *given.split()) == (2, "", f"throughtime: error: {told}\n")
    assert not Path("r").exists()


def test_from_pairs_to_a_resumed_run(call: Call, pairs: Path) -> None:
    line = ("train", "transduce", "--data", pairs, "--run", "r", "--max-length", 2, "--set", *KEYS)
    called = call(*line)
    assert called.code == 0
    assert called.out.startswith("r: 4 steps (max_steps = 4 reached); best at step 4: loss ")
    assert "pairs to be trained on were left out, the first, pairs.tsv:13: " in called.err
    left_out = Path("r/left-out.tsv").read_text().splitlines()
    assert len(left_out) == int(called.err.partition(" pairs to be trained on")[0].split()[-1].replace(",", ""))
    assert all(len(fields.split("\t")[2]) == 3 for fields in left_out)
    assert call("train", "transduce", "--run", "r", "--resume", "--set", "training.max_steps=6").code == 0
    assert read_toml("r/config.toml")["data"]["max_length"] == 2
    taken = "run folder r: a run is there already; go on with --resume, or choose another --run"
    assert call(*line) == (2, "", f"throughtime: error: {taken}\n")


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_of_pairs(call: Call, trained: Path, pairs: Path) -> None:
    called = call("evaluate", trained, "--data", pairs, "--metrics", "bleu", "chrf", "--beam", 1, "--json")
    results = json.loads(called.out)
    assert results == pytest.approx(transduce.evaluate(trained, [str(pairs)], metrics=["bleu", "chrf"], beam=1))
    assert list(results) == ["loss", "perplexity", "bleu", "chrf", "sources", "pairs", "left_out"]
    table = call("evaluate", trained, "--data", pairs).out.splitlines()
    assert [line.split("  ")[0] for line in table] == [
        "loss", "perplexity", "exact match", "token error rate", "sources", "pairs", "left out"
    ]  # fmt: skip


def test_an_evaluation_says_what_it_read_as_unknown(call: Call, trained: Path) -> None:
    Path("pairs.tsv").write_text("axc\tcxa\nb\tb\n")
    called = call("evaluate", trained, "--data", "pairs.tsv", "--json")
    assert json.loads(called.out)["left_out"] == 0
    told: list[str] = []
    transduce.evaluate(trained, ["pairs.tsv"], tell=told.append)
    assert called.err.splitlines() == told
    assert all("'x'" in line for line in told)
    assert told


def test_an_evaluation_of_columns_and_of_parallel_files(call: Call, trained: Path) -> None:
    Path("pairs.csv").write_text("from,to\nabc,cba\nb,b\n")
    Path("source.txt").write_text("abc\nb\n")
    Path("target.txt").write_text("cba\nb\n")
    of_columns = call("evaluate", trained, "--data", "pairs.csv", "--source-column", "from", "--target-column", "to")
    assert of_columns.code == 0
    assert call("evaluate", trained, "--source", "source.txt", "--target", "target.txt").out == of_columns.out


ASKED = "run folder {run}: a model of pairs is evaluated on pairs; name them with --data, or two parallel files with "
ASKED += "--source and --target"
BOTH = "evaluate: expected --data PATH... or two parallel files (--source, --target), got both; leave one out"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "--data pairs.tsv --metrics rouge",
            "metrics: expected some of exact_match, token_error_rate, bleu, chrf, got 'rouge'",
        ),
        ("--data pairs.tsv --column text", "evaluate: --column is for text; name --source-column and --target-column"),
        ("", ASKED),
        ("--source pairs.tsv", ASKED),
        ("--data pairs.tsv --source pairs.tsv --target pairs.tsv", BOTH),
        ("--data pairs.tsv --target pairs.tsv", BOTH),
    ],
)
def test_mistakes_of_an_evaluation(call: Call, trained: Path, pairs: Path, given: str, told: str) -> None:
    told = told.format(run=trained)
    assert call("evaluate", trained, *given.split()) == (2, "", f"throughtime: error: {told}\n")


@pytest.mark.parametrize("option", ["--metrics bleu", "--beam 3", "--source a", "--target-column b"])
def test_what_is_for_pairs_alone(call: Call, tiny_run: Path, option: str) -> None:
    told = f"evaluate: {option.split()[0]} is for runs of train transduce, which {tiny_run} is not; leave it out"
    assert call("evaluate", tiny_run, "--data", "a", *option.split()) == (2, "", f"throughtime: error: {told}\n")


# -- inspect attention -------------------------------------------------------------------------------------------------


def test_attention_is_drawn_and_told(call: Call, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    called = call("inspect", "attention", run, "--input", "abxb")
    answer, *lines = called.out.splitlines()
    assert answer == transduce.transducer(run).answer(["abxb"])[0].answers[0].text
    assert all(line.split()[-1] in ("'a'", "'b'", "'\ufffd'") for line in lines)
    assert called.err == f"not in the vocabulary, read as unknown: 'x'\npicture: {run / 'attention.png'}\n"
    assert (run / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_attention_of_a_source_that_was_cut(call: Call, trained: Path) -> None:
    called = call("inspect", "attention", trained, "--input", "ab" * 101, "--out", "a.svg")
    assert called.err == "cut at 200 tokens (data.max_length): the last 2 were not read\npicture: a.svg\n"


def test_attention_as_json(call: Call, trained: Path) -> None:
    called = call("inspect", "attention", trained, "--input", "ab", "--answer", 2, "--out", "a.svg", "--json")
    found = json.loads(called.out)
    assert found["answer"] == transduce.transducer(trained, n_best=2).answer(["ab"])[0].answers[1].text
    assert [len(row) for row in found["weights"]] == [2] * len(found["answer_tokens"])
    assert Path("a.svg").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--input ab --out a.gif", "picture a.gif: expected a name that ends in .png, .svg, .pdf, got '.gif'"),
        ("--input=", "attention: the source is empty, got ''; give a text to answer"),
        ("", "missing option '--input'; see throughtime inspect attention --help"),
    ],
)
def test_mistakes_of_attention(call: Call, trained: Path, given: str, told: str) -> None:
    assert call("inspect", "attention", trained, *given.split()) == (2, "", f"throughtime: error: {told}\n")


def test_attention_is_of_models_of_pairs(call: Call, tiny_run: Path) -> None:
    told = f"inspect attention: expected a run of a model of pairs, got {tiny_run}, a language model; "
    told += f"use throughtime generate {tiny_run} --prompt TEXT"
    assert call("inspect", "attention", tiny_run, "--input", "a") == (2, "", f"throughtime: error: {told}\n")


# -- demo --------------------------------------------------------------------------------------------------------------


def test_the_demo_of_dates(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from throughtime.tasks import demo_transduce
    from throughtime.tasks.dates import Use

    def example(question: str, source: str, answer: str) -> Any:
        answered = SimpleNamespace(source=source, answers=[SimpleNamespace(text=answer)])
        use = Use("d MMMM y", "de", frozenset({"de"}))
        return demo_transduce.Example(question, use, "2021-05-04", answered)  # type: ignore[arg-type]

    questions = [demo_transduce.Question(name, 2000, 0.5, 1.0) for name in ("days", "forms", "languages")]
    calls: list[tuple[Path, float]] = []

    def demo(run: Path, minutes: float, tell: Any) -> Any:
        calls.append((run, minutes))
        return demo_transduce.Demonstration(
            OUTCOME,  # type: ignore[arg-type]
            questions,
            demo_transduce.Question("forms", 10, 0.25, 1.0),
            [example("days", "4. Mai 2021", "2021-05-04"), example("forms", "4 V 21", "2021-05-14")],
            0.1,
        )

    monkeypatch.setattr(demo_transduce, "demo", demo)
    called = call("demo", "transduce", "--minutes", 0.5)
    assert calls == [(Path("runs/demo-transduce"), 0.5)]
    lines = called.out.splitlines()
    trained_on = "(100% of their months' names were trained on)"
    assert f"   50.0%  of 2,000: days that it has not seen {trained_on}" in lines
    assert "What does not tell its day, as 02/03/2019, was left out: 10.0% of what was kept." in lines
    assert "  de           4. Mai 2021  ->  2021-05-04" in lines
    assert "  de           4 V 21  ->  2021-05-14  (wrong: 2021-05-04)" in lines
    assert "  throughtime inspect attention runs/demo-transduce --input" in called.out


def test_options_of_a_demo_stand_behind_its_name(call: Call) -> None:
    told = "demo: options of transduce stand behind its name: throughtime demo transduce --minutes 1"
    assert call("demo", "--minutes", 1, "transduce") == (2, "", f"throughtime: error: {told}\n")
