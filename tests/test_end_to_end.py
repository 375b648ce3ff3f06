"""The commands as a user types them, each in a process of its own, on small real text.

Errors that need no process of their own are typed into `main`, which is what the command calls.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from throughtime.storage import sha256_file

SET = (
    "--set", "model.hidden_size=16", "model.embedding_size=8", "model.dropout=0.1", "training.batch_size=4",
    "training.window=16", "training.warmup_steps=5", "training.precision=fp32", "training.device=cpu",
)  # fmt: skip
FILES = {
    "run.json", "config.toml", "config.json", "model.safetensors", "tokenizer.json", "data.json", "metrics.jsonl",
    "curve.png", "checkpoints",
}  # fmt: skip


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def start(*arguments: object, launcher: tuple[str, ...] = (), **options: object) -> subprocess.Popen[bytes]:
    """`python -m throughtime ...`, under `launcher` where one is given.

    The `--` is for torchrun, which otherwise takes our --run for an abbreviation of an option of its own.
    """
    command = [sys.executable, *launcher, "-m", *(["--"] if launcher else []), "throughtime", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **options)  # type: ignore[call-overload, no-any-return]


def typed(*arguments: object, text: str = "", launcher: tuple[str, ...] = ()) -> Done:
    """Type a command line and wait for its end; `text` is its standard input."""
    process = start(*arguments, launcher=launcher)
    out, err = process.communicate(text.encode(), timeout=300)
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are those of a fresh folder with texts in it."""
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)


