"""`throughtime generate` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from throughtime.data import Tokenizer
from throughtime.decoding import EndSymbol, GenerationConfig, beam_search, write_texts
from throughtime.kernels.native import library
from throughtime.models import LanguageModel


def expected(run: Path, prompt: str, **settings: Any) -> list[str]:
    config = GenerationConfig(**{"length": 30, **settings})
    return [
        text.text
        for text in write_texts(LanguageModel.load(run), Tokenizer.load(run / "tokenizer.json"), prompt, config)
    ]


def test_the_text_stands_behind_its_prompt(call: Callable[..., Any], tiny_run: Path) -> None:
    called = call("generate", tiny_run, "--prompt", "Härter", "--seed", 4)
    assert called.code == 0
    assert called.out == "Härter" + expected(tiny_run, "Härter", seed=4)[0] + "\n"
    assert called.err == ""


def test_the_options_reach_the_draws(call: Callable[..., Any], tiny_run: Path) -> None:
    settings = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 9}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    called = call("generate", tiny_run, "--length", 50, "--stop", "q", "--stop", "zz", *flags)
    assert called.out == expected(tiny_run, "", length=50, stop=["q", "zz"], **settings)[0] + "\n"


@pytest.mark.skipif(library.missing_reason() is not None, reason="no native engine here")
def test_the_precision_reaches_the_engine(call: Callable[..., Any], tiny_run: Path) -> None:
    called = call("generate", "--precision", "int8", tiny_run, "--seed", 4, "--length", 200)
    assert called.code == 0
    assert called.out == expected(tiny_run, "", seed=4, length=200, precision="int8")[0] + "\n"
    assert called.out != expected(tiny_run, "", seed=4, length=200)[0] + "\n"


def test_a_precision_that_cannot_be_had_is_one_line(
    call: Callable[..., Any], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = call("generate", tiny_run, "--precision", "fp16")
    assert called.code == 2
    assert "error: generate: 1 fault: precision: should be 'fp32', 'bf16' or 'int8', got 'fp16'" in called.err
    monkeypatch.setattr(library, "missing_reason", lambda: "the native engine is not built")
    called = call("generate", tiny_run, "--precision", "bf16", "--seed", 1)
    told = "decoding LanguageModel: precision='bf16' needs the native engine: the native engine is not built; "
    told += "precision='fp32' with engine='auto' decodes every model"
    assert called == (2, "", f"throughtime: error: {told}\n")


def test_without_a_seed_one_is_drawn_and_told(call: Callable[..., Any], tiny_run: Path) -> None:
    first, second = call("generate", tiny_run), call("generate", tiny_run)
    assert first.out != second.out
    seed = first.err.removeprefix("seed ").strip()
    assert call("generate", tiny_run, "--seed", seed) == (0, first.out, "")


def test_samples_come_one_after_the_other(call: Callable[..., Any], tiny_run: Path) -> None:
    called = call("generate", tiny_run, "--prompt", "ab", "--samples", 3, "--seed", 1, "--stop", "e")
    texts = expected(tiny_run, "ab", samples=3, seed=1, stop=["e"])
    assert called.out == "".join(f"ab{text}\n" for text in texts)
    assert called.err.splitlines() == [f"--- sample {number} of 3" for number in (1, 2, 3)]


def test_json_is_one_object_a_line(call: Callable[..., Any], tiny_run: Path) -> None:
    called = call("generate", tiny_run, "--prompt", "ä", "--samples", 2, "--seed", 1, "--json")
    objects = [json.loads(line) for line in called.out.splitlines()]
    assert [list(value) for value in objects] == [["sample", "prompt", "seed", "text", "tokens", "ended"]] * 2
    assert [value["text"] for value in objects] == expected(tiny_run, "ä", samples=2, seed=1)
    assert [value["sample"] for value in objects] == [0, 1]
    assert all(value["prompt"] == "ä" and value["seed"] == 1 and value["tokens"] <= 30 for value in objects)


def test_a_length_of_zero_shows_the_prompt(call: Callable[..., Any], tiny_run: Path) -> None:
    assert call("generate", tiny_run, "--prompt", "ab", "--length", 0, "--seed", 1) == (0, "ab\n", "")


def test_all_settings_out_of_range_are_told_at_once(call: Callable[..., Any], tiny_run: Path) -> None:
    called = call("generate", tiny_run, "--top-p", 2, "--temperature", -1, "--seed", 1)
    assert called.code == 2
    assert called.out == ""
    assert called.err.startswith("throughtime: error: generate: 2 faults: temperature: ")
    assert called.err.count("\n") == 1


def test_the_prompt_from_standard_input(typed: Callable[..., Any], tiny_run: Path) -> None:
    done = typed("generate", tiny_run, "--prompt", "-", "--seed", 2, input="zwei\nZeilen é".encode())
    assert done.returncode == 0
    assert done.stdout.decode() == "zwei\nZeilen é" + expected(tiny_run, "zwei\nZeilen é", seed=2)[0] + "\n"


def test_a_prompt_that_is_not_utf8(typed: Callable[..., Any], tiny_run: Path) -> None:
    done = typed("generate", tiny_run, "--prompt", "-", input=b"abc\xff")
    assert done.returncode == 2
    assert done.stderr == (
        b"throughtime: error: prompt: standard input is not UTF-8 at byte 4; convert it, for example with iconv\n"
    )


def started(run: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "throughtime", "generate", run, "--seed", "1", *arguments]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.usefixtures("unmeasured")
def test_text_appears_as_it_is_made_and_an_interrupt_ends_it_cleanly(tiny_run: Path) -> None:
    process = started(tiny_run, "--length", 10**9)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first
    assert out.endswith(b"\n")
    assert (process.returncode, err) == (130, b"throughtime: error: interrupted\n")


def test_a_reader_that_goes_away_ends_it_quietly(tiny_run: Path) -> None:
    process = started(tiny_run, "--length", 10**9)
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_line(tiny_run: Path) -> None:
    command = [sys.executable, "-m", "throughtime", "generate", str(tiny_run), "--seed", "1"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        b"throughtime: error: standard output: cannot be written: No space left on device; free some space and go on\n"
    )


def test_a_terminal_without_the_characters_shows_their_numbers(typed: Callable[..., Any], tiny_run: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = typed("generate", tiny_run, "--prompt", "é", "--length", 0, "--seed", 1, env=environment)
    assert (done.returncode, done.stdout) == (0, b"\\xe9\n")


def test_a_beam_search_writes_the_likeliest_text_and_draws_nothing(typed: Callable[..., Any], tiny_run: Path) -> None:
    done = typed("generate", tiny_run, "--prompt", "z", "--beam", 3, "--length", 8)
    assert done.returncode == 0
    assert done.stderr == b""  # no seed, as nothing is drawn
    again = typed("generate", tiny_run, "--prompt", "z", "--beam", 3, "--length", 8)
    assert again.stdout == done.stdout
    refused = typed("generate", tiny_run, "--beam", 3, "--temperature", 0.5)
    assert refused.returncode == 2
    assert b"a beam search draws nothing, so temperature must be left out; or set beam=0" in refused.stderr


def test_more_texts_do_not_widen_the_beam(tiny_run: Path) -> None:
    model, tokenizer = LanguageModel.load(tiny_run), Tokenizer.load(tiny_run / "tokenizer.json")
    found = beam_search(
        model, [tokenizer.border_id, ord("z")], length=4, width=1, n_best=3, stop=EndSymbol(tokenizer.border_id)
    )
    texts = [tokenizer.decode(found.tokens[:, 0, row].tolist()) for row in range(3)]
    assert expected(tiny_run, "z", beam=1, samples=3, length=4) == texts
    assert len({text[:3] for text in texts}) == 1
