"""What the documentation shows is run: the Python of its pages, the examples in docstrings, the configurations."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import throughtime
from throughtime.configuration import read_toml, validate
from throughtime.tasks.configuration import LanguageConfiguration
from throughtime.tasks.transduce_configuration import TransduceConfiguration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def has_examples(module: str) -> bool:
    source = Path(importlib.util.find_spec(module).origin)  # type: ignore[union-attr,arg-type]
    return source.suffix == ".py" and ">>>" in source.read_text("utf-8")  # compiled modules have no text


MODULES = sorted(
    module.name for module in pkgutil.walk_packages(throughtime.__path__, "throughtime.") if has_examples(module.name)
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python"))
    exec(compile(code, str(page), "exec"), {"__name__": "page"})
    assert code.strip()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_some_docstrings_have_examples() -> None:
    assert {"throughtime.cells.cell", "throughtime.nn.layers", "throughtime.models.language"} <= set(MODULES)


def test_the_index_leads_to_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)#]+\.md)\)", (ROOT / "docs" / "index.md").read_text("utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= listed


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_configuration_is_valid(path: Path) -> None:
    # Each says in its heading which command it is for.
    kind: Any = TransduceConfiguration if "train transduce" in path.read_text("utf-8") else LanguageConfiguration
    assert validate(kind, read_toml(path), where=str(path)).data.paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    missing = [link for link in links if not os.path.exists(page.parent / link)]
    assert not missing
