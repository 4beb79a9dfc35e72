"""StarDist on tiles: what is settled when the image is planned, and what each tile is given.

The first half needs no StarDist: the model is an object that records what it is asked. The second
half trains a small model for half a minute with the installed StarDist, and is skipped where there
is none.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import tile_process
from patchworks_core.errors import SegmentationError
from patchworks_core.images.image import open_image
from patchworks_core.machine.faults import kind_of
from patchworks_core.pilot.agreement import compare_objects
from patchworks_core.plugins import models as shared
from patchworks_core.plugins import stardist as plugin
from patchworks_core.plugins import stardist_package as package
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.plugins.stardist import MAX_SPLITS, split, stardist_fn
from patchworks_core.stage.plan import make_plan

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "stardist.md"

EXAMPLES = re.compile(r"^```py(?:thon)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""Of a page of the documentation: ``python`` runs by itself, ``py`` needs the files it names."""


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


class Recorder:
    """In place of a StarDist model: labels what is brighter than half the range."""

    def __init__(self, axes="YXC", fits=10**9):
        self.config, self.fits = SimpleNamespace(axes=axes), fits
        self.calls, self.pixels = [], []

    def predict_instances(self, pixels, **arguments):
        self.calls.append(arguments)
        self.pixels.append(pixels.copy())
        if pixels.size / np.prod(arguments["n_tiles"] or 1) > self.fits:
            raise ResourceExhaustedError("failed to allocate memory")
        return ndimage.label(pixels > 0.5)[0], {}


@pytest.fixture(autouse=True)
def nothing_loaded():
    shared._LOADED.clear()
    yield
    shared._LOADED.clear()


@pytest.fixture
def folder(tmp_path):
    """A saved model, as far as planning looks at it."""
    folder = tmp_path / "nuclei"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"n_dim": 2, "n_channel_in": 1}))
    (folder / "thresholds.json").write_text(json.dumps({"prob": 0.5, "nms": 0.4}))
    (folder / "weights_last.h5").write_bytes(b"last")
    (folder / "weights_best.h5").write_bytes(b"best")
    return folder


@pytest.fixture
def recorded(monkeypatch):
    """Make a `Recorder` the model that is loaded, and StarDist 0.9.2 what is installed."""
    recorder = Recorder()
    recorder.loads = []

    def load(model, *, gpu):
        recorder.loads.append((model, gpu))
        return recorder

    monkeypatch.setattr(plugin, "check_installed", lambda: "0.9.2")
    monkeypatch.setattr(plugin, "load_model", load)
    return recorder


# What is settled when the image is planned


@pytest.mark.parametrize("gone", ["stardist", "tensorflow"])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(gone, monkeypatch, folder):
    monkeypatch.setattr(shared, "find_spec", lambda name: None if name == gone else name)
    for plan in (
        lambda: stardist_fn(folder),
        lambda: segmentation_of("stardist", {"model": str(folder)}),
    ):
        with pytest.raises(SegmentationError, match=gone) as error:
            plan()
        assert 'pip install "patchworks-pipeline[stardist]"' in str(error.value)


def test_a_folder_without_a_model_is_refused(recorded, tmp_path):
    with pytest.raises(SegmentationError, match=r"no StarDist model at .*there is no config\.json"):
        stardist_fn(tmp_path)
    with pytest.raises(SegmentationError, match="no StarDist model at .*/missing"):
        stardist_fn(tmp_path / "missing")


def test_a_model_without_weights_is_refused(recorded, folder):
    for file in folder.glob("*.h5"):
        file.unlink()
    with pytest.raises(SegmentationError, match=r"has no weights \(\*\.h5\)"):
        stardist_fn(folder)


