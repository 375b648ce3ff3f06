"""Help, versions, exit codes, and errors of one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from throughtime import __version__, errors

COMMANDS = [
    [],
    ["demo"],
    ["demo", "transduce"],
    ["train"],
    ["train", "lm"],
    ["train", "transduce"],
    ["generate"],
    ["predict"],
    ["evaluate"],
    ["inspect"],
    ["inspect", "unfold"],
    ["inspect", "flow"],
    ["inspect", "attention"],
    ["bench"],
    ["bench", "recurrence"],
]
# Of a command's own help, pydantic is not among them: Typer reads values with it.
HEAVY = {"torch", "numpy", "rich", "datasets", "matplotlib", "tokenizers", "pyarrow", "accelerate"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "throughtime")
def test_every_help_ends_with_an_example(call: Callable[..., Any], command: list[str]) -> None:
    called = call(*command, "--help")
    assert called.code == 0
    assert called.err == ""
    last = called.out.rstrip().partition("Example:\n")[2].splitlines()
    assert last
    assert all(line.strip().startswith(" ".join(["throughtime", *command])) for line in last)
    assert all(len(line) <= 100 for line in called.out.splitlines())


@pytest.mark.parametrize("command", [[], ["train"], ["bench"]])
def test_without_a_command_there_is_help(call: Callable[..., Any], command: list[str]) -> None:
    called = call(*command)
    assert called.code == 0
    assert called.out.startswith(f"Usage: {' '.join(['throughtime', *command])}")


def test_only_the_commands_that_there_are_appear(call: Callable[..., Any]) -> None:
    listed = call("--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\w+)", listed, re.MULTILINE) == [
        "generate",
        "predict",
        "evaluate",
        "demo",
        "train",
        "inspect",
        "bench",
    ]


def test_version(call: Callable[..., Any]) -> None:
    assert call("--version") == (0, f"throughtime {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "throughtime")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "throughtime", *command, "--help"]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert "throughtime" in imported
    assert imported & (HEAVY if command else HEAVY | {"pydantic"}) == set()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("generate run --lenght 3", "no such option: --lenght; did you mean --length? see throughtime generate --help"),
        ("evaluate run --zzz", "no such option: --zzz; see throughtime evaluate --help"),
        ("genrate", "no such command 'genrate'. Did you mean 'generate'? see throughtime --help"),
        ("evaluate --data a", "missing argument 'RUN'; see throughtime evaluate --help"),
        ("evaluate run", "run folder run: no such folder; check the path, or train into it first"),
        ("train lm --data a", "missing option '--run'; see throughtime train lm --help"),
        (
            "train lm --run r",
            "train lm: no text given; name some with --data PATH..., or a configuration with --config FILE.toml",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(call: Callable[..., Any], arguments: str, line: str) -> None:
    assert call(*arguments.split()) == (2, "", f"throughtime: error: {line}\n")


@pytest.mark.parametrize("arguments", ["generate run --top-k many", "generate run --length -1", "train lm --errors x"])
def test_a_value_that_is_none_is_one_line(call: Callable[..., Any], arguments: str) -> None:
    called = call(*arguments.split())
    assert called.code == 2
    assert called.err.startswith("throughtime: error: invalid value for '--")
    assert called.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DataError("book.txt: no such file;\nname another"), 2),
        (errors.DivergedError("step 3: the loss is nan"), 1),
        (errors.Interrupted("stopped at step 5; go on with --resume"), 1),
    ],
)
def test_each_error_is_one_line_with_its_exit_code(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    _fail_with(monkeypatch, error)
    called = call("evaluate", "run", "--data", "a")
    assert called == (code, "", f"throughtime: error: {' '.join(str(error).split())}\n")


def test_an_interrupt_is_one_line(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(monkeypatch, KeyboardInterrupt())
    assert call("evaluate", "run", "--data", "a") == (130, "", "throughtime: error: interrupted\n")


def test_a_bug_keeps_its_traceback(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        call("evaluate", "run", "--data", "a")


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from throughtime.tasks import language

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(language, "evaluate", fail)


def test_no_traceback_as_a_user_types_it(typed: Callable[..., Any], tmp_path: Any) -> None:
    done = typed("generate", tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().startswith("throughtime: error: run folder")
    assert done.stderr.count(b"\n") == 1
