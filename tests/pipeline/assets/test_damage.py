"""Damage to the records of an image: read as written, or an error that says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from patchworks_core.errors import ImageError, PlanError, StageError
from patchworks_pipeline.assets.planned import Measured
from patchworks_pipeline.records import ImageFolder
from tests.core.staging import block_file, rows_of, spoil_array
from tests.pipeline.conftest import error_of
from tests.tissue import tissue, write_tiff

RECORDS = [
    "acquisition.json",
    "plan.json",
    "statistics.json",
    "measured.json",
    "boundary_pairs.parquet",
    "lut.parquet",
    "objects.parquet",
]


@pytest.fixture
def folder(pipeline, tmp_path) -> ImageFolder:
    image = write_tiff(tmp_path / "tissue.tif", tissue((64, 64)))
    folder = pipeline.register(image)
    pipeline.run_to_labels(folder)
    stage, plan = folder.stage(), folder.plan()
    Measured(maxima=tuple(float(n) for n in range(plan.grid.n_tiles))).write(folder, plan)
    lut, options = folder.lut(stage)
    folder.write_objects(rows_of(folder.edges(stage)).to_arrow())
    assert lut.n_objects
    assert options
    return folder


def everything(folder: ImageFolder) -> list[str]:
    """Read every record, and return what they say in words."""
    plan = folder.plan()
    stage = folder.stage(plan)
    lut, options = folder.lut(stage)
    return [
        repr(value)
        for value in (
            plan,
            folder.acquisition(),
            folder.statistics().to_dict(),
            Measured.read(folder, plan),
            rows_of(folder.edges(stage)).to_arrow().to_pydict(),
            (lut.joined.tolist(), lut.merged.tolist(), options),
            folder.objects().to_pydict(),
        )
    ]


@pytest.mark.slow
def test_a_record_with_a_bit_flipped_or_cut_short_is_never_taken_for_another(folder):
    expected = everything(folder)
    rng = np.random.default_rng(11)
    for name in RECORDS:
        path = folder.path / name
        content = path.read_bytes()
        damages = [content[:0], content[:1], content[: len(content) // 2], content[:-2]]
        for place in rng.integers(0, len(content), 25):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            damages.append(bytes(flipped))
        n_errors = 0
        for damage in damages:
            path.write_bytes(damage)
            try:
                read = everything(folder)
            except (PlanError, StageError, ImageError) as error:
                assert folder.key in str(error) or str(path) in str(error), error  # noqa: PT017
                n_errors += 1
            else:
                assert read == expected, (name, damage)
        assert n_errors >= 4, name
        path.write_bytes(content)
    assert everything(folder) == expected


def test_a_choice_that_was_edited_is_named_and_kept_where_that_is_said(folder):
    path = folder.path / "acquisition.json"
    path.write_text(path.read_text().replace('"level": 0', '"level": 1'))
    with pytest.raises(PlanError, match="changed by hand, or is damaged; remove its line 'digest'"):
        folder.acquisition()
    lines = path.read_text().splitlines()
    text = "\n".join(line for line in lines if '"digest"' not in line).rstrip("}\n, ") + "\n}"
    path.write_text(text)
    assert folder.acquisition().level == 1


def test_a_tile_whose_labels_are_damaged_is_named_and_staged_again(pipeline, folder):
    spoil_array(block_file(folder.path / "stage.zarr", "y000x000"), "labels")
    shutil.rmtree(Path(str(folder.container)))
    result = pipeline.merge(folder)
    assert not result.success
    assert "the labels of tile block 'y000x000'" in error_of(result)
    assert folder.stage().missing_blocks() == ["y000x000"]
    assert pipeline.stage(folder, "y000x000").success
    assert pipeline.merge(folder).success