def test_a_configuration_that_is_none_is_refused(recorded, folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(SegmentationError, match="is not the configuration of a StarDist model"):
        stardist_fn(folder)


def test_a_model_for_colour_is_refused(recorded, folder):
    (folder / "config.json").write_text(json.dumps({"n_dim": 2, "n_channel_in": 3}))
    with pytest.raises(SegmentationError, match="tiles hold one channel, and .* takes 3; use"):
        stardist_fn(folder)


@pytest.mark.parametrize("layout", ["2D_mine", "2D_mine/2D_mine"])
def test_a_pretrained_model_is_found_where_keras_keeps_it(layout, recorded, folder, monkeypatch):
    home = folder.parent / "keras"
    kept = home / "models" / "StarDist2D" / layout
    kept.parent.mkdir(parents=True)
    folder.rename(kept)
    monkeypatch.setenv("KERAS_HOME", str(home))
    assert package.model_folder("2D_mine") == kept
    assert stardist_fn("2D_mine").parameters == {"model": "2D_mine"}


@pytest.mark.parametrize("file", ["config.json", "thresholds.json", "weights_best.h5"])
def test_the_version_says_which_stardist_and_which_model(file, recorded, folder):
    first = stardist_fn(folder)
    assert first.version.startswith("1 stardist==0.9.2 weights:")
    text = '{"n_dim": 2, "n_channel_in": 1, "prob": 0.6}'
    (folder / file).write_text(text)
    other = stardist_fn(folder)
    image = open_image(np.zeros((8, 8), np.uint8))
    plans = [make_plan(image, fn, tile_shape=4) for fn in (first, other)]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_weights_that_stardist_does_not_take_do_not_count(recorded, folder):
    first = stardist_fn(folder).version
    (folder / "weights_last.h5").write_bytes(b"later")
    assert stardist_fn(folder).version == first


def test_what_a_plan_records_finds_the_function_again(recorded, folder):
    fn = stardist_fn(folder, prob_thresh=0.6, normalize=(0, 9))
    record = make_plan(open_image(np.zeros((8, 8))), fn, tile_shape=4).segmentation
    assert record["parameters"] == {
        "model": str(folder),
        "prob_thresh": 0.6,
        "normalize": [0, 9],
    }
    assert segmentation_of(record["function"], record["parameters"]).version == fn.version
    assert segmentation_of("stardist", record["parameters"]).name == fn.name
    assert fn.merge == "overlap"
    assert stardist_fn(folder, gpu=True).wants_gpu
    assert not fn.wants_gpu


def test_it_pickles_without_the_model(recorded, folder):
    fn = stardist_fn(folder, normalize=(0, 9))
    fn(np.zeros((8, 8)))
    assert len(pickle.dumps(fn)) < 1000


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"normalize": "no"}, "normalize must be 'global', 'tile', or two values"),
        ({"percentiles": (1, 101)}, "percentiles must be within 0 to 100"),
        ({"min_size": 3}, "has no parameter .*'min_size'"),
    ],
)
def test_what_cannot_be_used_is_refused_when_the_image_is_planned(
    parameters, words, recorded, folder
):
    with pytest.raises(SegmentationError, match=words):
        stardist_fn(folder, **parameters)


def test_a_model_must_be_named(recorded):
    with pytest.raises(SegmentationError, match="needs model=, the folder of a saved model"):
        segmentation_of("stardist", {})


# What each tile is given


def test_every_tile_is_scaled_by_the_percentiles_of_the_whole_image(recorded, folder):
    pixels = np.random.default_rng(0).integers(0, 1000, (40, 60), dtype=np.uint16)
    tile_process(pixels, stardist_fn(folder), tile_shape=20)
    low, high = (float(np.percentile(pixels, q, method="inverted_cdf")) for q in (1, 99.8))
    assert len(recorded.pixels) == 6
    expected = (pixels.astype(np.float32) - low) / (high - low)
    np.testing.assert_allclose(recorded.pixels[0], expected[:20, :20], rtol=1e-5)
    np.testing.assert_allclose(recorded.pixels[-1], expected[20:, 40:], rtol=1e-5)


def test_thresholds_are_the_models_own_unless_given(recorded, folder):
    stardist_fn(folder, normalize=(0, 9))(np.ones((8, 8)))
    stardist_fn(folder, normalize=(0, 9), prob_thresh=0.7, nms_thresh=0.2, scale=[2, 1])(
        np.ones((8, 8))
    )
    own, given = recorded.calls
    assert (own["prob_thresh"], own["nms_thresh"], own["scale"]) == (None, None, None)
    assert (given["prob_thresh"], given["nms_thresh"], given["scale"]) == (0.7, 0.2, (2, 1))


@pytest.mark.parametrize(
    ("axes", "shape", "given"),
    [
        ("YXC", (9, 8), (9, 8)),
        ("YXC", (1, 9, 8), (9, 8)),
        ("ZYXC", (3, 9, 8), (3, 9, 8)),
        ("ZYXC", (1, 9, 8), (1, 9, 8)),
    ],
)
def test_a_tile_comes_back_in_its_shape(axes, shape, given, recorded, folder):
    recorded.config.axes = axes
    labels = stardist_fn(folder, normalize=(0, 9))(np.full(shape, 8))
    assert labels.shape == shape
    assert labels.dtype == np.int32
    assert (labels == 1).all()
    assert recorded.pixels[0].shape == given
    assert recorded.calls[0]["axes"] == axes.replace("C", "")


