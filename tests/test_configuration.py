"""Configurations: every fault at once, the nearest key named, and files that can be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from throughtime.configuration import Section, apply_overrides, read_toml, to_json, to_toml, validate
from throughtime.errors import ConfigError


class ModelSection(Section):
    """A section with a rule of its own."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="the recurrent cell")
    hidden_size: int = Field(8, ge=1, description="units of a layer")
    even: bool = False

    @model_validator(mode="after")
    def _even(self) -> ModelSection:
        if self.even and self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even, got {self.hidden_size}")
        return self


class TrainingSection(Section):
    """Numbers with ranges, one that may be missing, and text."""

    rate: float = Field(0.1, gt=0, description="learning rate")
    minutes: float | None = Field(None, gt=0, description="time limit (minutes)")
    data: list[str] = Field(default_factory=list, description="paths")
    note: str = Field("", description="text of one's own")


class Whole(Section):
    """A configuration of two sections."""

    model: ModelSection = Field(default_factory=ModelSection, description="What learns.")
    training: TrainingSection = Field(default_factory=TrainingSection)


class Demanding(Section):
    """A section with a key that must be given."""

    size: int


def faults(values: dict[str, Any], kind: Any = Whole) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(kind, values, where="config.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    told = faults(
        {"model": {"hiden_size": 3, "hidden_size": 0}, "training": {"rate": -1, "data": "x"}, "trainning": {}}
    )
    assert told.startswith("config.toml: 5 faults: ")
    for part in (
        "model.hiden_size: unknown key, did you mean hidden_size?",
        "model.hidden_size: should be greater than or equal to 1, got 0",
        "training.rate: should be greater than 0, got -1",
        "training.data: should be a valid list, got 'x'",
        "trainning: unknown key, did you mean training?",
    ):
        assert part in told


def test_one_fault_and_keys_that_are_near_to_nothing() -> None:
    assert faults({"model": {"xyz": 1}}) == (
        "config.toml: 1 fault: model.xyz: unknown key, valid here: cell, hidden_size, even"
    )
    assert (
        faults({"model": {"cell": "lsmt"}}) == "config.toml: 1 fault: model.cell: should be 'lstm' or 'gru', got 'lsmt'"
    )


def test_a_missing_key_and_a_rule_over_a_section() -> None:
    assert faults({}, Demanding) == "config.toml: 1 fault: size: missing, a value is required"
    told = faults({"model": {"even": True, "hidden_size": 3}})
    assert told == "config.toml: 1 fault: model: hidden_size must be even, got 3"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value: float) -> None:
    assert "training.rate: should be a finite number" in faults({"training": {"rate": value}})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Whole().model.hidden_size = 3


def test_overrides_are_read_as_toml_and_else_as_text() -> None:
    given_values = {"model": {"cell": "lstm", "even": True}}
    overrides = [
        "model.hidden_size=16",
        "model.even = false",
        "training.rate=1e-3",
        "training.data=['a', 'b']",
        "model.cell=gru",
        "training.note=a = b",
    ]
    merged = apply_overrides(given_values, overrides)
    assert merged == {
        "model": {"cell": "gru", "even": False, "hidden_size": 16},
        "training": {"rate": 1e-3, "data": ["a", "b"], "note": "a = b"},
    }
    assert given_values == {"model": {"cell": "lstm", "even": True}}
    assert validate(Whole, merged, where="here").model.hidden_size == 16


@pytest.mark.parametrize("override", ["model.cell", "cell=gru", "=3", ".cell=gru", "model.=3", ""])
def test_an_override_of_another_form(override: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--set .*: expected section\.key=value, for example training\.batch_size=32"
    ):
        apply_overrides({}, [override])


def test_an_override_of_a_key_where_there_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"--set model\.cell=gru: model is 3, not a section \[model\] with keys"):
        apply_overrides({"model": 3}, ["model.cell=gru"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such configuration file; check the path given to --config"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"a\.toml: cannot be read: .*a configuration is a UTF-8 text file"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "b.toml").write_text("[model]\ncell = lstm\n")
    with pytest.raises(
        ConfigError, match=r"b\.toml: not TOML: .*line 2.*strings need quotes, sections look like \[model\]"
    ):
        read_toml(tmp_path / "b.toml")


def test_the_file_says_what_every_key_means() -> None:
    text = to_toml(Whole(), heading="A heading\nof two lines")
    assert text.startswith("# A heading\n# of two lines\n")
    for line in (
        "# What learns.\n\n[model]\n",
        '# the recurrent cell\ncell = "lstm"\n',
        "# time limit (minutes)\n# minutes =\n",
        "even = false\n",
        "[training]\n",
    ):
        assert line in text
    assert to_json(ModelSection()) == '{\n  "cell": "lstm",\n  "hidden_size": 8,\n  "even": false\n}\n'


@given(
    size=st.integers(1, 10**6),
    rate=st.floats(1e-300, 1e300),
    minutes=st.none() | st.floats(0.001, 1e6),
    data=st.lists(st.text()),
    note=st.text(st.characters(codec="utf-8")),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, size: int, rate: float, minutes: float | None, data: list[str], note: str
) -> None:
    training = TrainingSection(rate=rate, minutes=minutes, data=data, note=note)
    whole = Whole(model=ModelSection(hidden_size=size), training=training)
    path = tmp_path_factory.mktemp("configuration", numbered=True) / "config.toml"
    path.write_bytes(to_toml(whole, heading="again").encode())
    assert validate(Whole, read_toml(path), where=str(path)) == whole
