"""The command ``patchworks view``: image, labels and tiles in napari, or in a picture."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchworks_core.errors import PlanError
from patchworks_pipeline.cli.options import (
    HOME,
    LEVEL,
    Axes,
    Home,
    Level,
    Only,
    PixelSizes,
    channel_of,
    numbers_of,
    one_or_all,
    pixel_size_of,
)
from patchworks_pipeline.cli.terminal import say

if TYPE_CHECKING:
    from patchworks_core.images.image import Image
    from patchworks_core.tiles.grid import TileGrid
    from patchworks_pipeline.records import Acquisition


def view(
    image: Annotated[str, typer.Argument(help="Path or URL of an image, or its key in the home.")],
    labels: Annotated[
        str | None, typer.Option(help="Path or URL of labels, such as a.ome.zarr/labels/cells.")
    ] = None,
    tile_shape: Annotated[
        str | None, typer.Option(help="Tiles to draw; else those the labels were made in.")
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel by position or name; all in napari, else the first.")
    ] = None,
    level: Level = None,
    axes: Axes = None,
    pixel_size: PixelSizes = None,
    picture: Annotated[
        Path | None, typer.Option("-o", "--picture", help="PNG to write instead of opening napari.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a picture file that patchworks did not write.")
    ] = False,
    only: Only = None,
    home: Home = HOME,
) -> None:
    """Show an image with labels and tiles in napari, or write a picture where there is none."""
    from patchworks_core.files.replacing import replacing
    from patchworks_core.files.storage import as_path, write_bytes
    from patchworks_core.pictures.viewing import layers_of, picture_of, show

    request = ViewRequest(image, labels, channel, level, axes, pixel_size_of(pixel_size))
    request = request.in_home(home, only)
    wants_napari = picture is None and find_spec("napari") is not None
    opened, labelled, grid = request.open(None if wants_napari else 0, tile_shape)
    if wants_napari:
        show(layers_of(opened, labelled, grid), title=image)
        return
    of = f".{only}" if only else ""
    path = picture or Path(f"{Path(request.image.rstrip('/')).name}{of}.overlay.png")
    reads = [i.source for i in (opened, labelled) if i is not None]
    naming: dict[str, Any] = {"what": "a picture", "another": "--picture"}
    with replacing(as_path(path), reads=reads, overwrite=overwrite, **naming) as working:
        write_bytes(working.new, picture_of(opened, labelled, grid))
    say(f"  picture  {path.absolute()}")
    if picture is None:
        say("for a view to move in: pip install 'patchworks-pipeline[napari]'")


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """What is to be shown."""

    image: str
    """Path, URL, or key."""

    labels: str | None
    """Path or URL."""

    channel: str | None
    """As on the command line; None leaves it to the viewer."""

    level: int | None
    """None is the level that was segmented, or full resolution."""

    axes: str | None

    pixel_size: Any = None
    """Micrometers per pixel, as was chosen for the image."""

    def in_home(self, home: Path, only: str | None = None) -> "ViewRequest":
        """Return the same with the paths of an image of a home, where the image is the key of one.

        The labels are those that were merged last; while there are none, none are shown.
        """
        from patchworks_core.files.locations import split_scene

        file, _ = split_scene(self.image)
        if "://" in self.image or Path(file).exists() or not (home / "dagster").is_dir():
            return self
        from patchworks_pipeline.cli.runs import open_home
        from patchworks_pipeline.resources.resources import LabelStore
        from patchworks_pipeline.resources.several import Several

        with open_home(home.absolute()):
            # Of several segmentations the first is shown where none is asked for.
            names = Several.of_home().names
            if only is not None and only not in names:
                raise PlanError(f"--only {only!r} is none of the segmentations {list(names)!r}")
            name = only or (names[0] if names else "")
            folder = LabelStore().of_home().folder(self.image, name)
            if not folder.is_registered:
                return self
            acquisition = folder.acquisition()
            path = folder.labels(folder.plan()).path if folder.has("plan.json") else None
        has_labels = path is not None and path.exists()
        return ViewRequest(
            acquisition.url,
            self.labels or (str(path) if has_labels else None),
            self.channel or (None if acquisition.channel is None else str(acquisition.channel)),
            acquisition.level if self.level is None else self.level,
            acquisition.axes if self.axes is None else self.axes,
            self.pixel_size or self._size_of(acquisition),
        )

    def _size_of(self, acquisition: "Acquisition") -> Any:
        """Return the pixel size that was chosen for an image, which is that of its level."""
        return acquisition.pixel_size if self.level in (None, acquisition.level) else None

    def open(
        self, default_channel: int | None, tile_shape: str | None
    ) -> "tuple[Image, Image | None, TileGrid | None]":
        """Open image and labels, and find the tiles to draw."""
        from patchworks_core import open_image
        from patchworks_core.pictures.viewing import grid_of_labels
        from patchworks_core.tiles.grid import plan_grid

        channel = default_channel if self.channel is None else channel_of(self.channel)
        image = open_image(
            self.image,
            channel=channel,
            level=self.level or LEVEL,
            axes=self.axes,
            pixel_size=self.pixel_size,
        )
        labels = None if self.labels is None else open_image(self.labels, channel=None)
        grid = None if self.labels is None else grid_of_labels(self.labels)
        if tile_shape is not None:
            shape = one_or_all(numbers_of("--tile-shape", tile_shape))
            grid = plan_grid(image.axes, image.shape, tile_shape=shape)
        return image, labels, grid