@pytest.mark.parametrize(
    ("axes", "shape", "words"),
    [
        ("YXC", (3, 9, 8), r"2-D, got a tile of shape \(3, 9, 8\); make tiles one plane thick"),
        ("ZYXC", (9, 8), r"3-D, got a tile of shape \(9, 8\); use a 2-D model"),
    ],
)
def test_a_tile_of_other_axes_says_what_to_do(axes, shape, words, recorded, folder):
    recorded.config.axes = axes
    with pytest.raises(SegmentationError, match=words):
        stardist_fn(folder, normalize=(0, 9))(np.zeros(shape))


def test_a_constant_image_has_no_objects_and_asks_no_network(recorded, folder):
    assert not tile_process(np.full((20, 20), 7), stardist_fn(folder), tile_shape=10).any()
    assert recorded.calls == []


# Memory, and one model per process


def test_a_gpu_out_of_memory_cuts_the_tile_and_remembers(recorded, folder):
    recorded.fits = 700
    fn = stardist_fn(folder, normalize=(0, 9))
    for _ in range(2):
        fn(np.full((40, 60), 8))
    assert [call["n_tiles"] for call in recorded.calls] == [None, (1, 2), (2, 2), (2, 2)]


@pytest.mark.slow
def test_a_tile_that_fits_in_no_pieces_is_a_transient_fault(recorded, folder):
    recorded.fits = 0
    with pytest.raises(ResourceExhaustedError) as error:
        stardist_fn(folder, normalize=(0, 9))(np.full((40, 60), 8))
    assert kind_of(error.value) == "transient"
    assert len(recorded.calls) == MAX_SPLITS + 1


def test_pieces_start_from_those_that_were_asked_for():
    assert split((64, 64), [2, 1], 0) == (2, 1)
    assert split((64, 64), [2, 1], 1) == (2, 2)
    assert split((8, 64, 64), None, 2) == (1, 2, 2)


def test_threads_share_one_model_and_it_is_loaded_once(recorded, folder):
    pixels = np.random.default_rng(0).random((64, 64))
    tile_process(pixels, stardist_fn(folder), tile_shape=16, max_workers=4)
    assert recorded.loads == [(str(folder), False)]


def tensorflow_with(gpus, in_use=False):
    """What the plugin asks of TensorFlow, and what it was told."""
    told = []

    def tell(*what):
        if in_use:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        told.append(what)

    config = SimpleNamespace(
        list_physical_devices=lambda kind: gpus,
        set_visible_devices=tell,
        experimental=SimpleNamespace(set_memory_growth=tell),
    )
    return SimpleNamespace(config=config, __version__="2.21.0"), told


def test_tensorflow_takes_memory_of_a_gpu_as_it_needs_it():
    tensorflow, told = tensorflow_with(["GPU:0", "GPU:1"])
    package._choose_device(tensorflow, True)
    assert told == [("GPU:0", True), ("GPU:1", True)]
    tensorflow, told = tensorflow_with(["GPU:0"])
    package._choose_device(tensorflow, False)
    assert told == [([], "GPU")]
    package._choose_device(tensorflow_with(["GPU:0"], in_use=True)[0], True)


def test_a_gpu_that_is_not_there_is_said():
    with pytest.warns(UserWarning, match=r"gpu=True, and TensorFlow 2\.21\.0 finds no GPU"):
        package._choose_device(tensorflow_with([])[0], True)


# The genuine StarDist

is_installed = find_spec("stardist") is not None and find_spec("tensorflow") is not None


