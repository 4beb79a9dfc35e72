"""What the documentation says of signatures and names is so."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import patchworks_core

DOCS = Path(__file__).parents[1] / "docs"

OURS_ALONE = "–"  # noqa: RUF001


def parity_rows() -> Iterator[tuple[str, str, str, str, str]]:
    for line in (DOCS / "api-parity.md").read_text().splitlines():
        if line.startswith("| `"):
            name, parameter, known, ours, meaning = (c.strip() for c in line.strip("|").split("|"))
            yield name.strip("`"), parameter.strip("`"), known, ours, meaning


ROWS = list(parity_rows())


def default_of(parameter: inspect.Parameter) -> str:
    """Write a default as the table does."""
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return "any"
    return "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"


@pytest.mark.parametrize("name", sorted({row[0] for row in ROWS}))
def test_the_table_of_the_old_api_is_what_the_signatures_say(name):
    parameters = inspect.signature(getattr(patchworks_core, name)).parameters
    listed = {row[1]: row[3] for row in ROWS if row[0] == name}
    assert listed == {key: default_of(value) for key, value in parameters.items()}


def test_what_deviates_from_the_old_api_has_its_reason():
    for name, parameter, known, ours, meaning in ROWS:
        assert meaning, (name, parameter)
        if known not in (ours, OURS_ALONE):
            assert meaning != "same", (name, parameter)


def test_all_of_the_known_names_are_there():
    known = {
        *("tile_process", "merge_tile_labels", "relabel_sequential_array"),
        *("relabel_sequential_zarr", "load_ome_zarr", "auto_tile_shape", "auto_overlap"),
        *("auto_tile_shape_cellpose", "safe_worker_count", "estimate_empty_tiles"),
        *("make_local_cluster", "label_relations", "measure_objects", "cellpose_fn", "stardist_fn"),
    }
    assert known == {row[0] for row in ROWS}


def test_every_public_name_is_in_the_api_page():
    page = (DOCS / "api.md").read_text()
    missing = {n for n in patchworks_core.__all__ if f"::: patchworks_core.{n}\n" not in page}
    assert not {n for n in missing if not n.endswith("Error")}


def test_every_page_of_the_site_is_in_its_table_of_contents():
    nav = (DOCS.parent / "mkdocs.yml").read_text()
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.glob("*.md")}
    assert not {page for page in pages if page not in nav}
