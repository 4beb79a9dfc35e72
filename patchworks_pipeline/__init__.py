"""patchworks as a Dagster pipeline: names, schedules and records around `patchworks_core`."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Segmentation":
        from patchworks_pipeline.component import Segmentation

        return Segmentation
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("patchworks-pipeline")


def __dir__() -> list[str]:
    return ["Segmentation", *globals()]
