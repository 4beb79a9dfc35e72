"""What the documentation says of signatures and names is so."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sybil import Document

import patchworks_core
from docs.conftest import PARSERS, setup, teardown
from patchworks_core import label_relations
from patchworks_core.seams.edge_table import EdgeTable

DOCS = Path(__file__).parents[1] / "docs"

NOT_THERE = "–"  # noqa: RUF001

PAGE = (DOCS / "api-parity.md").read_text()

FILES = (DOCS / "files.md").read_text()

FACTS = json.loads((DOCS.parent / "benchmarks" / "peer_signatures.json").read_text())
"""What `inspect` says of the old API's public names, in an environment of its own."""


def rows_of(n_columns: int) -> list[tuple[str, ...]]:
    """Return the rows of a table of the page, by its number of columns."""
    rows = []
    for line in PAGE.splitlines():
        if line.startswith("| `") and len(cells := line.strip("| ").split(" | ")) == n_columns:
            rows.append((*(cell.strip("`") for cell in cells[:-1]), cells[-1]))
    return rows


ROWS = {(name, parameter): rest for name, parameter, *rest in rows_of(5)}


def default_of(parameter: inspect.Parameter) -> str:
    """Write a default as the facts do."""
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return "any"
    return "required" if parameter.default is parameter.empty else repr(parameter.default)


def defaults_here(name: str) -> dict[str, str]:
    parameters = inspect.signature(getattr(patchworks_core, name)).parameters
    return {key: default_of(value) for key, value in parameters.items()}


@pytest.mark.parametrize("name", sorted({name for name, _ in ROWS}))
def test_the_table_of_the_old_api_is_what_both_signatures_say(name):
    there, here = FACTS["functions"][name], defaults_here(name)
    listed = {p: row[:2] for (function, p), row in ROWS.items() if function == name}
    assert listed == {p: [there.get(p, NOT_THERE), here.get(p, NOT_THERE)] for p in there | here}


@pytest.mark.parametrize(("row", "rest"), ROWS.items(), ids=str)
def test_what_deviates_from_the_old_api_has_its_reason(row, rest):
    there, here, meaning = rest
    kind, _, reason = meaning.partition(": ")
    also = getattr(getattr(patchworks_core, row[0]), "other_spellings", {})
    if there == NOT_THERE:
        assert kind == "ours"
    elif here == NOT_THERE:
        assert kind == ("different" if row[1] in also else "absent")
        assert reason.startswith(f"taken for `{also.get(row[1])}`") == (row[1] in also)
    else:
        assert kind == "different" or (kind, there) == ("same", here)
    assert bool(reason) == (kind != "same")


def test_every_name_of_the_old_api_is_on_the_page():
    names = {name for name, _ in ROWS}
    absent = {name: reason for name, reason in rows_of(2)}
    assert names == {n for n in FACTS["functions"] if hasattr(patchworks_core, n)}
    assert {n for n in absent if "." not in n} == set(FACTS["functions"]) - names
    assert {n for n in absent if "." in n} == {f"plugins.{n}" for n in FACTS["plugins"]}
    assert all(absent.values())


def test_the_page_counts_its_rows():
    kinds = [meaning.partition(":")[0] for *_, meaning in ROWS.values()]
    n = {kind: kinds.count(kind) for kind in ("same", "different", "absent", "ours")}
    text = (
        f"{n['same']} parameters are the same, {n['different']} are different, {n['absent']} are "
        f"absent, and {n['ours']} are ours alone; {len(rows_of(2))} names have no"
    )
    assert text in PAGE


def test_every_public_name_is_in_the_api_page():
    page = (DOCS / "api.md").read_text()
    missing = {n for n in patchworks_core.__all__ if f"::: patchworks_core.{n}\n" not in page}
    assert not {n for n in missing if not n.endswith("Error")}


def test_every_page_of_the_site_is_in_its_table_of_contents():
    nav = (DOCS.parent / "mkdocs.yml").read_text()
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.glob("*.md")}
    assert not {page for page in pages if page not in nav}


@pytest.mark.slow
def test_what_the_readme_says_to_type_runs_in_an_empty_folder():
    page = Document.parse(str(DOCS.parent / "README.md"), *PARSERS)
    setup(page.namespace)
    try:
        examples = list(page.examples())
        for example in examples:
            example.evaluate()
    finally:
        teardown(page.namespace)
    assert len(examples) == 2


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("Boundary pairs", EdgeTable.schema().names),
        ("Relations", label_relations(np.ones((1, 2), int), np.ones((1, 2), int)).to_table()),
        ("The lookup table", ["joined", "merged"]),
    ],
    ids=["pairs", "relations", "lut"],
)
def test_the_page_of_files_has_every_column(heading, columns):
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", FILES, re.M | re.S)
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    names = columns if isinstance(columns, list) else columns.column_names
    assert sorted(set(listed) - {"t", "c"}) == sorted(names)


SAYS = [
    words
    for line in (DOCS / "troubleshooting.md").read_text().splitlines()
    if line.startswith("| `")
    for words in [line.split("`")[1]]
]
"""What the page on troubleshooting quotes; … stands for values."""


def texts_of_sources() -> list[str]:
    """Return all texts in the sources, the values in them as …."""
    texts = []
    for package in ("patchworks_core", "patchworks_pipeline"):
        for path in (DOCS.parent / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value.replace("%s", "…").replace("%d", "…"))
    return texts


def test_the_page_on_troubleshooting_quotes_what_is_said():
    texts = texts_of_sources()
    assert len(SAYS) > 15
    assert [words for words in SAYS if not any(words in text for text in texts)] == []
