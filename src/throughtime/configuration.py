"""Configurations: frozen, typed, with units in their descriptions; every fault is reported at once.

A configuration is a pydantic model whose fields are `Section`s; on disk it is TOML with every key written out
above a comment that says what it means, so that the file can be read, changed and run again.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tomlkit
from pydantic import BaseModel, ConfigDict

from throughtime.errors import ConfigError


class Section(BaseModel):
    """One section of a configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Configuration = TypeVar("Configuration", bound=BaseModel)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or is not UTF-8.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; check the path given to --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; a configuration is a UTF-8 text file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}; strings need quotes, sections look like [model]") from None


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` with each "section.key=value" set; the value is read as TOML, and as plain text where it is not TOML.

    Raises:
        ConfigError: an override is not of the form section.key=value, or there is no section to hold the key.
    """
    merged: dict[str, Any] = {name: dict(part) if isinstance(part, Mapping) else part for name, part in values.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not section or not key:
            raise ConfigError(f"--set {override}: expected section.key=value, for example training.batch_size=32")
        if not isinstance(merged.setdefault(section, {}), dict):
            raise ConfigError(
                f"--set {override}: {section} is {merged[section]!r}, not a section [{section}] with keys"
            )
        merged[section][key] = _toml_value(text.strip())
    return merged


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validate(kind: type[Configuration], values: Mapping[str, Any], *, where: str) -> Configuration:
    """`values` as a `kind`; `where` names their origin in messages.

    Raises:
        ConfigError: one message with every fault: unknown keys with the nearest valid one, values out of range.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        faults = _faults(kind, error.errors())
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{where}: {count}: {'; '.join(faults)}") from None


def _faults(kind: type[BaseModel], errors: Iterable[Any]) -> list[str]:
    """One line for each key; a key of several types has an error for each of them."""
    found: dict[str, list[tuple[str, Any]]] = {}
    got: Any
    for error in errors:
        location = [str(part) for part in error["loc"]]
        if error["type"] == "extra_forbidden":
            valid = _valid_keys(kind, location[:-1])
            nearest = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"valid here: {', '.join(valid)}"
            # A section as its input: no "got" follows.
            name, message, got = ".".join(location), f"unknown key, {hint}", {}
        elif error["type"] == "missing":
            name, message, got = ".".join(location), "missing, a value is required", {}
        else:
            name = _key(kind, location)
            message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
            got = error["input"]
        found.setdefault(name, []).append((message, got))
    return [_line(name, faults) for name, faults in found.items()]


def _line(name: str, faults: list[tuple[str, Any]]) -> str:
    message, got = " or ".join(dict.fromkeys(message for message, _ in faults)), faults[0][1]
    # A rule over a whole section has the section as its input: its message says it all.
    start = f"{name}: " if name else ""
    return f"{start}{message}" if isinstance(got, Mapping) else f"{start}{message}, got {got!r}"


def _key(kind: type[BaseModel], location: list[str]) -> str:
    """The dotted name of a key, without what pydantic adds for the types of a union."""
    names: list[str] = []
    for part in location:
        names.append(part)
        annotation = kind.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        kind = annotation
    return ".".join(names)


def _valid_keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation
        assert isinstance(annotation, type)
        kind = annotation
    return list(kind.model_fields)


def to_toml(configuration: BaseModel, *, heading: str) -> str:
    """The whole configuration as TOML: every key, each below a comment with its description and unit.

    A key whose value is None (TOML has none) stands commented out.
    """
    document = tomlkit.document()
    for line in heading.splitlines():
        document.add(tomlkit.comment(line))
    for name, field in type(configuration).model_fields.items():
        section = getattr(configuration, name)
        if field.description:
            document.add(tomlkit.nl())
            document.add(tomlkit.comment(field.description))
        document.add(name, _section_table(section))
    return tomlkit.dumps(document)


def _section_table(section: BaseModel) -> tomlkit.items.Table:
    table = tomlkit.table()
    for key, value in section.model_dump(mode="json").items():
        description = type(section).model_fields[key].description
        if description:
            table.add(tomlkit.comment(description))
        if value is None:
            table.add(tomlkit.comment(f"{key} ="))
        else:
            table.add(key, value)
    return table


def to_json(configuration: BaseModel) -> str:
    """The configuration as indented JSON, keys in their own order."""
    return json.dumps(configuration.model_dump(mode="json"), indent=2) + "\n"