def disks(rng, size=128, count=14):
    """An image of bright disks that may touch, and their labels."""
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint16)
    brightness = rng.uniform(150, 1000, count + 1)
    brightness[0] = 0
    for number in range(1, count + 1):
        cy, cx = rng.uniform(0, size, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(5, 9) ** 2
        labels[inside & (labels == 0)] = number
    pixels = brightness[labels] + rng.normal(100, 20, labels.shape)
    return pixels.clip(0).astype(np.uint16), labels


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small 2-D model, trained on disks for half a minute and saved."""
    folder = tmp_path_factory.mktemp("models")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow and Keras, about themselves
        import keras
        from stardist.models import Config2D, StarDist2D

        keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        pixels, labels = zip(*(disks(rng) for _ in range(20)), strict=True)
        scaled = [((p - 60) / 1000).astype(np.float32) for p in pixels]
        config = Config2D(
            n_rays=16,
            grid=(2, 2),
            unet_n_depth=2,
            unet_n_filter_base=8,
            net_conv_after_unet=16,
            train_patch_size=(96, 96),
            train_epochs=6,
            train_steps_per_epoch=50,
            train_loss_weights=(1, 1),
            train_learning_rate=2e-3,
            train_tensorboard=False,
        )
        model = StarDist2D(config, name="disks", basedir=str(folder))
        validation = (scaled[-2:], list(labels[-2:]))
        model.train(scaled[:-2], list(labels[:-2]), validation_data=validation, workers=1)
    return folder / "disks"


@pytest.mark.skipif(not is_installed, reason="StarDist is not installed (extra 'stardist')")
@pytest.mark.filterwarnings("ignore")  # of TensorFlow and Keras, about themselves
class TestInstalled:
    def test_disks_are_found_and_the_tiles_agree_with_the_whole(self, trained):
        pixels, truth = disks(np.random.default_rng(7), size=384, count=120)
        fn = stardist_fn(trained)
        whole = tile_process(pixels, fn, tile_shape=-1)
        tiled = tile_process(pixels, fn, tile_shape=128, overlap=24)
        assert compare_objects(truth, whole).f1 > 0.7
        assert compare_objects(truth, tiled).f1 > 0.7
        assert compare_objects(whole, tiled).f1 > 0.95

    def test_the_examples_of_the_documentation_run(self, trained, tmp_path, monkeypatch):
        tifffile = pytest.importorskip("tifffile")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "my_nuclei").symlink_to(trained)
        pixels, truth = disks(np.random.default_rng(5))
        tifffile.imwrite("nuclei.tif", pixels, photometric="minisblack")
        names: dict[str, object] = {}
        for block in EXAMPLES.findall(DOCUMENTATION.read_text()):
            exec(block, names)
        assert names["labels"].shape == truth.shape

    def test_pieces_for_want_of_memory_give_the_same_objects(self, trained):
        pixels, _ = disks(np.random.default_rng(3), size=256, count=50)
        fn = stardist_fn(trained, normalize=(60, 1060))
        whole = fn(pixels)
        pieces = stardist_fn(trained, normalize=(60, 1060), n_tiles=[2, 2])(pixels)
        assert compare_objects(whole, pieces).f1 > 0.98

    @pytest.mark.parametrize("shape", [(1, 60), (60, 1), (5, 5), (1, 64, 64), (3, 200)])
    def test_tiles_at_the_end_of_an_axis_are_segmented(self, shape, trained):
        assert stardist_fn(trained, normalize=(0, 9))(np.zeros(shape)).shape == shape

    def test_a_name_that_is_no_model_says_which_there_are(self, monkeypatch, tmp_path):
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        with pytest.raises(SegmentationError, match=r"none is called '2D_versatile_flou'.*_fluo'"):
            stardist_fn("2D_versatile_flou")

    def test_a_volume_goes_through_a_3d_model(self, tmp_path):
        from stardist import Rays_GoldenSpiral
        from stardist.models import Config3D, StarDist3D

        config = Config3D(
            rays=Rays_GoldenSpiral(12),
            grid=(1, 2, 2),
            unet_n_depth=1,
            unet_n_filter_base=4,
            net_conv_after_unet=4,
        )
        model = StarDist3D(config, name="untrained", basedir=str(tmp_path))
        model.keras_model.save_weights(str(tmp_path / "untrained" / "weights_best.h5"))
        fn = stardist_fn(tmp_path / "untrained", normalize=(0, 1), prob_thresh=0.99)
        pixels = np.random.default_rng(0).random((9, 33, 40))
        assert fn(pixels).shape == pixels.shape
        tiled = tile_process(pixels, fn, tile_shape=(9, 20, 20), overlap=(0, 4, 4))
        assert tiled.shape == pixels.shape

    @pytest.mark.shared_data
    def test_real_nuclei_are_the_same_tiled_and_untiled(self, trained, shared_data):
        import imageio.v3 as iio
        import tifffile

        corner = (slice(1024, 1536), slice(2048, 2560))
        pixels = iio.imread(shared_data / "dsb2018_mosaic_4096.png")[corner]
        truth = tifffile.imread(shared_data / "dsb2018_mosaic_4096_labels.tif")[corner]
        fn = stardist_fn(trained)
        whole = tile_process(pixels, fn, tile_shape=-1)
        tiled = tile_process(pixels, fn, tile_shape=256, overlap=32)
        assert compare_objects(truth, tiled).f1 > 0.5
        assert compare_objects(whole, tiled).f1 > 0.95
