"""What a command is about: images that a home knows, their segmentations, and the workers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patchworks_pipeline.cli.exit_codes import BAD_INPUT
from patchworks_pipeline.cli.options import checked_budget
from patchworks_pipeline.cli.terminal import fail
from patchworks_pipeline.instance.home import SETTINGS
from patchworks_pipeline.resources.built_in import TileWorkerKind


def segmentations_of(home: Path, only: str | None) -> tuple[str, ...]:
    """Return the segmentations that are asked for; one without a name where images have one."""
    from patchworks_pipeline.resources.several import Several

    names = Several.of_home(str(home.absolute())).names
    if only is None:
        return names or ("",)
    if only not in names:
        fail(f"--only {only!r} is none of the segmentations {list(names)!r} of {home}", BAD_INPUT)
    return (only,)


def check_one(names: Sequence[str], home: Path, what: str) -> None:
    """End and name the segmentations where images have several, and a call is of one.

    Parameters
    ----------
    names : sequence of str
        Segmentations that are asked for.
    home : Path
    what : str
        What is of one, such as 'a plan'.
    """
    if len(names) > 1:
        fail(
            f"{what} is of one segmentation, and {home / SETTINGS} names {list(names)!r}; say "
            f"which, such as --only {names[0]}",
            BAD_INPUT,
        )


def budget_of(
    workers: int | None,
    kind: TileWorkerKind | None,
    tile_timeout: float | None,
    worker_memory: str | None,
) -> dict[str, Any]:
    """Return the fields of `ComputeBudget` that options set, or end and say what they cannot be."""
    fields = {
        "workers": workers,
        "kind": kind,
        "tile_timeout": tile_timeout,
        "worker_memory": worker_memory,
    }
    chosen = {name: value for name, value in fields.items() if value is not None}
    checked_budget(chosen)
    return chosen


@contextmanager
def known_images(image: str | None, home: Path) -> Iterator[tuple[Any, list[str]]]:
    """Give the instance of a home and the keys of one image or all; end where there are none."""
    from patchworks_pipeline.cli.runs import open_home
    from patchworks_pipeline.landing.registered import keys_of
    from patchworks_pipeline.partitions import images
    from patchworks_pipeline.resources.resources import LabelStore

    if not (home / "dagster").is_dir():
        if (home / SETTINGS).is_file():
            fail(f"no image has been run in {home} yet; 'patchworks run IMAGE' does", BAD_INPUT)
        fail(f"no patchworks home at {home}; make one with 'patchworks run IMAGE'", BAD_INPUT)
    with open_home(home.absolute()) as instance:
        image_keys = sorted(instance.get_dynamic_partitions(str(images.name)))
        keys = image_keys
        if image is not None:
            named = (image, *keys_of(LabelStore().of_home().path(), image))
            keys = [key for key in named if key in image_keys][:1]
        if image is not None and not keys:
            fail(f"no image {image!r} in {home}; its images are {image_keys!r}", BAD_INPUT)
        yield instance, keys


@contextmanager
def known_image(image: str, home: Path, segmentation: str = "") -> Iterator[tuple[Any, Any]]:
    """Give the instance of a home and the folder of an image in it, or end with what is known."""
    from patchworks_pipeline.resources.resources import LabelStore

    with known_images(image, home) as (instance, (key,)):
        store = LabelStore().of_home()
        folder = store.folder(key, segmentation)
        if not folder.is_registered and (why := _why_refused(store, key)):
            fail(why, BAD_INPUT)
        yield instance, folder


def _why_refused(store: Any, key: str) -> str | None:
    """Return why the acquisition of an image was refused, and the way out; None where none was."""
    from patchworks_pipeline.landing.arrivals import Quarantine

    quarantine = Quarantine(store.path() / ".quarantine")
    for refusal in quarantine.refusals():
        if refusal.key == key:
            way_out = quarantine.release(refusal.name)
            return f"image {key!r} was refused: {refusal.reason}; {way_out}"
    return None
