"""What runs on each tile: a function by name, its parameters, and what it declares of itself.

A segmentation function takes the pixels of one tile and returns one label per pixel. It may ask,
by parameter name, for what the pipeline knows about the whole image: ``statistics`` is the exact
`ImageStatistics` of the image, so that thresholds are the same in every tile.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from patchworks_core.errors import SegmentationError
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.plugins.function_versions import (
    FunctionVersion,
    name_of,
    version_of,
    version_of_files,
)
from patchworks_core.seams.rules import MergeRule, Outline
from patchworks_core.statistics.background import DARK_OBJECTS, has_bright_background
from patchworks_core.statistics.statistics import ImageStatistics

LabelFunction = Callable[..., "np.ndarray[Any, Any]"]

BUILT_IN = {
    "threshold": "patchworks_core.plugins.threshold:threshold",
    "watershed": "patchworks_core.plugins.watershed:watershed",
    "cellpose": "patchworks_core.plugins.cellpose:cellpose",
    "stardist": "patchworks_core.plugins.stardist:stardist",
}
"""Names of the functions that come with patchworks, which are what plans record, and where each is
defined now; each says what package it needs."""

ENTRY_POINT_GROUP = "patchworks.segmentations"
"""Entry-point group through which other packages add names."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a segmentation function says of itself."""

    merge: MergeRule = "auto"
    """The rule that is right for its labels; ``touching`` if it labels connected components."""

    version: str = ""
    """Raised by its author whenever the same pixels would get other labels."""

    same_as_before: Callable[[str, Mapping[str, Any], ImageStatistics], bool] | None = None
    """Called with an earlier version, the parameters and the statistics of an image: tells whether
    that version gave the same labels of just this image, so that its tiles may be completed."""

    gpu: bool = False
    """True if it runs on a GPU where there is one."""

    prepare: Callable[[Mapping[str, Any]], str] | None = None
    """Called with the parameters when the function is planned, long before the first tile: raises
    SegmentationError where it could not run with them, and returns what else its version depends
    on, such as the weights of a model."""

    other_channels: Mapping[str, str] = field(default_factory=dict)
    """Other channels that the function is given beside its tile: the keyword that gets the pixels,
    and the parameter that names the channel; none where that parameter is None. A parameter
    ``<keyword>_statistics`` gets the statistics of that channel."""

    outline: Outline = "auto"
    """``core`` if a tile's labels in its core are what they would be without tiles, so that nothing
    is gained by what neighbours saw of them."""

    workers: WorkerKind = "processes"
    """``threads`` if it neither crashes nor hangs, and lets go of the GIL: where a deployment
    leaves it open, it then runs in threads, which start at once. Any other function runs in worker
    processes, which can be ended."""

    def __post_init__(self) -> None:
        Workers(kind=self.workers)


def declare(
    *,
    merge: MergeRule = "auto",
    version: str = "",
    same_as_before: Callable[[str, Mapping[str, Any], ImageStatistics], bool] | None = None,
    gpu: bool = False,
    prepare: Callable[[Mapping[str, Any]], str] | None = None,
    other_channels: Mapping[str, str] | None = None,
    companions: Mapping[str, str] | None = None,
    outline: Outline = "auto",
    workers: WorkerKind = "processes",
) -> Callable[[LabelFunction], LabelFunction]:
    """Declare the merge rule and version of a segmentation function; fields as in `Declaration`.

    `companions` is what `other_channels` was called in 0.1.

    Examples
    --------
    >>> @declare(merge="touching", version="1")
    ... def bright(tile):
    ...     return (tile > 0).astype("int32")
    >>> declaration_of(bright).merge
    'touching'
    """

    def mark(function: LabelFunction) -> LabelFunction:
        channels = dict(other_channels or companions or {})
        declaration = Declaration(
            merge, version, same_as_before, gpu, prepare, channels, outline, workers
        )
        function.patchworks = declaration  # type: ignore[attr-defined]
        return function

    return mark


