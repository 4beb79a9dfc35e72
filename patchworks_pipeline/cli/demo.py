"""The demo: a real micrograph, its nuclei stained with haematoxylin, through all assets."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from patchworks_pipeline.instance.home import DEFAULT_HOME

MICROGRAPH = "immunohistochemistry.ome.tif"

CHOICES: dict[str, Any] = {
    "function": "watershed",
    "parameters": {"sigma": 1.5, "min_distance": 5, "value": 100},
    "tile_shape": (128,),
    "overlap": (32,),
    "merge": {"min_size": 30},
}
"""Small tiles, so that many nuclei cross seams; a threshold above Otsu's 80, because the stain is
dense in some glands and would run together."""


def write_micrograph(folder: Path) -> Path:
    """Write the haematoxylin stain of scikit-image's colon tissue as OME-TIFF; return its path.

    The stains are parted by colour deconvolution (Ruifrok & Johnston 2001), so that nuclei are
    bright on a dark ground. scikit-image carries the picture in its wheel: nothing is downloaded.

    References
    ----------
    ``skimage.data.immunohistochemistry``: colonic glands, DAB and haematoxylin, 512 x 512; the
    optical resolution is not recorded, so the file is not calibrated.
    """
    import tifffile
    from skimage.color import rgb2hed
    from skimage.data import immunohistochemistry

    path = folder / MICROGRAPH
    if path.exists():
        return path
    haematoxylin = rgb2hed(immunohistochemistry())[..., 0]
    low, high = np.percentile(haematoxylin, [0.1, 99.9])
    grey = np.clip((haematoxylin - low) / (high - low), 0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    tifffile.imwrite(
        temporary,
        np.round(grey * 255).astype(np.uint8),
        metadata={"axes": "YX"},
        ome=True,
        tile=(128, 128),
        compression="zlib",
    )
    temporary.replace(path)
    return path


def program() -> str:
    """Return how this program is typed from here: by its name, where the shell finds it so."""
    called = sys.argv[0]
    if Path(called).name != "patchworks" or shutil.which("patchworks") == called:
        return "patchworks"
    return shlex.quote(called)


def describe(home: Path) -> str:
    """Return what to look at after the demo."""
    at_home = "" if home == Path(DEFAULT_HOME) else f" --home {shlex.quote(str(home))}"
    return (
        "\nWhat to look at:\n"
        "  the overlay: nuclei outlined over the tissue, the dashed lines are the tile grid; a\n"
        "  nucleus that crosses a line has one colour on both sides\n"
        f"  the lineage: {program()} ui{at_home}, then open Lineage in the browser"
    )
