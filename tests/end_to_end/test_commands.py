"""Train, evaluate, generate: what the commands print and leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = Callable[..., Any]
FILES = {
    "run.json", "config.toml", "config.json", "model.safetensors", "tokenizer.json", "data.json", "metrics.jsonl",
    "curve.png", "checkpoints",
}  # fmt: skip


def test_the_files_of_a_run(trained: Path) -> None:
    assert {entry.name for entry in trained.iterdir()} == FILES
    assert [entry.name for entry in sorted((trained / "checkpoints").iterdir())] == ["step-00000030", "step-00000040"]
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")
    entries = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["kind"], entry["step"]) for entry in entries if entry["kind"] == "evaluation"] == [
        ("evaluation", 20),
        ("evaluation", 40),
    ]
    losses = [entry["loss"] for entry in entries if entry["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5
    assert not any(path.suffix in {".pt", ".pkl", ".bin"} for path in trained.rglob("*"))


def test_evaluate(typed: Call, trained: Path) -> None:
    done = typed("evaluate", trained, "--json", "--data", "other.txt")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found.keys() >= {"nats_per_token", "bits_per_byte", "perplexity", "tokens"}
    size = Path("other.txt").stat().st_size
    assert (found["bytes"], found["tokens"], found["documents"]) == (size, size + 1, 1)
    assert 3 < found["bits_per_byte"] < 7


def test_evaluate_reads_standard_input(typed: Call, trained: Path, call: Call) -> None:
    named = call("evaluate", trained, "--data", "other.txt", "--json")
    piped = typed("evaluate", "--data", "-", "--json", trained, text=Path("other.txt").read_text())
    assert json.loads(piped.out) == json.loads(named.out)


def test_generate(typed: Call, trained: Path, call: Call) -> None:
    options = ("--length", 40, "--seed", 5)
    first = typed("generate", trained, "--prompt", "def ", *options)
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("def ")
    assert first.out.endswith("\n")
    assert call("generate", *options, "--prompt=def ", trained) == first
    assert typed("generate", trained, "--prompt", "-", *options, text="def ").out == first.out
    assert call("generate", trained, "--prompt", "def ", "--length", 40, "--seed", 6).out != first.out


def test_generate_several_until_a_stop_string(trained: Path, call: Call) -> None:
    options = ("--samples", 3, "--seed", 1, "--length", 60, "--json")
    whole = [json.loads(line) for line in call("generate", trained, *options).out.splitlines()]
    assert [entry["sample"] for entry in whole] == [0, 1, 2]
    assert len({entry["text"] for entry in whole}) == 3
    stopped = [json.loads(line) for line in call("generate", trained, *options, "--stop", "e").out.splitlines()]
    for entry, before in zip(stopped, whole, strict=True):
        assert entry["text"] == before["text"].partition("e")[0]
        assert entry["ended"] == ("stop" if "e" in before["text"] else before["ended"])


def test_greedy_text_needs_no_seed(trained: Path, call: Call) -> None:
    texts = {call("generate", trained, "--temperature", 0, "--length", 20).out for _ in range(2)}
    assert len(texts) == 1


def test_unusual_texts(settings: tuple[str, ...], call: Call, tmp_path: Path) -> None:
    """A name with spaces, CRLF line ends, emoji, a byte order mark; each character comes back."""
    text = "\ufeff" + "Grüße 👩‍👩‍👧 — two\r\nlines\r\n" * 60
    Path("my text.txt").write_bytes(text.encode())
    run = Path("a run")
    options = (*settings, "data.tokenizer=chars", "training.max_steps=2")
    assert call("train", "lm", "--data", "my text.txt", "--run", run, *options).code == 0
    done = call("generate", run, "--prompt", "👩‍👩‍👧\r\n", "--length", 1, "--seed", 0)
    assert done.code == 0
    assert done.out.startswith("👩‍👩‍👧\r\n")
    found = json.loads(call("evaluate", run, "--data", "my text.txt", "--json").out)
    assert found["bytes"] == len(text.encode()) - 3
    assert found["characters"] == len(text) - 1


def test_rows_of_a_packed_table(settings: tuple[str, ...], call: Call) -> None:
    import gzip

    rows = "".join(json.dumps({"id": n, "body": f"row {n} of the table\n" * 9}) + "\n" for n in range(30))
    Path("rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    options = ("--column", "body", *settings, "training.max_steps=2")
    assert call("train", "lm", "--data", "rows.jsonl.gz", "--run", "r", *options).code == 0
    sizes = json.loads(Path("r/data.json").read_text())
    assert sizes["train"]["documents"] + sizes["valid"]["documents"] == 30