def declaration_of(function: LabelFunction) -> Declaration:
    """Return what `function` declares, looking through `functools.partial`."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "patchworks", Declaration())


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A segmentation function with its parameters, ready to be recorded, sent and called."""

    function: LabelFunction
    """Called with the pixels of one tile, shape (z, y, x) or fewer axes; returns labels."""

    name: str
    """Name of a built-in, import path ``module:function``, or a description where it has none."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every call."""

    version: str = ""
    """What its labels depend on: declared by it, or digests of its source and of all it reaches."""

    changing: str = ""
    """Digest of the globals that it reads and that code may change while it runs."""

    unknown: tuple[str, ...] = ()
    """What its labels may depend on and nothing vouches for, in words."""

    def __post_init__(self) -> None:
        unknown = set(self.parameters) - set(_parameter_names(self.function))
        if unknown and not _takes_any_keyword(self.function):
            raise SegmentationError(
                f"segmentation function {self.name!r} has no parameter {sorted(unknown)!r}; "
                f"its parameters are {_parameter_names(self.function)!r}"
            )

    @property
    def wants_statistics(self) -> bool:
        """True if the function asks for the statistics of the whole image."""
        return "statistics" in _parameter_names(self.function)

    @property
    def wants_gpu(self) -> bool:
        """True if it declares a GPU, or was asked to use one by its parameter ``gpu``."""
        values = {**_bound_keywords(self.function), **self.parameters}
        wants = values.get("gpu") or values.get("use_gpu")
        return declaration_of(self.function).gpu or bool(wants)

    @property
    def worker_kind(self) -> WorkerKind:
        """What it runs in where nobody chose."""
        return declaration_of(self.function).workers

    @property
    def merge(self) -> MergeRule:
        """The merge rule that the function declares, or ``auto``."""
        return declaration_of(self.function).merge

    @property
    def outline(self) -> Outline:
        """How the function says that outlines are drawn, or ``auto``."""
        return declaration_of(self.function).outline

    @property
    def connectivity(self) -> int | None:
        """The connectivity its labels have, where the function says; None is unknown."""
        value = self._value_of("connectivity")
        return value if isinstance(value, int) else None

    def _value_of(self, name: str) -> Any:
        """Return what a parameter is in every call; None where the function has no such."""
        if name not in _parameter_names(self.function):
            return None
        default = inspect.signature(self.function).parameters[name].default
        return self.parameters.get(name, default)

    def notes_on(self, statistics: ImageStatistics) -> tuple[str, ...]:
        """Say in words what the function decides from the statistics of the image."""
        is_left_open = self._value_of("dark_objects") == "auto"
        return (DARK_OBJECTS,) if is_left_open and has_bright_background(statistics) else ()

    def is_same_as(self, version: str, statistics: ImageStatistics) -> bool:
        """Tell whether an earlier version of the function gave the same labels of an image.

        Parameters
        ----------
        version : str
            As it is recorded.
        statistics : ImageStatistics
            Of that image.
        """
        declared = declaration_of(self.function)
        if declared.same_as_before is None:
            return False
        before, _, bound = version.partition(" ")
        if bound != self.version.partition(" ")[2]:
            return False
        parameters = {**_bound_keywords(self.function), **self.parameters}
        return declared.same_as_before(before, parameters, statistics)

    @property
    def other_channels(self) -> dict[str, int | str]:
        """Other channels to read with each tile, by the keyword that gets their pixels."""
        values = {**_bound_keywords(self.function), **self.parameters}
        named = declaration_of(self.function).other_channels.items()
        return {keyword: values[name] for keyword, name in named if values.get(name) is not None}

    @property
    def measured_channels(self) -> tuple[str, ...]:
        """Those of `other_channels` whose statistics the function asks for."""
        names = _parameter_names(self.function)
        return tuple(k for k in self.other_channels if f"{k}_statistics" in names)

    def __call__(self, tile: np.ndarray[Any, Any], **context: Any) -> np.ndarray[Any, Any]:
        """Label one tile; `known` is what the function asks for, such as ``statistics``."""
        return self.function(tile, **{**context, **self.parameters})

    def bind(
        self, statistics: object | None, other_channels: Mapping[str, object] | None = None
    ) -> LabelFunction:
        """Return a function of the tile alone, the parameters and what it asks for filled in.

        Parameters
        ----------
        statistics : ImageStatistics or None
            Of the channel that is segmented.
        other_channels : mapping, optional
            Statistics of `measured_channels`, by keyword.
        """
        context = {"statistics": statistics} if self.wants_statistics else {}
        context |= {
            f"{name}_statistics": measured for name, measured in (other_channels or {}).items()
        }
        return partial(self.function, **{**context, **self.parameters})

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the function, JSON-ready."""
        return {
            "function": self.name,
            "parameters": dict(self.parameters),
            "version": self.version,
        }


def segmentation_of(
    function: str | LabelFunction | Segmentation, parameters: Mapping[str, Any] | None = None
) -> Segmentation:
    """Find a segmentation function by name, ``module:function``, or take the callable itself.

    Parameters
    ----------
    function : str, callable or Segmentation
        A built-in name (``threshold``, ``watershed``, ``cellpose``, ``stardist``), a name that an
        installed package added to the entry-point group ``patchworks.segmentations``, an import
        path ``module:function``, or a function of one tile.
    parameters : mapping, optional
        Keyword arguments of every call.

    Raises
    ------
    SegmentationError
        If there is no such function, it has no such parameter, or it could not run: a package
        or the weights of its model are missing.

    Examples
    --------
    >>> segmentation_of("threshold", {"value": 12}).name
    'threshold'
    """
    if isinstance(function, Segmentation):
        if not parameters:
            return function
        parameters = {**function.parameters, **parameters}
        function = function.function
    if isinstance(function, str):
        function = _import(function)
    if not callable(function):
        raise SegmentationError(
            f"a segmentation function must be callable or a name, got {function!r}"
        )
    name, parameters = short_name(name_of(function)), dict(parameters or {})
    versions = [_version_of(function)]
    segmentation = Segmentation(function, name, parameters)
    values = {**_bound_keywords(function), **parameters}
    prepare = declaration_of(function).prepare
    if prepare is None:
        versions.append(version_of_files(values))
    else:  # which knows what files its parameters mean
        versions.append(FunctionVersion(prepare(values)))
    return replace(
        segmentation,
        version=" ".join(part.text for part in versions if part.text),
        changing=versions[0].changing,
        unknown=tuple(text for part in versions for text in part.unknown),
    )


def short_name(name: str) -> str:
    """Return the name of a built-in for the path that version 0.1.0 recorded; others as they are.

    Examples
    --------
    >>> short_name("patchworks_core.plugins.threshold:threshold"), short_name("cells:by_hand")
    ('threshold', 'cells:by_hand')
    """
    return next((built_in for built_in in BUILT_IN if recorded_before(built_in) == name), name)


def recorded_before(name: str) -> str:
    """Return how version 0.1.0 recorded a function; the digests of plans are made of that for good.

    Examples
    --------
    >>> recorded_before("threshold"), recorded_before("cells:by_hand")
    ('patchworks_core.plugins.threshold:threshold', 'cells:by_hand')
    """
    return f"patchworks_core.plugins.{name}:{name}" if name in BUILT_IN else name


def segmentation_names() -> tuple[str, ...]:
    """Return the names that can be used without an import path."""
    return tuple(sorted({*BUILT_IN, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))}))


def import_path(path: str, name: str | None = None) -> tuple[str, str]:
    """Return the module and the attribute that ``module:attribute`` names.

    Parameters
    ----------
    path : str
    name : str, optional
        What the function is called in the error; `path` by default.

    Raises
    ------
    SegmentationError
        If it is no such path.

    Examples
    --------
    >>> import_path("cells.nuclei:label")
    ('cells.nuclei', 'label')
    """
    module, separator, attribute = path.partition(":")
    if not separator:
        raise SegmentationError(
            f"no segmentation function is called {name or path!r}; use one of "
            f"{segmentation_names()!r} or an import path 'module:function'"
        )
    return module, attribute


def _import(name: str) -> LabelFunction:
    """Import the function that `name` stands for."""
    registered = {e.name: e.value for e in entry_points(group=ENTRY_POINT_GROUP)}
    path = BUILT_IN.get(short_name(name)) or registered.get(name) or name
    module_name, attribute = import_path(path, name)
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise SegmentationError(
            f"cannot import segmentation function {path!r}: {error}; the module must be installed, "
            "or its folder on PYTHONPATH"
        ) from error
    return value  # type: ignore[no-any-return]


def _bound_keywords(function: LabelFunction) -> dict[str, Any]:
    """Return the keyword arguments that `functools.partial` already fills in."""
    if not isinstance(function, partial):
        return {}
    return {**_bound_keywords(function.func), **function.keywords}


def _version_of(function: LabelFunction) -> FunctionVersion:
    """Return the declared version, else digests of the source and of what the function reaches."""
    declared = declaration_of(function).version
    if not declared:
        return version_of(function)
    if not isinstance(function, partial):
        return FunctionVersion(declared)
    bound = version_of(partial(_declared, *function.args, **function.keywords))
    return replace(bound, text=f"{declared} {bound.text}")


def _declared() -> None:
    """Stand for a function whose version is declared, where only what is bound to it counts."""


def _parameter_names(function: LabelFunction) -> tuple[str, ...]:
    """Return the parameters of `function` that can be given by name, beyond the tile itself."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters[1:] if p.kind in named)


def _takes_any_keyword(function: LabelFunction) -> bool:
    """Tell whether unknown keywords cannot be told from known ones."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
