"""`throughtime predict` as a user types it."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from throughtime.cli.incoming import Incoming
from throughtime.tasks import transduce
from throughtime.tasks.transducer import Transducer

Call = Callable[..., Any]

KEYS = (
    "model.hidden_size=32", "model.embedding_size=16", "training.batch_size=32", "training.learning_rate=0.02",
    "training.warmup_steps=5", "training.max_steps=80", "training.precision=fp32", "training.device=cpu",
    "generation.max_length=8", "generation.beam=3",
)  # fmt: skip
SOURCES = ["".join(word) for length in (1, 2, 3, 4) for word in itertools.product("abc", repeat=length)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes strings backwards, in capitals."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "train.tsv").write_text("".join(f"{source}\t{source[::-1].upper()}\n" for source in SOURCES))
    pairs = [str(folder / "train.tsv")]
    data = {"paths": pairs, "valid": pairs, "max_length": 8}
    transduce.train(folder / "run", data=data, overrides=KEYS, tell=lambda line: None)
    return folder / "run"


@pytest.fixture
def typed_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str | bytes], None]]:
    """Put something on standard input."""
    with ExitStack() as opened:

        def put(text: str | bytes) -> None:
            (tmp_path / "typed").write_bytes(text if isinstance(text, bytes) else text.encode())
            monkeypatch.setattr(sys, "stdin", opened.enter_context(open(tmp_path / "typed", encoding="utf-8")))

        yield put


@pytest.fixture
def words() -> Path:
    """Some sources, one of them empty."""
    Path("words.txt").write_text("abc\n\nbb\nca\n")
    return Path("words.txt")


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_line_for_each_source(call: Call, run: Path, words: Path) -> None:
    called = call("predict", run, "--input", words)
    assert (called.code, called.out) == (0, "CBA\n\nBB\nAC\n")
    assert called.err.splitlines() == [
        "4 sources answered",
        "1 source empty: an empty answer stands for each: words.txt:2",
    ]


def test_the_best_answers_with_their_scores(call: Call, run: Path, words: Path) -> None:
    lines = [line.split("\t") for line in call("predict", run, "--input", words, "--n-best", 3).out.splitlines()]
    assert [line[:2] for line in lines] == [["1", "1"], ["1", "2"], ["1", "3"], ["2", "1"], *(
        [number, rank] for number in "34" for rank in "123"
    )]  # fmt: skip
    expected = transduce.transducer(run, n_best=3).answer(["abc", "", "bb", "ca"])
    answers = [answer for found in expected for answer in found.answers]
    assert [line[3] for line in lines] == [answer.text for answer in answers]
    scores = [f"{answer.score:.4f}" for answer in answers]
    assert [line[2] for line in lines] == [*scores[:3], "", *scores[4:]]
    for number in "134":
        scores = [float(line[2]) for line in lines if line[0] == number]
        assert scores == sorted(scores, reverse=True)


def test_scores_alone(call: Call, run: Path, words: Path) -> None:
    lines = call("predict", run, "--input", words, "--scores").out.splitlines()
    assert [re.sub(r"-?[\d.]{6,}", "S", line) for line in lines] == [
        "1\t1\tS\tCBA",
        "2\t1\t\t",
        "3\t1\tS\tBB",
        "4\t1\tS\tAC",
    ]


def test_json_has_all_of_it(call: Call, run: Path) -> None:
    Path("words.txt").write_text("axc\nabcabcabca\n\n")
    called = call("predict", run, "--input", "words.txt", "--json", "--n-best", 2, "--length-penalty", 0.5)
    new, long, empty = (json.loads(line) for line in called.out.splitlines())
    assert (new["source"], new["unknown"], new["cut"]) == ("axc", ["x"], 0)
    assert (long["unknown"], long["cut"]) == ([], 2)
    (nothing,) = empty["answers"]
    assert (nothing["text"], nothing["score"], nothing["ranking"]) == ("", None, None)
    assert len(new["answers"]) == 2
    for answer in [*new["answers"], *long["answers"]]:
        assert set(answer) == {"text", "score", "ranking", "tokens", "token_scores", "ended"}
        assert sum(answer["token_scores"]) == pytest.approx(answer["score"])
        tokens = len(answer["tokens"])
        assert answer["ranking"] == pytest.approx(answer["score"] / ((5 + tokens) / 6) ** 0.5)
    assert called.err.splitlines() == [
        "3 sources answered",
        "1 source empty: an empty answer stands for each: words.txt:3",
        "1 source cut at 8 tokens (data.max_length): words.txt:2",
        *([] if long["answers"][0]["ended"] else [called.err.splitlines()[3]]),
        "not in the vocabulary, read as unknown: 'x' (1)",
    ]


def test_the_options_reach_the_search(call: Call, run: Path, monkeypatch: pytest.MonkeyPatch, words: Path) -> None:
    searches: list[dict[str, Any]] = []
    original = transduce.transducer

    def recording(run: Path, **search: Any) -> Transducer:
        searches.append(search)
        return original(run, **search)

    monkeypatch.setattr(transduce, "transducer", recording)
    options = "--beam 4 --n-best 2 --max-length 6 --minimum-length 1 --length-penalty 0.2 --coverage-penalty 0.1 "
    options += "--no-repeat-ngram 3 --prefix A --require B CA --ban CC BBB"
    assert call("predict", run, "--with", run, "--input", words, *options.split()).code == 0
    assert searches == [
        {
            "together": [run], "beam": 4, "n_best": 2, "max_length": 6, "minimum_length": 1, "length_penalty": 0.2,
            "coverage_penalty": 0.1, "no_repeat_ngram": 3, "prefix": "A", "required": ["B", "CA"],
            "banned": ["CC", "BBB"],
        }
    ]  # fmt: skip


def test_answers_of_which_none_is_allowed_and_answers_without_an_end(call: Call, run: Path, words: Path) -> None:
    called = call("predict", run, "--input", words, "--max-length", 2, "--minimum-length", 2)
    assert called.out.splitlines()[0] == "CB"
    told = (
        "3 sources with an answer that had not ended at 2 tokens (--max-length): words.txt:1, words.txt:3, words.txt:4"
    )
    assert told in called.err.splitlines()
    called = call("predict", run, "--input", words, "--ban", "A", "B", "C", "--minimum-length", 1)
    assert called.out == "\n\n\n\n"
    assert "3 sources without an answer that is allowed: words.txt:1, words.txt:3, words.txt:4" in called.err


def test_an_answer_stays_on_its_line(call: Call, tmp_path: Path) -> None:
    rows = [{"source": source, "target": "a\tb\nc\r"} for source in "abcdefgh" * 4]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"paths": ["train.jsonl"]}
    transduce.train(tmp_path / "ends", data=data, overrides=KEYS, tell=lambda line: None)
    Path("words.txt").write_text("a\nb\n")
    assert call("predict", tmp_path / "ends", "--input", "words.txt").out == "a\\tb\\nc\\r\n" * 2
    assert call("predict", tmp_path / "ends", "--input", "words.txt", "--scores").out.count("\t") == 6
    texts = [
        json.loads(line)
        for line in call("predict", tmp_path / "ends", "--input", "words.txt", "--json").out.splitlines()
    ]
    assert [found["answers"][0]["text"] for found in texts] == ["a\tb\nc\r"] * 2


def test_help_promises_no_defaults_but_those_of_the_run(call: Call) -> None:
    told = " ".join(call("predict", "--help").out.partition("Options:")[2].split())
    for option in ("beam", "n-best", "max-length", "minimum-length", "length-penalty", "coverage-penalty"):
        about = told.partition(f" --{option} ")[2].partition(" --")[0]
        assert re.findall(r"\[default: [^\]]*\]", about) == ["[default: as in training]"], option


# -- where it comes from and goes to -----------------------------------------------------------------------------------


def test_sources_of_columns_and_of_standard_input(call: Call, run: Path, typed_in: Callable[[str], None]) -> None:
    Path("pairs.csv").write_text("id,word\n1,abc\n2,bb\n")
    assert call("predict", run, "--input", "pairs.csv", "--source-column", "word").out == "CBA\nBB\n"
    typed_in("abc\n\nbb")
    called = call("predict", run)
    assert (called.out, called.err.splitlines()[1]) == (
        "CBA\n\nBB\n",
        "1 source empty: an empty answer stands for each: standard input:2",
    )
    typed_in("id\tword\n1\tabc\n")
    assert call("predict", run, "--source-column", "word").out == "CBA\n"


def test_standard_input_is_answered_as_it_comes(run: Path) -> None:
    command = [sys.executable, "-m", "throughtime", "predict", str(run)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for source in ("abc", "bb"):
            process.stdin.write(f"{source}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{source[::-1].upper()}\n"
        assert process.communicate("ca\n") == ("AC\n", "3 sources answered\n")


def test_incoming_lines_are_those_of_the_stream() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as stream:
        incoming = Incoming(stream)
        assert not incoming.ready()
        os.write(writing, b"one\ntw")
        assert incoming.ready()
        assert incoming.readline(100) == b"one\n"
        assert not incoming.ready()
        os.write(writing, b"o\n\nthree")
        assert incoming.ready()
        assert [incoming.readline(100), incoming.readline(100)] == [b"two\n", b"\n"]
        assert not incoming.ready()
        os.close(writing)
        assert incoming.ready()
        assert [incoming.readline(100), incoming.readline(100)] == [b"three", b""]


def test_a_line_without_an_end_is_handed_on_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 300_000)
    with open(tmp_path / "long", "rb") as stream:
        assert 1000 < len(Incoming(stream).readline(1000)) <= 1000 + (1 << 16)


def test_a_file_is_replaced_once_all_is_answered(call: Call, run: Path, words: Path) -> None:
    Path("answers.txt").write_text("old")
    called = call("predict", run, "--input", words, "--output", "answers.txt")
    assert (called.code, called.out) == (0, "")
    assert Path("answers.txt").read_text() == "CBA\n\nBB\nAC\n"
    assert sorted(path.name for path in Path().iterdir()) == ["answers.txt", "words.txt"]


def test_what_is_answered_before_a_fault_is_kept_beside(call: Call, run: Path) -> None:
    Path("words.txt").write_bytes(b"abc\n" * 1100 + b"\xff\n")
    Path("answers.txt").write_text("old")
    for name in ("answers.txt.partial", "answers.txt.partial-2"):
        called = call("predict", run, "--input", "words.txt", "--output", "answers.txt")
        assert called.code == 2
        note, error = called.err.splitlines()
        assert note == f"throughtime: note: answers.txt is as it was; the answers so far are in {name}"
        assert error.startswith("throughtime: error: words.txt: line 1101, byte 4400: not UTF-8")
        assert Path("answers.txt").read_text() == "old"
        assert Path(name).read_text() == "CBA\n" * 1100
    note, _ = call("predict", run, "--input", "words.txt", "--output", "new.txt").err.splitlines()
    assert note == "throughtime: note: new.txt is not there yet; the answers so far are in new.txt.partial"


def test_an_interrupt_keeps_what_is_answered(
    call: Call, run: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Transducer.stream

    def interrupted(self: Transducer, *arguments: Any, **options: Any) -> Any:
        yield from itertools.islice(original(self, *arguments, **options), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Transducer, "stream", interrupted)
    called = call("predict", run, "--input", words, "--output", "answers.txt")
    assert called.code == 130
    assert called.err.splitlines()[1] == "throughtime: error: interrupted"
    assert Path("answers.txt.partial").read_text() == "CBA\n\n"
    assert not Path("answers.txt").exists()


def test_devices_are_written_to_as_they_are(call: Call, run: Path, words: Path) -> None:
    assert call("predict", run, "--input", words, "--output", os.devnull).code == 0
    assert not Path(os.devnull).is_file()


# -- mistakes ----------------------------------------------------------------------------------------------------------


LOST = "is the --input, which would be lost; give the answers another file"
SHORTER = "require less, or allow a greater length"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--input words.txt --output words.txt", f"predict: --output words.txt {LOST}"),
        ("--input words.txt --output link.txt", f"predict: --output link.txt {LOST}"),
        ("--input words.txt --output .", "predict: --output . is a folder; name a file in it"),
        ("--input .", "predict: --input . is a folder; name a file in it"),
        ("--input nothing.txt", "nothing.txt: no such file or folder; did you mean link.txt?"),
        ("--input empty.txt", "empty.txt: the file is empty; give a file with text in it"),
        (
            "--input words.txt --require ABCAB --max-length 4",
            f"generation: required phrases take at least 5 tokens, the maximum length is 4; {SHORTER}",
        ),
        (
            "--input words.txt --require Q",
            "generation.required (--require): 'Q' holds what is not in the vocabulary: 'Q'; leave that out",
        ),
        (
            "--input words.txt --prefix ABC --ban BC",
            "generation.prefix (--prefix): 'ABC' holds 'BC', which generation.banned (--ban) forbids; leave one of "
            "them out",
        ),
        (
            "--input words.txt --prefix ABC --max-length 2",
            "generation: prefix has 3 tokens, the maximum length is 2; allow a greater length",
        ),
        (
            "--input words.txt --minimum-length 9",
            "search: 1 fault: minimum_length must be at most max_length=8, got 9",
        ),
    ],
)
def test_mistakes_are_one_line(call: Call, run: Path, words: Path, options: str, told: str) -> None:
    Path("link.txt").symlink_to(words)
    Path("empty.txt").touch()
    assert call("predict", run, *options.split()) == (2, "", f"throughtime: error: {told}\n")
    assert words.read_text() == "abc\n\nbb\nca\n"
    assert not list(Path().glob("*.partial*"))


def test_what_comes_in_must_be_text(call: Call, run: Path, typed_in: Callable[[str | bytes], None]) -> None:
    typed_in("")
    told = "standard input: no text to predict from; give one source a line"
    assert call("predict", run) == (2, "", f"throughtime: error: {told}\n")
    typed_in(b"ab\n\xff\n")
    assert "error: standard input: line 2, byte 3: not UTF-8" in call("predict", run).err
    typed_in(b"ab\n\xff\n")
    called = call("predict", run, "--errors", "replace")
    assert called.code == 0


def test_an_output_that_cannot_be_written(call: Call, run: Path, words: Path) -> None:
    called = call("predict", run, "--input", words, "--output", "words.txt/answers.txt")
    assert called.code == 1
    assert called.err.startswith("throughtime: error: cannot write words.txt/answers.txt: ")


def test_the_wrong_command_for_a_run(call: Call, run: Path, tiny_run: Path) -> None:
    told = f"predict: expected a run of a model of pairs, got {tiny_run}, a language model; "
    told += f"use throughtime generate {tiny_run} --prompt TEXT"
    assert call("predict", tiny_run) == (2, "", f"throughtime: error: {told}\n")
    told = f"generate: expected a run of a language model, got {run}, a model of pairs; "
    told += f"use throughtime predict {run} --input FILE"
    assert call("generate", run) == (2, "", f"throughtime: error: {told}\n")
    assert (
        call("predict", "nothing").err
        == "throughtime: error: run folder nothing: no such folder; check the path, or train into it first\n"
    )


def test_several_runs_answer_together(call: Call, run: Path, words: Path, tiny_run: Path) -> None:
    together = call("predict", run, "--with", run, run, "--input", words)
    assert (together.code, together.out) == (0, call("predict", run, "--input", words).out)
    refused = call("predict", run, "--with", tiny_run, "--input", words)
    assert refused.code == 2
    assert "throughtime generate" in refused.err