def write_texts(folder: Path) -> None:
    (folder / "book.txt").write_text(inspect.getsource(shlex) + inspect.getsource(random), "utf-8")
    (folder / "other.txt").write_text(inspect.getsource(textwrap), "utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, and the text it was trained on beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_texts(folder)
    done = typed(
        "train", "lm", "--run", folder / "run", *SET, "training.max_steps=40", "training.learning_rate=0.01",
        "training.evaluate_every=20", "training.checkpoint_every=10", "--data", folder / "book.txt",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert re.fullmatch(
        r".*/run: 40 steps \(max_steps = 40 reached\); best at step [24]0: loss .*, bits per byte .*\n", done.out
    )
    assert done.err.count("held-out") == 2
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged or gone on with."""
    shutil.copytree(trained, tmp_path / "run")
    return Path("run")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Type a command line into this process."""
    from throughtime.cli.main import main

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return run


# -- train, evaluate, generate -------------------------------------------------------------------------------------


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


def test_evaluate(trained: Path) -> None:
    done = typed("evaluate", trained, "--json", "--data", "other.txt")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found.keys() >= {"nats_per_token", "bits_per_byte", "perplexity", "tokens"}
    size = Path("other.txt").stat().st_size
    assert (found["bytes"], found["tokens"], found["documents"]) == (size, size + 1, 1)
    assert 3 < found["bits_per_byte"] < 7


def test_evaluate_reads_standard_input(trained: Path, call: Callable[..., Done]) -> None:
    named = call("evaluate", trained, "--data", "other.txt", "--json")
    piped = typed("evaluate", "--data", "-", "--json", trained, text=Path("other.txt").read_text())
    assert json.loads(piped.out) == json.loads(named.out)


def test_generate(trained: Path, call: Callable[..., Done]) -> None:
    options = ("--length", 40, "--seed", 5)
    first = typed("generate", trained, "--prompt", "def ", *options)
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("def ")
    assert first.out.endswith("\n")
    assert call("generate", *options, "--prompt=def ", trained) == first
    assert typed("generate", trained, "--prompt", "-", *options, text="def ").out == first.out
    assert call("generate", trained, "--prompt", "def ", "--length", 40, "--seed", 6).out != first.out


def test_generate_several_until_a_stop_string(trained: Path, call: Callable[..., Done]) -> None:
    options = ("--samples", 3, "--seed", 1, "--length", 60, "--json")
    whole = [json.loads(line) for line in call("generate", trained, *options).out.splitlines()]
    assert [entry["sample"] for entry in whole] == [0, 1, 2]
    assert len({entry["text"] for entry in whole}) == 3
    stopped = [json.loads(line) for line in call("generate", trained, *options, "--stop", "e").out.splitlines()]
    for entry, before in zip(stopped, whole, strict=True):
        assert entry["text"] == before["text"].partition("e")[0]
        assert entry["ended"] == ("stop" if "e" in before["text"] else before["ended"])


def test_greedy_text_needs_no_seed(trained: Path, call: Callable[..., Done]) -> None:
    texts = {call("generate", trained, "--temperature", 0, "--length", 20).out for _ in range(2)}
    assert len(texts) == 1


def test_unusual_texts(call: Callable[..., Done], tmp_path: Path) -> None:
    """A name with spaces, CRLF line ends, emoji, a byte order mark; each character comes back."""
    text = "\ufeff" + "Grüße 👩‍👩‍👧 — two\r\nlines\r\n" * 60
    Path("my text.txt").write_bytes(text.encode())
    run = Path("a run")
    options = (*SET, "data.tokenizer=chars", "training.max_steps=2")
    assert call("train", "lm", "--data", "my text.txt", "--run", run, *options).code == 0
    done = call("generate", run, "--prompt", "👩‍👩‍👧\r\n", "--length", 1, "--seed", 0)
    assert done.code == 0
    assert done.out.startswith("👩‍👩‍👧\r\n")
    found = json.loads(call("evaluate", run, "--data", "my text.txt", "--json").out)
    assert found["bytes"] == len(text.encode()) - 3
    assert found["characters"] == len(text) - 1


def test_rows_of_a_packed_table(call: Callable[..., Done]) -> None:
    import gzip

    rows = "".join(json.dumps({"id": n, "body": f"row {n} of the table\n" * 9}) + "\n" for n in range(30))
    Path("rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    options = ("--column", "body", *SET, "training.max_steps=2")
    assert call("train", "lm", "--data", "rows.jsonl.gz", "--run", "r", *options).code == 0
    sizes = json.loads(Path("r/data.json").read_text())
    assert sizes["train"]["documents"] + sizes["valid"]["documents"] == 30


# -- stopping and going on -----------------------------------------------------------------------------------------


def test_going_on_after_the_end(run: Path, call: Callable[..., Done]) -> None:
    done = call("train", "lm", "--run", run, "--data", run.parent / "book.txt", "--resume")
    assert done.code == 0
    assert "run: 40 steps (max_steps = 40 reached)" in done.out
    longer = call("train", "lm", "--resume", "--run", run, "--set", "training.max_steps=45")
    assert longer.code == 0
    assert "resuming at step 40" in longer.err
    assert "run: 45 steps (max_steps = 45 reached)" in longer.out


LONG = (*SET, "training.max_steps=1500", "training.checkpoint_every=40", "training.evaluate_every=400")


def digests(run: Path) -> dict[str, str]:
    """Of the published model, and of all tensors at the last step."""
    files = [run / "model.safetensors", *sorted((run / "checkpoints" / "step-00001500").glob("*.safetensors"))]
    assert len(files) == 4
    return {str(file.relative_to(run)): sha256_file(file) for file in files}


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until there is something in the folder `path`."""
    while not (path.is_dir() and any(entry.name[0] != "." for entry in path.iterdir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    write_texts(folder)
    done = typed("train", "lm", "--data", folder / "book.txt", "--run", folder / "run", *LONG)
    assert done.code == 0, done.err
    return digests(folder / "run")


@pytest.mark.slow
def test_killed_at_random_moments(uninterrupted: dict[str, str]) -> None:
    moments = random.Random(7)
    command = ("train", "lm", "--data", "book.txt", "--run", "run", *LONG)
    kills = 0
    for attempt in range(4):
        process = start(*command, *(["--resume"] if attempt else []))
        if attempt == 0:
            wait_for(process, Path("run/checkpoints"))
        time.sleep(moments.uniform(0, 1) if attempt == 0 else moments.uniform(1.5, 5))
        process.kill()
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
    assert kills
    done = typed(*command, "--resume")
    assert done.code == 0, done.err
    assert digests(Path("run")) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_signals_save(number: signal.Signals, name: str, code: int, uninterrupted: dict[str, str]) -> None:
    command = ("train", "lm", "--data", "book.txt", "--run", "run", *LONG)
    process = start(*command)
    wait_for(process, Path("run/checkpoints"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    last = err.decode().splitlines()[-1]
    assert re.fullmatch(
        rf"throughtime: error: training: stopped by {name} at step \d+; all is saved in run: "
        r"go on with the same command and --resume",
        last,
    )
    assert b"Traceback" not in err
    if number == signal.SIGTERM:
        assert typed(*command, "--resume").code == 0
        assert digests(Path("run")) == uninterrupted


@pytest.mark.slow
def test_two_processes() -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = ("train", "lm", "--data", "book.txt", "--run", "run", *SET, "training.evaluate_every=10")
    done = typed(*command, "training.max_steps=20", launcher=torchrun)
    assert done.code == 0, done.err
    assert {entry.name for entry in Path("run").iterdir()} == FILES
    assert done.out.count("20 steps (max_steps = 20 reached)") == 1
    assert done.err.count("held-out") == 2
    ranks = sorted(path.name for path in Path("run/checkpoints/step-00000020").glob("rank-*"))
    assert ranks == ["rank-00000.safetensors", "rank-00001.safetensors"]
    entries = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "evaluation"] == [10, 20]
    longer = typed(*command, "training.max_steps=30", "--resume", launcher=torchrun)
    assert longer.code == 0, longer.err
    assert "resuming at step 20\n" in longer.err
    alone = typed("evaluate", "run", "--data", "other.txt", "--json")
    assert json.loads(alone.out)["bits_per_byte"] < 8


# -- errors: one line, an exit code, no traceback ------------------------------------------------------------------


def fails(done: Done, code: int, line: str) -> None:
    """One line of error, behind the lines of progress; `line` is a pattern for the whole of it."""
    last = done.err.splitlines()[-1]
    assert re.fullmatch(f"throughtime: error: {line}", last), last
    assert done.code == code
    assert done.err.count("throughtime: error") == 1
    assert "Traceback" not in done.err
    assert done.out == ""


def test_no_traceback_from_a_real_process() -> None:
    done = typed("train", "lm", "--data", "zzz", "--run", "run")
    fails(done, 2, r"zzz: no such file or folder; check the path")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"bok\.txt: no such file or folder; did you mean book\.txt\?"),
        (b"", r"bok\.txt: the file is empty; give a file with text in it"),
        (b"a", r"bok\.txt: no text to read \(split 'train'\); give more text"),
        (b"abc\0" * 99, r"bok\.txt: a binary file \(a NUL byte at byte 3\); give files of UTF-8 text"),
        (
            b"fine\n" * 40 + b"caf\xe9\n" * 40,
            r"bok\.txt: line 41, byte 203: not UTF-8 \(0xe9\); convert the file, or --errors replace goes on .*",
        ),
        (
            b"short\n" * 5,
            r"data: the text is too short: 4 rows of one window need 65 tokens, got \d+; lower "
            r"training\.batch_size \(4\) or training\.window \(16\), or give more text",
        ),
    ],
    ids=["missing", "empty", "one byte", "binary", "not UTF-8", "short"],
)
def test_bad_texts(call: Callable[..., Done], content: bytes | None, line: str) -> None:
    if content is not None:
        Path("bok.txt").write_bytes(content)
    fails(call("train", "lm", "--data", "bok.txt", "--run", "run", *SET), 2, line)
    assert not Path("run").exists()


def test_going_on_with_bytes_that_are_no_utf8(call: Callable[..., Done]) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9 au lait\n" * 99)
    options = ("--errors", "replace", *SET, "training.max_steps=1")
    assert call("train", "lm", "--data", "latin.txt", "--run", "run", *options).code == 0


def test_a_folder_with_a_binary_file_in_it(call: Callable[..., Done]) -> None:
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("fine\n" * 99)
    Path("texts/b.txt").write_bytes(b"\x7fELF\0\0\0")
    Path("texts/c.png").write_bytes(b"\x89PNG\0")
    fails(call("train", "lm", "--run", "run", "--data", "texts"), 2, r"texts/b\.txt: a binary file \(a NUL byte .*")
    Path("texts/b.txt").unlink()
    assert call("train", "lm", "--run", "run", "--data", "texts", *SET, "training.max_steps=1").code == 0


def test_rows_without_characters(call: Callable[..., Done]) -> None:
    Path("rows.csv").write_text("text,n\n" + '"",1\n' * 99)
    line = r"data: expected text to predict, got \d+ empty documents; give more text"
    fails(call("train", "lm", "--run", "run", "--data", "rows.csv", *SET, "training.batch_size=1"), 2, line)


def test_wrong_keys_and_values(call: Callable[..., Done]) -> None:
    done = call(
        "train", "lm", "--data", "book.txt", "--set", "training.lerning_rate=1", "model.dropout=2", "--run", "run"
    )
    fails(
        done,
        2,
        r"--set: 2 faults: model\.dropout: should be less than 1, got 2; "
        r"training\.lerning_rate: unknown key, did you mean learning_rate\?",
    )


def test_a_loss_that_is_lost(call: Callable[..., Done]) -> None:
    options = (*SET, "training.learning_rate=1e9", "training.gradient_clip=0", "training.max_steps=99")
    command = ("train", "lm", "--data", "book.txt", "--run", "run", *options)
    start = r"training: the loss or its gradient is not finite at step \d+; "
    remedies = r"lower training\.learning_rate or training\.gradient_clip, or set training\.precision=fp32, "
    fails(call(*command), 1, rf"{start}there is no checkpoint yet; {remedies}and begin again with --resume")
    # What the line says to do.
    mended = call(*command, "training.learning_rate=0.01", "training.max_steps=2", "--resume")
    assert mended.code == 0
    checkpoint = r"the last good checkpoint is run/checkpoints/step-00000002"
    again = call(*command, "--resume")
    fails(again, 1, rf"{start}{checkpoint}; {remedies}and go on with --resume")


def test_a_prompt_never_seen(call: Callable[..., Done]) -> None:
    options = (*SET, "data.tokenizer=chars", "training.max_steps=2")
    assert call("train", "lm", "--data", "book.txt", "--run", "run", *options).code == 0
    done = call("generate", "run", "--prompt", "a € 日", "--seed", 1)
    fails(done, 2, r"prompt: the model has never seen '€' \(U\+20AC\), '日' \(U\+65E5\); leave them out, or train .*")


def test_a_damaged_checkpoint(run: Path, call: Callable[..., Done]) -> None:
    command = ("train", "lm", "--run", run, "--resume", "--set", "training.max_steps=42")
    newest = run / "checkpoints" / "step-00000040"
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(data[:-7])
    remedy = rf"the last good one is step-00000030: to go on from there, `rm -r {newest}`, then --resume"
    start = rf"checkpoint {newest}: model\.safetensors is"
    fails(call(*command), 1, rf"{start} truncated: expected {len(data)} bytes, got {len(data) - 7}; {remedy}")
    (newest / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fails(call(*command), 1, rf"{start} altered: its SHA-256 is not the one it was written with; {remedy}")
    shutil.rmtree(newest)
    done = call(*command)
    assert done.code == 0
    assert "resuming at step 30" in done.err


def test_a_damaged_model(run: Path, call: Callable[..., Done]) -> None:
    path = run / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fails(call("generate", run), 1, rf"{path}: altered: its SHA-256 is not the one it was written with; put a sound .*")
    path.write_bytes(data[:99])
    fails(call("evaluate", run, "--data", "book.txt"), 1, rf"{path}: damaged \(.*\); put a sound one in its place, .*")


@pytest.mark.parametrize(
    ("mark", "line"),
    [
        ('{"format": 1, "task": "tag"}', r"expected a run of lm, got one of tag; choose another --run"),
        ('{"format": 9, "task": "lm"}', r"expected format 1 or older, got 9; a newer throughtime wrote it: upgrade"),
        ("", r"its run\.json is damaged; restore that file, or train again"),
    ],
)
def test_runs_of_others(run: Path, call: Callable[..., Done], mark: str, line: str) -> None:
    (run / "run.json").write_text(mark)
    for command in (("generate", run), ("train", "lm", "--resume", "--run", run), ("evaluate", run, "--data", "a")):
        fails(call(*command), 2, f"run folder run: {line}")


def test_wrong_run_folders(run: Path, call: Callable[..., Done]) -> None:
    train = ("train", "lm", "--data", "book.txt", "--run")
    fails(call(*train, run), 2, r"run folder run: a run is there already; go on with --resume, or choose another --run")
    fails(call(*train, "."), 2, r"run folder \.: it holds other files; choose a new or empty folder as --run")
    fails(call(*train, "book.txt"), 2, r"run folder book\.txt: expected a folder, got a file; choose another --run")
    fails(call(*train, "new", "--resume"), 2, r"run folder new: no such folder; check the path, or train into it first")
    fails(call("generate", "book.txt"), 2, r"run folder book\.txt: expected a folder, got a file; name the folder .*")
    fails(call("generate", "."), 2, r"run folder \.: not a run folder, it has no run\.json; check the path")
    fails(call(*train, "book.txt/run"), 1, r"cannot write book\.txt/run/run\.json: Not a directory; .*")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield Path("disk")
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, call: Callable[..., Done]) -> None:
    run = small_disk / "run"
    keys = ("training.max_steps=30", "training.checkpoint_every=5", "training.keep_checkpoints=9")
    command = ("train", "lm", "--data", "book.txt", "--run", run, *SET, *keys)
    fails(call(*command), 1, r"cannot write disk/run/.*: No space left on device; the disk is full; free some space .*")
    steps = sorted((run / "checkpoints").glob("step-*"))
    assert steps
    assert not list(run.rglob("*.partial"))
    # Nothing is lost: more room, and it goes on.
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk.resolve())], check=True)
    done = call(*command, "--resume")
    assert done.code == 0
    assert f"resuming at step {int(steps[-1].name[5:])}" in done.err


def test_a_read_only_disk(small_disk: Path, trained: Path, call: Callable[..., Done]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.resolve())], check=True)
    line = r"cannot write disk/run.*: Read-only file system; the file system is read-only; choose another folder"
    fails(call("train", "lm", "--data", "book.txt", "--run", small_disk / "run", *SET), 1, line)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_that_may_not_be_written(call: Callable[..., Done]) -> None:
    Path("locked").mkdir(mode=0o500)
    line = r"cannot write locked/run.*: Permission denied; permission denied; choose a folder that you may write to"
    fails(call("train", "lm", "--data", "book.txt", "--run", "locked/run", *SET), 1, line)
