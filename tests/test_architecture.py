"""The order of the wings: which folder may use which, and that no two modules import each other.

A wing may import itself and the wings that stand before it in its list, and nothing else of this
project. A new module goes into a wing, and is not registered anywhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CORE = [
    "errors",
    *("calls", "tiles", "machine", "files", "seams", "images", "statistics"),
    *("plugins", "operations"),
    *("stage", "merge", "ome_zarr", "labels", "pilot", "pictures"),
    "api",
]

PIPELINE = [
    *(
        "partitions",
        "lineage",
        "tile_failures",
        "progress",
        "tables",
        "edge_records",
        "records",
        "image_faults",
        "dagster_insides",
    ),
    "instance",
    *("event_storage", "event_storage_postgres", "launcher"),
    *("landing", "resources", "assets", "automation"),
    "definitions",
    "component",
    "cli",
    "__main__",
]

FACADE = "patchworks_core"
"""The only module that hands names on; the pipeline may use it, the core may not."""

FACADES = {FACADE, "patchworks_pipeline", "patchworks_pipeline.assets"}
"""Packages that give names: those they hand on, or their version."""

PURE = {"errors", "tiles", "seams"}
"""Wings that must not know where anything is kept."""

PURE_MODULES = {
    *("statistics.bins", "statistics.thresholds", "statistics.statistics"),
    *("stage.tile_labels", "stage.object_sums", "merge.objects", "ome_zarr.averaging"),
    *("labels.morphology", "labels.intensities"),
    *("pilot.agreement", "pilot.in_memory", "pictures.drawing", "images.calibration"),
    *("operations.places", "operations.operations", "machine.faults"),
}
"""Modules of other wings that must not either."""

STORAGE_PACKAGES = {"zarr", "upath", "fsspec", "dask", "tifffile", "imageio"}

MAX_LINES = 500

MAX_LINES_OF_A_BODY = 55
"""Of a function, from the first statement behind its docstring: some fifty."""


PARTICIPLES = {"found", "given", "seen", "known", "each", "said", "got", "told", "asked", "wanted"}
"""No names for a value: they say what happened to it, not what it is."""


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


def place_of(module: str) -> tuple[list[str], str]:
    """Return the order of the module's package, and its wing in it."""
    package, _, rest = module.partition(".")
    order = CORE if package == "patchworks_core" else PIPELINE
    return order, rest.partition(".")[0]


def ours(module: str) -> set[str]:
    """Return the modules of this project that `module` imports."""
    return {name for name in imports_of(module) if name.split(".")[0].startswith("patchworks_")}


def test_the_lists_name_every_wing_and_nothing_else():
    for package, order in (("patchworks_core", CORE), ("patchworks_pipeline", PIPELINE)):
        wings = {m.split(".")[1] for m in MODULES if m.startswith(f"{package}.")}
        assert wings == set(order)


@each_module
def test_imports_go_downwards(module):
    order, wing = place_of(module)
    if not wing:
        return  # the facade of its package
    for name in ours(module):
        package, _, rest = name.partition(".")
        if package != module.partition(".")[0]:
            assert package == "patchworks_core", "the core does not know the pipeline"
            continue
        below = rest.partition(".")[0]
        assert below, f"{module} imports the facade {name}; name the module"
        assert order.index(below) <= order.index(wing), f"{module} imports {name}, a wing above it"


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


def test_a_wing_says_what_belongs_in_it_and_hands_on_nothing():
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module not in FACADES:
            assert ast.get_docstring(TREES[module]), module
            assert not imports_of(module), f"{module} re-exports; import from the module itself"


def test_nothing_of_the_core_lies_outside_a_wing_but_its_errors():
    outside = {path.name for path in (ROOT / "patchworks_core").glob("*.py")}
    assert outside == {"__init__.py", "errors.py"}


def test_the_core_knows_neither_dagster_nor_the_pipeline():
    roots = {
        (module, name.split(".")[0])
        for module in MODULES
        if module.startswith("patchworks_core")
        for name in imports_of(module)
    }
    assert not {m for m, root in roots if root.startswith(("dagster", "patchworks_pipeline"))}


def is_pure(module: str) -> bool:
    package, _, rest = module.partition(".")
    return package == "patchworks_core" and (rest.partition(".")[0] in PURE or rest in PURE_MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if is_pure(name)])
def test_what_computes_does_not_know_where_things_are_kept(module):
    roots = {name.split(".")[0] for name in imports_of(module)}
    assert not roots & STORAGE_PACKAGES


def test_the_modules_that_must_be_pure_are_there():
    assert {f"patchworks_core.{name}" for name in PURE_MODULES} <= set(MODULES)


@each_module
def test_no_import_is_relative(module):
    nodes = ast.walk(TREES[module])
    assert not [n.lineno for n in nodes if isinstance(n, ast.ImportFrom) and n.level]


@each_module
def test_a_module_reads_in_one_sitting(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@each_module
def test_functions_are_of_a_length_that_can_be_read(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            n_lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert n_lines <= MAX_LINES_OF_A_BODY, node.name


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield public functions and classes, and the public methods of the classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and is_overload(node):
            continue  # the function that follows says it for all of them
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (m for m in node.body if isinstance(m, ast.FunctionDef))
                yield from (m for m in methods if not m.name.startswith("_"))


def is_overload(function: ast.FunctionDef) -> bool:
    return any(getattr(node, "id", "") == "overload" for node in function.decorator_list)


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


@each_module
def test_no_value_is_named_by_a_participle(module: str) -> None:
    names = {
        (node.lineno, node.id if isinstance(node, ast.Name) else node.arg)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and is_bound(node))
    }
    assert not [f"{name} in line {line}" for line, name in sorted(names) if name in PARTICIPLES]


def is_bound(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)
