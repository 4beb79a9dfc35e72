"""The floors of the house: which module may use which.

A module may import what stands above it in its table, and nothing else of this project. That rules
out cycles. A new module goes into the table first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CORE = """
    # floor 0: values and failures
    regions errors
    # floor 1: the plan of tiles, the function, the machine
    grid function_versions segmentation devices faults budget workers peak
    sizing model_sizing dask_clients progress_bars
    # floor 2: arrays in, arrays out; no disk
    thresholds bins tile_statistics statistics labels strips edges pairs rules lut object_sums
    objects pictures agreement in_memory seam_faces seams places operations
    label_filters holes intensities contingency
    # floor 3: one task over many tiles
    engine compute
    # floor 4: reading and writing
    readers readers.locations readers.opened readers.tiff_metadata readers.plate readers.bioio
    readers.memory readers.raster readers.tiff readers.ome_zarr readers.zarr_node readers.sources
    storage image targets loading processed occupancy relabel plan stage apply pyramid ngff report
    image_metadata averaging layout convert viewing
    label_source
    # floor 5: the six steps
    staging steps
    tilewise hole_filling size_filter
    # floor 6: the façade
    pilot_samples pilot provenance tile_count job choices estimate process to_ome_zarr merge
    filtering
    postprocess measurements relations
"""

PLUGINS = """
    errors segmentation statistics devices faults regions places operations
    plugins plugins.threshold plugins.watershed
    plugins.neighbourhoods plugins.filters plugins.background
    plugins.shading plugins.flat_field
    plugins.normalization plugins.models
    plugins.cellpose_eval plugins.cellpose_package plugins.cellpose
    plugins.stardist_package plugins.stardist
"""
"""Plugins stand beside the house: these first eight are all they may use of it."""

PIPELINE = """
    # floor 0: names, and what is told
    demo metadata partitions progress home launcher event_storage event_storage_postgres
    # floor 1: what lies on disk, and what is said of it
    deployed acquisitions events progress_bars records
    alerts retention landing clusters stage_reading throughput planned
    # floor 2: deployment
    resources tile_pool tile_log tile_events serving
    # floor 3: assets
    assets.acquiring assets.staging assets.merging assets.reporting assets
    # floor 4: what starts runs
    jobs alert_sensors sensors retention schedules definitions
    # floor 5: the command line
    status terminal cli_options runs pilot_command segment_command convert_command view_command cli
"""

PURE = {
    *("regions", "errors", "grid", "segmentation", "faults", "thresholds", "bins", "statistics"),
    *("tile_statistics",),
    *("labels", "strips", "edges", "pairs", "rules", "lut", "objects", "pictures", "agreement"),
    *("in_memory", "seam_faces", "seams", "averaging", "places", "operations"),
    *("object_sums", "label_filters", "holes", "intensities", "contingency"),
}
"""Modules of the core that must not know where anything is kept."""

STORAGE_PACKAGES = {"zarr", "upath", "fsspec", "dask", "tifffile", "imageio"}

MAX_LINES = 320

LONGER = {
    "patchworks_core.grid": 400,
    "patchworks_core.pictures": 400,
    "patchworks_pipeline.sensors": 400,
}
"""Modules that wait to be split; none may grow, and one that was split leaves this table."""


def names_of(table: str) -> list[str]:
    lines = (line.partition("#")[0] for line in table.splitlines())
    return [name for line in lines for name in line.split()]


def modules() -> dict[str, Path]:
    found = {}
    for package in ("patchworks_core", "patchworks_pipeline"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
each_module = pytest.mark.parametrize("module", MODULES)


def imports_of(module: str) -> set[str]:
    """Return the modules that `module` imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                found.add(member if member in MODULES else node.module)
    return found


