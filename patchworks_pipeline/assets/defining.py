"""What the assets of an image have in common, whichever segmentation they are of."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from patchworks_pipeline.lineage import Lineage

OWNERS = ["team:imaging-facility"]


def image_asset(
    lineage: Lineage,
    name: str,
    body: Callable[..., Any],
    *,
    hidden: Mapping[str, Any] | None = None,
    **options: Any,
) -> dg.AssetsDefinition:
    """Define an asset with a partition per image.

    Parameters
    ----------
    lineage : Lineage
    name : str
        Without what stands before it in `lineage`.
    body : callable
        As in `Lineage.bound`.
    hidden : mapping, optional
        Arguments of `body` that Dagster does not see.
    **options
        Of `dagster.asset`.
    """
    asset = dg.asset(key=lineage.key(name), partitions_def=lineage.images, owners=OWNERS, **options)
    defined: dg.AssetsDefinition = asset(lineage.bound(body, **(hidden or {})))
    return defined


@contextmanager
def defining_checks() -> Iterator[None]:
    """Define checks that have a partition per image without Dagster's warning.

    Dagster may still change them, which is why the project names one minor version of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield
