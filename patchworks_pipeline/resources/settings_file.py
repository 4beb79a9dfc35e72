"""The file of settings as it is written: its sections, and the line of every field.

YAML itself lets the last of two equal keys win, and reads ``automation: false`` as a section with
nothing in it. Here both are errors, because who wrote them meant something.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from patchworks_core.errors import PlanError

SECTIONS: Final[Mapping[str, str]] = {
    "segmentation": "function: watershed",
    "segmentations": "nuclei: {function: watershed}",
    "relations": "nuclei: cells",
    "source": "settle_seconds: 15",
    "store": "root: /data/labels",
    "budget": "memory_fraction: 0.8",
    "gpus": "slots_per_device: 1",
    "cluster": "config_file: /data/dask.yaml",
    "automation": "enabled: false",
    "backfills": "max_partitions_per_run: 1000",
    "retention": "max_live_keys: 50000",
    "alerts": "webhook_url: {env: SLACK_WEBHOOK}",
}
"""Every section, with an example of a field."""

SEGMENTATIONS: Final = "segmentations"
"""The section with one block of fields per segmentation."""

RELATIONS: Final = "relations"
"""The section that says of which segmentation objects lie in objects of which other."""

_MERGED, _NULL = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the file."""

    path: Path
    """The file."""

    name: str

    values: Mapping[str, Any] = field(default_factory=dict)
    """Its fields; empty where the file, or the section, is not there."""

    lines: Mapping[str, int] = field(default_factory=dict)
    """Where each field stands, counted from 1."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment that fields were read from."""

    def where(self, name: str = "") -> str:
        """Return the place of a field, or without a name of the section, in words."""
        return f"{self.path}, line {self.lines[name] if name else min(self.lines.values())}"


def read_section(path: Path, name: str) -> Section:
    """Return a section of a file of settings; ``{env: NAME}`` stands for a variable's value.

    All sections are checked for what can be told without knowing their fields, so that a mistake
    is not found only where its resource is used.

    Raises
    ------
    PlanError
        If the file is not YAML, has a section that is unknown or no mapping, or any key twice.
    """
    loader, nodes = _sections(path)
    if name not in nodes or _is_empty(nodes[name]):
        return Section(path, name)
    return _section(path, name, loader, nodes[name])


def read_block(path: Path, name: str, block: str) -> Section:
    """Return a block of a section of blocks, such as one of ``segmentations``.

    Raises
    ------
    PlanError
        As `read_section` does, or if the block holds no fields.
    """
    loader, nodes = _sections(path)
    if name not in nodes or _is_empty(nodes[name]):
        return Section(path, block)
    for key, node in nodes[name].value:
        if str(key.value) != block or _is_empty(node):
            continue
        if not isinstance(node, yaml.MappingNode):
            raise PlanError(
                f"{path}, line {_line(key)}: {name}.{block} must hold fields, such as "
                f"'{SECTIONS[name]}', got {loader.construct_document(node)!r}"
            )
        return _section(path, f"{name}.{block}", loader, node)
    return Section(path, block)


def _sections(path: Path) -> tuple[yaml.SafeLoader, dict[str, yaml.Node]]:
    """Return the node of each section of a file of settings."""
    loader, root = _compose(path)
    if root is None or _is_empty(root):
        return loader, {}
    if not isinstance(root, yaml.MappingNode):
        raise PlanError(
            f"{path} must hold one section per resource, got {loader.construct_document(root)!r}; "
            f"the sections are {sorted(SECTIONS)!r}"
        )
    nodes = {str(key.value): (key, value) for key, value in root.value}
    for section, (key, value) in nodes.items():
        where = f"{path}, line {_line(key)}"
        if section not in SECTIONS:
            raise PlanError(
                f"{where}: there is no section {section!r}; the sections are {sorted(SECTIONS)!r}"
            )
        if not (isinstance(value, yaml.MappingNode) or _is_empty(value)):
            raise PlanError(
                f"{where}: section {section!r} must hold fields, such as "
                f"'{section}: {{{SECTIONS[section]}}}', got {loader.construct_document(value)!r}"
            )
    return loader, {section: value for section, (_, value) in nodes.items()}


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises
    ------
    PlanError
        If it cannot be read, is not YAML, or has a key twice.
    """
    loader, root = _compose(path)
    return None if root is None else loader.construct_document(root)


def _compose(path: Path) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    """Return the nodes of a YAML file, each with its line; None where there are none."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if root is not None:
            _refuse_repeated(path, root, set())
            loader.construct_document(root)
    except FileNotFoundError:
        return yaml.SafeLoader(""), None
    except IsADirectoryError as error:
        raise PlanError(f"{path} must be a file and is a folder; move it elsewhere") from error
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error}; correct its permissions") from error
    except RecursionError as error:
        raise PlanError(f"{path} is not YAML of settings: it is nested too deeply") from error
    except PlanError:
        raise
    # A date such as 2020-13-45 is a ValueError of Python's, and so is what is not UTF-8.
    except (yaml.YAMLError, ValueError) as error:
        raise PlanError(f"{path}{_not_yaml(error)}") from error
    return loader, root


def _not_yaml(error: Exception) -> str:
    """Say in one line what keeps a text from being YAML, and in which line where that is known."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f" is not YAML: {' '.join(str(error).split())}"
    words = [part for part in (error.context, error.problem) if part]
    return f", line {error.problem_mark.line + 1} is not YAML: {', '.join(words)}"


def _refuse_repeated(path: Path, node: yaml.Node, node_ids: set[int]) -> None:
    """Raise where a mapping, however deep, has a key twice."""
    if id(node) in node_ids:  # an alias
        return
    node_ids.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated(path, item, node_ids)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        _refuse_repeated(path, value, node_ids)
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGED:
            continue
        if key.value in first:
            raise PlanError(
                f"{path}, line {_line(key)}: {key.value!r} stands in line {first[key.value]} "
                "already; keep one of the two"
            )
        first[key.value] = _line(key)


def _section(path: Path, name: str, loader: yaml.SafeLoader, node: yaml.Node) -> Section:
    """Return a section, its variables looked up."""
    values = {str(key): value for key, value in loader.construct_document(node).items()}
    lines = dict.fromkeys(values, _line(node))  # what is merged in from an anchor
    lines |= {str(key.value): _line(key) for key, _ in node.value if str(key.value) in values}
    variables = {
        key: str(value["env"])
        for key, value in values.items()
        if isinstance(value, dict) and set(value) == {"env"}
    }
    for key, variable in variables.items():
        if variable not in os.environ:
            raise PlanError(
                f"{path}, line {lines[key]}: {name}.{key} is the variable {variable!r}, which is "
                "not set; set it"
            )
        values[key] = os.environ[variable]
    return Section(path, name, values, lines, variables)


def _is_empty(node: yaml.Node) -> bool:
    """Tell whether nothing stands there: a section whose fields are all commented out."""
    return bool(node.tag == _NULL)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
