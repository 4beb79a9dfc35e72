"""patchworks as a Dagster pipeline: names, schedules and records around `patchworks_core`."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("patchworks-pipeline")