def may_use() -> dict[str, set[str]]:
    """Return, for every module of the tables, what it may import."""
    allowed: dict[str, set[str]] = {}
    core = [f"patchworks_core.{name}" for name in names_of(CORE)]
    for i, name in enumerate(core):
        allowed[name] = set(core[:i])
    plugins = [f"patchworks_core.{name}" for name in names_of(PLUGINS)]
    for i, name in enumerate(plugins):
        if ".plugins" in name:
            allowed[name] = set(plugins[:i])
    allowed["patchworks_core"] = {*core, *plugins}
    pipeline = [f"patchworks_pipeline.{name}" for name in names_of(PIPELINE)]
    for i, name in enumerate(pipeline):
        allowed[name] = {*core, "patchworks_core", *pipeline[:i]}
    allowed["patchworks_pipeline"] = set()
    return allowed


MAY_USE = may_use()


def test_every_module_has_a_place_in_the_tables_and_every_place_a_module():
    assert sorted(MODULES) == sorted(MAY_USE)


@each_module
def test_imports_go_downwards(module):
    ours = {name for name in imports_of(module) if name.split(".")[0].startswith("patchworks_")}
    assert ours <= MAY_USE.get(module, set()), "move the import down, or the module up"


def test_no_module_imports_itself_through_others():
    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in sorted(imports_of(module) & set(MODULES)):
                visit(name, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in MODULES:
        visit(module, ())


def test_the_core_knows_neither_dagster_nor_the_pipeline():
    roots = {
        (module, name.split(".")[0])
        for module in MODULES
        if module.startswith("patchworks_core")
        for name in imports_of(module)
    }
    assert not {m for m, root in roots if root.startswith(("dagster", "patchworks_pipeline"))}


@pytest.mark.parametrize("module", sorted(PURE))
def test_what_computes_does_not_know_where_things_are_kept(module):
    roots = {name.split(".")[0] for name in imports_of(f"patchworks_core.{module}")}
    assert not roots & STORAGE_PACKAGES


@each_module
def test_no_import_is_relative(module):
    nodes = ast.walk(TREES[module])
    assert not [n.lineno for n in nodes if isinstance(n, ast.ImportFrom) and n.level]


@each_module
def test_a_module_reads_in_one_sitting(module):
    n_lines = len(MODULES[module].read_text().splitlines())
    assert n_lines <= LONGER.get(module, MAX_LINES)
    assert module not in LONGER or n_lines > MAX_LINES, "it was split: take it off LONGER"


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield public functions and classes, and the public methods of the classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (m for m in node.body if isinstance(m, ast.FunctionDef))
                yield from (m for m in methods if not m.name.startswith("_"))


@each_module
def test_everything_public_has_a_docstring(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), "say in one sentence what the module holds"
    assert not [d.name for d in public_definitions(tree) if not ast.get_docstring(d)]


AT_IMPORT = {"environ", "getenv", "putenv", "open", "cwd", "home", "read_text", "read_bytes", "now"}
"""Calls and attributes that look at the world; allowed inside functions only."""


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for part in (node.args, *getattr(node, "decorator_list", ())):
                yield from run_at_import(part)
        else:
            yield from run_at_import(node)


@each_module
def test_nothing_looks_at_the_world_at_import(module):
    found = [
        node.lineno
        for node in run_at_import(TREES[module])
        if (isinstance(node, ast.Attribute) and node.attr in AT_IMPORT)
        or (isinstance(node, ast.Call) and getattr(node.func, "id", "") in AT_IMPORT)
    ]
    assert not found


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("import os\nHOME = os.environ['HOME']", True),
        ("import os\nclass A:\n    b = os.getenv('B')", True),
        ("import os\ndef f(a=os.environ):\n    return a", True),
        ("import os\ndef f():\n    return os.environ", False),
    ],
)
def test_a_look_at_the_world_is_seen_where_it_runs_at_import(code, is_found, monkeypatch):
    monkeypatch.setitem(TREES, "example", ast.parse(code))
    if not is_found:
        test_nothing_looks_at_the_world_at_import("example")
        return
    with pytest.raises(AssertionError):
        test_nothing_looks_at_the_world_at_import("example")
