"""Make the stage and the home that tests open as made by version 0.1.0; run with that version."""

import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

import patchworks_core
from patchworks_core import TilesFailedError, tile_process

PIXELS = (ndimage.gaussian_filter(np.random.default_rng(7).random((96, 120)), 2) * 4000).astype(
    "u2"
)
HOME = Path("/tmp/patchworks-home-of-0.1.0")


def main(out: Path) -> None:
    print(patchworks_core.__file__)
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(HOME, ignore_errors=True)
    options = {"tile_shape": 32, "overlap": 8, "max_workers": 1}
    whole = tile_process(PIXELS, "threshold", **options)
    np.save(out / "labels.npy", whole)
    # modules as they were called in that version
    from patchworks_core import staging
    from patchworks_pipeline.cli import app

    calls = []
    segment = staging._StageTask._segment

    def fails_after_five(self, *arguments):
        calls.append(1)
        if len(calls) > 5:
            raise ValueError("the power is gone")
        return segment(self, *arguments)

    staging._StageTask._segment = fails_after_five
    try:
        tile_process(PIXELS, "threshold", write_to=work / "labels.zarr", **options)
    except TilesFailedError as error:
        print(str(error)[:80])
    staging._StageTask._segment = segment
    (HOME / "landing").mkdir(parents=True)
    for name, step in (("done", 1), ("half", -1)):
        path = HOME / "images" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, np.ascontiguousarray(PIXELS[::step]), metadata={"axes": "YX"})
        os.utime(path, (1_700_000_000, 1_700_000_000))
    os.environ["PATCHWORKS_HOME"] = str(HOME)
    for name in ("done", "half"):
        if name == "half":
            calls.clear()
            staging._StageTask._segment = fails_after_five
        sys.argv = ["patchworks", "run", str(HOME / "images" / f"{name}.tif"), "--home", str(HOME)]
        sys.argv += ["--tile-shape", "32", "--overlap", "8", "--segmentation", "threshold"]
        sys.argv += ["--worker-kind", "threads"]
        try:
            app()
        except SystemExit as end:
            print(name, end.code)
    with tarfile.open(out / "made_by_0.1.0.tar.xz", "w:xz") as archive:
        archive.add(work / "labels.zarr", "labels.zarr")
        archive.add(HOME, "home")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
