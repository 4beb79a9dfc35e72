"""Pictures in colour on the command line: which channel is segmented, and how to choose another."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest

from patchworks_pipeline.landing.opening import Opening
from patchworks_pipeline.records import Acquisition
from tests.pipeline.conftest import call_command_line, metadata_of
from tests.tissue import tissue

SAID = "channel 0 of 3"


@pytest.fixture
def path(tmp_path):
    pixels = tissue().astype("u1")
    iio.imwrite(tmp_path / "a.png", np.stack([pixels, pixels // 2, pixels], axis=-1))
    return tmp_path / "a.png"


def test_the_image_asset_says_which_channel_is_segmented(pipeline, path):
    folder = pipeline.register(path)
    assert SAID in metadata_of(pipeline.plan(folder), "image")["notes"]
    chosen = pipeline.register(path, key="chosen", channel=0)
    assert metadata_of(pipeline.plan(chosen), "image")["notes"] == "none"


def test_that_nobody_chose_a_channel_is_kept_in_the_record():
    for channel, is_said in ((None, False), (0, False), ("red", False)):
        text = Acquisition("a.png", channel=channel).to_json()
        assert Acquisition.from_json(text, where="a").channel == channel
        assert ('"channel"' not in text) == is_said
    text = Acquisition("a.png").to_json()
    assert '"channel"' not in text
    assert Acquisition.from_json(text, where="a").channel == 0


def test_a_picture_in_the_landing_folder_says_so_too_unless_the_setting_chooses():
    assert '"channel"' not in Opening().acquisition("a.png").to_json()
    assert '"channel"' not in Opening.of({"match": "*.png"}).acquisition("a.png").to_json()
    assert (
        '"channel"' in Opening.of({"match": "*.png", "channel": 0}).acquisition("a.png").to_json()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "chosen"), [("run", False), ("segment", False), ("segment", True)]
)
def test_a_command_says_which_channel_is_segmented(home, path, command, chosen):
    arguments = ["--segmentation", "threshold", "--tile-shape", "64"]
    arguments += ["--channel", "0"] if chosen else []
    arguments += ["-o", path.with_name("labels.zarr")] if command == "segment" else []
    code, printed = call_command_line(command, path, *arguments)
    assert code == 0, printed
    assert printed.count(SAID) == (0 if chosen else 1)
