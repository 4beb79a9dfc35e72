"""Cellpose on tiles: what is settled when the image is planned, and what each tile is given.

The first half needs no Cellpose: the model is an object that records what it is asked. The second
half runs the installed Cellpose, 3 or 4, and is skipped where there is none.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
from scipy import ndimage

import tests.functions.cellpose_models as networks
from patchworks_core import tile_process
from patchworks_core.errors import SegmentationError
from patchworks_core.images.image import open_image
from patchworks_core.machine.faults import kind_of
from patchworks_core.pilot.agreement import compare_objects
from patchworks_core.plugins import cellpose as plugin
from patchworks_core.plugins import cellpose_package as package
from patchworks_core.plugins import models as shared
from patchworks_core.plugins.cellpose import cellpose, cellpose_fn
from patchworks_core.plugins.cellpose_eval import EVAL_OPTIONS, eval_arguments
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.stage.plan import make_plan
from patchworks_core.statistics.measuring import measure
from patchworks_core.tiles.regions import Region

NORMALIZE_KEYS = {
    *("lowhigh", "percentile", "normalize", "norm3D", "sharpen_radius", "smooth_radius"),
    *("tile_norm_blocksize", "tile_norm_smooth3D", "invert"),
}


def statistics_of(pixels):
    regions = [Region((0,) * pixels.ndim, pixels.shape)]
    return measure(open_image(pixels), regions)


def disks(shape, seed=0, n=40, radius=7):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 5, shape)
    y, x = np.indices(shape[-2:])
    for _ in range(n):
        cy, cx = rng.uniform(0, shape[-2]), rng.uniform(0, shape[-1])
        image[..., (y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = rng.uniform(800, 1200)
    return image.clip(0).astype(np.uint16)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


class Recorder:
    """In place of a `CellposeModel`: labels what is brighter than half the range."""

    def __init__(self, nchan=2, fits=10**9, gpu=False):
        self.calls, self.pixels, self.gpu, self.fits = [], [], gpu, fits
        if nchan:
            self.nchan = nchan

    def eval(self, x, **arguments):
        self.calls.append(arguments)
        self.pixels.append(x.copy())
        if arguments["batch_size"] > self.fits:
            raise OutOfMemoryError("CUDA out of memory")
        low, high = arguments["normalize"]["lowhigh"][0]
        labels = ndimage.label((x[..., 0] - low) / (high - low) > 0.5)[0]
        return labels.squeeze(), [], np.zeros(256)


@pytest.fixture(autouse=True)
def nothing_loaded():
    shared._LOADED.clear()
    yield
    shared._LOADED.clear()


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"some weights")
    return file


@pytest.fixture
def recorded(monkeypatch):
    """Make a `Recorder` the model that is loaded, and Cellpose 3 what is installed."""
    recorder = Recorder()
    recorder.loads = []

    def load(model, *, gpu, options):
        recorder.loads.append((model, gpu, options))
        return recorder

    for module in (plugin, package):
        monkeypatch.setattr(module, "check_installed", lambda: "3.1.1.3")
    monkeypatch.setattr(plugin, "load_model", load)
    return recorder


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A `cellpose.models` that knows one model, and where it would keep it."""
    monkeypatch.setenv(package.MODELS_FOLDER, str(tmp_path / "kept"))
    monkeypatch.setattr(package, "check_installed", lambda: "3.1.1.3")
    torch = SimpleNamespace(__version__="2.13.0", cuda=SimpleNamespace(is_available=lambda: False))
    found = SimpleNamespace(MODEL_NAMES=["nuclei"], torch=torch)
    monkeypatch.setattr(package, "import_models", lambda: found)
    return found


# What is settled when the image is planned


@pytest.mark.parametrize(("gone", "named"), [("cellpose", "cellpose"), ("torch", "torch")])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(
    gone, named, monkeypatch, weights
):
    monkeypatch.setattr(shared, "find_spec", lambda name: None if name == gone else name)
    for plan in (
        lambda: cellpose_fn(weights),
        lambda: segmentation_of("cellpose", {"model": str(weights)}),
    ):
        with pytest.raises(SegmentationError, match=named) as error:
            plan()
        assert 'pip install "patchworks-pipeline[cellpose]"' in str(error.value)


@pytest.mark.skipif(find_spec("cellpose") is not None, reason="Cellpose is installed")
def test_without_cellpose_the_plan_fails_and_not_the_first_tile(weights):
    with pytest.raises(SegmentationError, match=r"needs cellpose.*not installed.*patchworks-pip"):
        tile_process(np.zeros((4, 4)), "cellpose", tile_shape=2, parameters={"model": str(weights)})


def test_a_cellpose_of_another_major_is_refused(monkeypatch):
    monkeypatch.setattr(package, "required_version", lambda *a, **k: "5.0")
    with pytest.raises(SegmentationError, match="knows Cellpose 3 and 4, got 5.0"):
        package.check_installed()


def test_weights_that_do_not_exist_are_refused(models, tmp_path):
    with pytest.raises(SegmentationError, match="no weights at .*/missing'; give the path"):
        package.weights_file(str(tmp_path / "missing"))
    with pytest.raises(SegmentationError, match=r"no model called 'nuclie'.*one of \['nuclei'\]"):
        package.weights_file("nuclie")
    with pytest.raises(SegmentationError, match="no weights at"):
        package.weights_file(str(tmp_path))


def test_a_built_in_model_is_fetched_when_the_image_is_planned(models, tmp_path):
    asked = []

    def fetch(name):
        asked.append(name)
        kept = tmp_path / "kept" / "nucleitorch_0"
        kept.parent.mkdir()
        kept.write_bytes(b"fetched")
        return str(kept)

    models.model_path = fetch
    assert package.weights_file("nuclei").read_bytes() == b"fetched"
    assert package.weights_file("nuclei").name == "nucleitorch_0"
    assert asked == ["nuclei"]


def test_a_model_that_cannot_be_fetched_says_where_to_put_it(models, tmp_path):
    def fetch(name):
        raise OSError("no route to host")

    models.cache_model_path = fetch
    with pytest.raises(SegmentationError, match=r"not at '.*kept/nucleitorch_0'.*no route.*copy"):
        package.weights_file("nuclei")


def test_the_version_says_which_cellpose_and_which_weights(recorded, weights, monkeypatch):
    first = cellpose_fn(weights)
    assert first.version.startswith("1 cellpose==3.1.1.3 weights:")
    weights.write_bytes(b"other weights")
    other = cellpose_fn(weights)
    assert other.version != first.version
    monkeypatch.setattr(plugin, "check_installed", lambda: "4.2.1.1")
    assert cellpose_fn(weights).version.startswith("1 cellpose==4.2.1.1")
    image = open_image(np.zeros((8, 8), np.uint8))
    plans = [make_plan(image, fn, tile_shape=4) for fn in (first, other)]
    assert plans[0].fingerprint != plans[1].fingerprint
    assert "segmentation version" in plans[0].difference(plans[1])


def test_weights_named_in_the_options_count_too(recorded, weights, tmp_path):
    ortho = tmp_path / "ortho"
    versions = []
    for content in (b"1", b"2"):
        ortho.write_bytes(content)
        fn = cellpose_fn(weights, model_options={"pretrained_model_ortho": str(ortho)})
        versions.append(fn.version)
    assert versions[0] != versions[1]


def test_what_a_plan_records_finds_the_function_again(recorded, weights):
    fn = cellpose_fn(weights, diameter=np.float32(17), normalize=(0, 9))
    record = make_plan(open_image(np.zeros((8, 8))), fn, tile_shape=4).segmentation
    assert record["parameters"] == {
        "model": str(weights),
        "diameter": 17.0,
        "normalize": [0, 9],
    }
    assert segmentation_of(record["function"], record["parameters"]).version == fn.version
    assert segmentation_of("cellpose", record["parameters"]).name == fn.name


def test_the_rule_is_overlap_and_a_gpu_is_wanted_where_asked(recorded, weights):
    assert cellpose_fn(weights).merge == "overlap"
    assert cellpose_fn(weights).wants_statistics
    assert not cellpose_fn(weights).wants_gpu
    assert cellpose_fn(weights, gpu=True).wants_gpu


def test_parameters_bound_before_or_after_count_the_same(recorded, weights):
    bound = segmentation_of(partial(cellpose, model=str(weights), gpu=True))
    assert "weights:" in bound.version
    assert bound.wants_gpu
    more = segmentation_of(cellpose_fn(weights, diameter=17), {"flow_threshold": 0.2})
    assert more.parameters == {"model": str(weights), "diameter": 17, "flow_threshold": 0.2}
    assert more.version == cellpose_fn(weights).version
    with pytest.raises(SegmentationError, match="diameter must be above 0"):
        segmentation_of(cellpose_fn(weights), {"diameter": -1})


def test_it_pickles_without_the_model(recorded, weights):
    pixels = disks((40, 40))
    fn = cellpose_fn(weights, normalize=(100, 1000))
    before = fn(pixels)
    assert len(pickle.dumps(fn)) < 1000
    assert len(cloudpickle.dumps(fn.bind(None))) < 2000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fn))(pixels), before)
    assert len(recorded.loads) == 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"min_size": 30}, "no parameter 'min_size': min_size of the merge drops small objects"),
        ({"stitch_threshold": 0.3}, "no parameter 'stitch_threshold': do_3D=True"),
        ({"diametre": 30}, "no parameter 'diametre': the further ones are augment, bsize"),
        ({"diameter": 0}, "diameter must be above 0, got 0"),
        ({"batch_size": 0}, "batch_size must be above 0, got 0"),
        ({"anisotropy": -1}, "anisotropy must be above 0, got -1"),
        ({"nuclei": 1}, "no parameter 'nuclei'"),
        ({"channels": [2, 3]}, r"tiles hold one channel, got channels=\[2, 3\]"),
        ({"normalize": False}, "normalize must be 'global', 'tile', or two values"),
        ({"normalize": (5, 5)}, r"normalize must be .* got \[5, 5\]"),
        ({"percentiles": (99, 1)}, "the lower first"),
    ],
)
def test_what_cannot_be_used_is_refused_when_the_image_is_planned(
    parameters, words, recorded, weights
):
    with pytest.raises(SegmentationError, match=words):
        cellpose_fn(weights, **parameters)


def test_a_model_must_be_named(recorded):
    with pytest.raises(SegmentationError, match="needs model=, the path of weights"):
        segmentation_of("cellpose", {})


def test_grey_channels_of_cellpose_3_are_no_offence(recorded, weights):
    fn = cellpose_fn(weights, channels=[0, 0], normalize=(100, 1000))
    assert fn(disks((30, 30))).any()


# What each tile is given


def test_every_tile_is_scaled_by_the_percentiles_of_the_whole_image(recorded, weights):
    pixels = disks((64, 96))
    pixels[:, 48:] //= 2
    labels = tile_process(pixels, cellpose_fn(weights), tile_shape=32, overlap=8)
    expected = [float(np.percentile(pixels, q, method="inverted_cdf")) for q in (1, 99)]
    assert len(recorded.calls) == 6
    for call in recorded.calls:
        assert call["normalize"]["lowhigh"] == [expected, [0.0, 1.0]]
    whole = ndimage.label((pixels - expected[0]) / (expected[1] - expected[0]) > 0.5)[0]
    assert labels.max() == whole.max() > 0


@pytest.mark.parametrize(
    ("parameters", "bounds"),
    [
        ({"normalize": (3, 9)}, [3.0, 9.0]),
        ({"normalize": [3, 9], "invert": True}, [9.0, 3.0]),
        ({"normalize": "tile", "percentiles": (0, 100)}, [100.0, 199.0]),
        ({"percentiles": [0, 100]}, [0.0, 199.0]),
    ],
)
def test_the_values_that_become_0_and_1_can_be_chosen(parameters, bounds, recorded, weights):
    image = np.arange(200, dtype=np.uint16).reshape(20, 10)
    cellpose_fn(weights, **parameters)(image[10:], statistics=statistics_of(image))
    assert recorded.calls[0]["normalize"]["lowhigh"][0] == bounds


def test_without_statistics_nothing_is_taken_from_the_tile(recorded, weights):
    with pytest.raises(SegmentationError, match=r"whole image, and got statistics=None; run it"):
        cellpose_fn(weights)(disks((30, 30)))


def test_a_constant_image_has_no_objects_and_asks_no_network(recorded, weights):
    pixels = np.full((20, 20), 7, np.uint8)
    assert not tile_process(pixels, cellpose_fn(weights), tile_shape=10).any()
    assert recorded.calls == []


def test_an_image_that_is_nearly_all_background_says_what_to_do(recorded, weights):
    pixels = np.zeros((100, 100), np.uint16)
    pixels[:3, :3] = 500
    with pytest.raises(SegmentationError, match=r"both 0\.0, while .*0 to 500.*normalize=\(low,"):
        cellpose_fn(weights)(pixels, statistics=statistics_of(pixels))


@pytest.mark.parametrize(("invert", "inside"), [(False, 10), (True, 1)])
def test_nan_is_background(invert, inside, recorded, weights):
    pixels = np.full((9, 9), np.nan)
    pixels[2:5, 2:5] = inside
    labels = cellpose_fn(weights, normalize=(1, 10), invert=invert)(pixels)
    assert (labels > 0).sum() == 9
    assert np.isfinite(recorded.pixels[0]).all()


@pytest.mark.parametrize("n_channels", [2, 3])
@pytest.mark.parametrize("is_volume", [False, True])
def test_the_arguments_are_those_of_both_majors(n_channels, is_volume):
    arguments = eval_arguments(
        (2, 9), n_channels=n_channels, is_volume=is_volume, anisotropy=3.0, diameter=17, niter=9
    )
    assert arguments["normalize"].keys() == NORMALIZE_KEYS
    assert arguments["normalize"]["lowhigh"] == [[2, 9], *[[0.0, 1.0]] * (n_channels - 1)]
    assert arguments["normalize"]["normalize"] is True
    assert (arguments["min_size"], arguments["max_size_fraction"]) == (-1, 1.0)
    assert (arguments["diameter"], arguments["niter"]) == (17, 9)
    assert not {"interp", "invert", "channels", "rescale", "bsize", "model_type"} & set(arguments)
    assert ("z_axis" in arguments, "anisotropy" in arguments) == (is_volume, is_volume)
    assert arguments["channel_axis"] == (3 if is_volume else 2)


@pytest.mark.parametrize(("nchan", "n_channels"), [(2, 2), (None, 3)])
@pytest.mark.parametrize("shape", [(30, 20), (1, 30, 20), (1, 20), (30, 1), (1, 1, 20)])
def test_a_plane_is_given_with_its_blank_channels_and_comes_back_in_its_shape(
    nchan, n_channels, shape, recorded, weights
):
    recorded.nchan = nchan
    pixels = np.full(shape, 50, np.uint8)
    labels = cellpose_fn(weights, normalize=(0, 60))(pixels)
    assert labels.shape == shape
    assert labels.dtype == np.int32
    assert (labels == 1).all()
    given = recorded.pixels[0]
    assert given.ndim == 3
    assert given.shape[-1] == n_channels
    assert min(given.shape) > 1
    assert not given[..., 1:].any()
    assert recorded.calls[0]["do_3D"] is False


def test_cells_and_nuclei_are_two_channels_each_with_its_own_bounds(recorded, weights):
    cells, nuclei = np.full((30, 20), 50, np.uint8), np.full((30, 20), 9, np.uint8)
    nuclei[:5] = 3
    fn = cellpose_fn(weights, nuclei_channel="DAPI", normalize=(0, 60))
    assert fn.other_channels == {"nuclei": "DAPI"}
    fn(cells, nuclei=nuclei)
    given = recorded.pixels[0]
    np.testing.assert_array_equal(given[..., 0], cells)
    np.testing.assert_array_equal(given[..., 1], nuclei)
    assert recorded.calls[0]["normalize"]["lowhigh"][:2] == [[0, 60], [0, 60]]


def test_each_channel_is_normalised_by_its_own_percentiles(recorded, weights):
    pixels = np.stack([np.arange(600.0).reshape(30, 20), np.arange(600.0).reshape(30, 20) / 10])
    fn = cellpose_fn(weights, nuclei_channel=1, percentiles=(0, 100))
    tile_process(pixels, fn, axes="cyx", tile_shape=-1)
    assert recorded.calls[0]["normalize"]["lowhigh"][:2] == [[0, 599], [0, pytest.approx(59.9)]]


@pytest.mark.parametrize("shape", [(4, 30, 20), (4, 1, 20), (4, 30, 1)])
def test_a_volume_is_segmented_as_one(shape, recorded, weights):
    fn = cellpose_fn(weights, normalize=(0, 60), do_3D=True, anisotropy=2.5)
    assert fn(np.full(shape, 50, np.uint8)).shape == shape
    call = recorded.calls[0]
    assert (call["do_3D"], call["z_axis"], call["anisotropy"]) == (True, 0, 2.5)
    assert recorded.pixels[0].ndim == 4
    fn(np.full((1, 9, 9), 50, np.uint8))
    assert recorded.calls[1]["do_3D"] is False


def test_a_volume_without_do_3D_says_what_to_do(recorded, weights):
    with pytest.raises(SegmentationError, match=r"tile of shape \(4, 9, 9\).*set do_3D=True, or"):
        cellpose_fn(weights, normalize=(0, 9))(np.zeros((4, 9, 9)))


# Memory, devices, and one model per process


def test_a_gpu_out_of_memory_halves_the_batch_and_remembers(recorded, weights):
    recorded.fits = 2
    fn = cellpose_fn(weights, normalize=(100, 1000))
    pixels = disks((40, 40))
    np.testing.assert_array_equal(fn(pixels), fn(pixels))
    assert [call["batch_size"] for call in recorded.calls] == [8, 4, 2, 2]


def test_a_tile_for_which_no_batch_is_small_enough_is_a_transient_fault(recorded, weights):
    recorded.fits = 0
    fn = cellpose_fn(weights, normalize=(100, 1000), batch_size=3)
    with pytest.raises(OutOfMemoryError) as error:
        fn(disks((40, 40)))
    assert kind_of(error.value) == "transient"
    assert [call["batch_size"] for call in recorded.calls] == [3, 1]


def test_any_other_error_is_raised_at_once(recorded, weights, monkeypatch):
    calls = []

    def fail(x, **arguments):
        calls.append(arguments)
        raise ValueError("bsize != 256")

    monkeypatch.setattr(recorded, "eval", fail)
    with pytest.raises(ValueError, match="bsize != 256"):
        cellpose_fn(weights, normalize=(0, 9))(disks((40, 40)))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("gpu", "free", "first"), [(True, 10**9, 4), (True, None, 8), (True, 1, 1), (False, 1, 8)]
)
def test_the_batch_fits_the_free_memory_of_the_gpu(
    gpu, free, first, recorded, weights, monkeypatch
):
    recorded.gpu = gpu
    monkeypatch.setattr(plugin, "free_gpu_bytes", lambda: free)
    cellpose_fn(weights, gpu=gpu, normalize=(0, 9))(disks((40, 40)))
    assert recorded.calls[0]["batch_size"] == first


def test_threads_share_one_model_and_it_is_loaded_once(recorded, weights):
    tile_process(disks((64, 64)), cellpose_fn(weights), tile_shape=16, max_workers=4)
    assert len(recorded.calls) == 16
    assert recorded.loads == [(str(weights), False, {})]


def test_on_a_gpu_one_tile_at_a_time_is_in_the_network(recorded, weights, monkeypatch):
    recorded.gpu = True
    inside, most = [], []
    run = recorded.eval

    def count(x, **arguments):
        inside.append(threading.get_ident())
        most.append(len(inside))
        result = run(x, **arguments)
        inside.pop()
        return result

    monkeypatch.setattr(recorded, "eval", count)
    monkeypatch.setattr(plugin, "free_gpu_bytes", lambda: None)
    tile_process(disks((64, 64)), cellpose_fn(weights, gpu=True), tile_shape=16, max_workers=4)
    assert max(most) == 1


def test_a_process_holds_one_model(recorded, weights):
    first = cellpose_fn(weights, normalize=(0, 9))
    second = cellpose_fn(weights, normalize=(0, 9), model_options={"nchan": 1})
    for fn in (first, second, first):
        fn(disks((20, 20)))
    assert len(shared._LOADED) == 1
    assert [options for _, _, options in recorded.loads] == [{}, {"nchan": 1}, {}]


def test_a_gpu_that_is_not_there_is_said_once(models, weights, monkeypatch):
    models.CellposeModel = lambda **kwargs: Recorder(gpu=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    for module in (plugin, package):
        monkeypatch.setattr(module, "check_installed", lambda: "3.1.1.3")
    fn = cellpose_fn(weights, gpu=True, normalize=(0, 9))
    with pytest.warns(UserWarning, match=r"gpu=True, and PyTorch 2.13.0 finds no GPU.*'7'"):
        fn(disks((20, 20)))
    fn(disks((20, 20)))


def test_weights_that_cannot_be_loaded_are_refused_and_not_retried(models, weights):
    def load(**kwargs):
        raise AssertionError("appears to be for CP4")

    models.CellposeModel = load
    with pytest.raises(
        SegmentationError, match=r"3\.1\.1\.3 cannot load .*CP4.*the major"
    ) as error:
        package.load_model(str(weights), gpu=False, options={})
    assert kind_of(error.value) == "refused"


def test_no_memory_to_load_the_model_is_a_transient_fault(models, weights):
    def load(**kwargs):
        raise OutOfMemoryError("CUDA out of memory")

    models.CellposeModel = load
    with pytest.raises(OutOfMemoryError):
        package.load_model(str(weights), gpu=True, options={})


@pytest.mark.parametrize("said", ["CUDA error: out of memory", None])
def test_a_gpu_without_memory_for_a_first_array_is_a_transient_fault(said, models, weights):
    """Cellpose takes it for a GPU that is not there, and would stay on the CPU."""

    def zeros(*shape, device):
        assert device == "cuda"
        if said:
            raise RuntimeError(said)

    models.torch.cuda.is_available = lambda: True
    models.torch.zeros = zeros
    models.CellposeModel = lambda **kwargs: Recorder(gpu=False)
    with pytest.raises((RuntimeError, MemoryError)) as error:
        package.load_model(str(weights), gpu=True, options={})
    assert kind_of(error.value) == "transient"


@pytest.mark.parametrize(("model", "given"), [("nuclei", "nuclei"), (None, "path")])
def test_a_path_is_handed_on_as_a_path_and_a_name_as_a_name(model, given, models, weights):
    kept = weights.parent / "kept" / "nucleitorch_0"
    kept.parent.mkdir()
    kept.write_bytes(b"fetched")
    asked = {}
    models.CellposeModel = lambda **kwargs: asked.update(kwargs) or Recorder()
    package.load_model(model or str(weights), gpu=False, options={"nchan": 1})
    expected = str(weights) if given == "path" else "nuclei"
    assert asked == {"gpu": False, "pretrained_model": expected, "nchan": 1}


# The genuine Cellpose

installed = pytest.mark.skipif(
    find_spec("cellpose") is None, reason="Cellpose is not installed (extra 'cellpose')"
)
real = [
    installed,
    # PyTorch says so of a sparse array that Cellpose makes.
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


@pytest.fixture(scope="session")
def imported():
    """Cellpose is imported; of what PyTorch deprecates in itself meanwhile, nothing is ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = package.import_models()
    models.torch.set_num_threads(1)  # more of them wait for each other on a busy machine
    return models


def only(major):
    """Skip a test that needs one major of Cellpose."""
    is_other = find_spec("cellpose") is None or networks.major() != major
    return pytest.mark.skipif(is_other, reason=f"Cellpose {major} is not installed")


class TestInstalled:
    pytestmark = real

    @pytest.fixture(autouse=True)
    def network(self, imported):
        made = []
        undo = networks.use_network(lambda: made.append(networks.blurred()) or made[-1])
        yield made
        undo()

    def test_the_arguments_are_known_to_eval(self):
        import inspect

        eval_ = package.import_models().CellposeModel.eval
        known = set(inspect.signature(eval_).parameters)
        arguments = eval_arguments((0, 1), n_channels=2, is_volume=True, anisotropy=1, diameter=9)
        assert {*arguments, *EVAL_OPTIONS, "batch_size"} <= known
        assert package.import_models().normalize_default.keys() == NORMALIZE_KEYS

    def test_objects_are_found_and_the_tiles_agree_with_the_whole(self, weights):
        pixels = disks((300, 260), n=60)
        fn = cellpose_fn(weights, diameter=30)
        whole = tile_process(pixels, fn, tile_shape=-1)
        tiled = tile_process(pixels, fn, tile_shape=128, overlap=24)
        assert whole.max() > 25
        assert compare_objects(whole, tiled).f1 > 0.97

    def test_the_defaults_of_cellpose_stay_as_they_were(self, weights):
        models = package.import_models()
        before = dict(models.normalize_default)
        cellpose_fn(weights, normalize=(100, 1000))(disks((64, 64)))
        cellpose_fn(weights, normalize=(100, 1000), do_3D=True)(disks((4, 64, 64)))
        assert models.normalize_default == before

    def test_blank_channels_are_still_blank_in_the_network(self, weights, network):
        cellpose_fn(weights, normalize=(100, 1000))(disks((64, 64)))
        assert network[-1].seen == [0.0]

    @pytest.mark.parametrize("shape", [(1, 60), (60, 1), (3, 200), (1, 64, 64), (5, 5)])
    def test_tiles_at_the_end_of_an_axis_are_segmented(self, shape, weights):
        assert cellpose_fn(weights, normalize=(0, 9))(np.zeros(shape)).shape == shape

    @pytest.mark.parametrize("diameter", [None, 40, 60])
    def test_a_bright_disk_is_one_object_at_any_diameter(self, diameter, weights):
        y, x = np.ogrid[:100, :120]
        pixels = np.where((y - 40) ** 2 + (x - 70) ** 2 < 200, 900, 100)
        labels = cellpose_fn(weights, normalize=(100, 900), diameter=diameter)(pixels)
        assert labels[40, 70] == labels.max() == 1
        assert abs((labels > 0).sum() / (pixels > 500).sum() - 1) < 0.3

    def test_dark_objects_are_found_when_inverted(self, weights):
        y, x = np.ogrid[:100, :120]
        pixels = np.where((y - 40) ** 2 + (x - 70) ** 2 < 200, 100, 900)
        labels = cellpose_fn(weights, normalize=(100, 900), invert=True)(pixels)
        assert labels[40, 70] == labels.max() == 1

    def test_a_piece_of_an_object_at_the_border_of_a_tile_is_kept(self, weights):
        y, x = np.ogrid[:64, :64]
        pixels = np.where(y**2 + x**2 < 40, 900, 100)
        labels = cellpose_fn(weights, normalize=(100, 900))(pixels)
        assert 0 < (labels > 0).sum() < 60

    def test_an_object_may_fill_half_its_tile(self, weights):
        y, x = np.ogrid[:28, :28]
        disk = (y - 14) ** 2 + (x - 14) ** 2 < 121
        labels = cellpose_fn(weights, normalize=(100, 900))(np.where(disk, 900, 100))
        assert (labels > 0).mean() > 0.42

    def test_a_ball_is_one_object_in_a_volume(self, weights):
        z, y, x = np.ogrid[:24, :64, :64]
        ball = (z - 12) ** 2 + (y - 30) ** 2 + (x - 34) ** 2 < 81
        labels = cellpose_fn(weights, normalize=(100, 900), do_3D=True)(np.where(ball, 900, 100))
        assert labels.shape == ball.shape
        assert labels[12, 30, 34] > 0
        assert (labels == labels[12, 30, 34]).sum() > 0.7 * ball.sum()

    def test_worker_processes_load_their_own_model(self, weights):
        pixels = disks((128, 128))
        parameters = {"model": str(weights)}
        labels = [
            tile_process(
                pixels,
                networks.blurred_cellpose,
                parameters=parameters,
                tile_shape=64,
                overlap=16,
                workers=workers,
                max_workers=2,
            )
            for workers in ("threads", "processes")
        ]
        assert labels[0].max() > 5
        np.testing.assert_array_equal(*labels)

    def test_weights_of_the_other_major_are_refused(self, weights):
        package.import_models()
        import torch

        undo = networks.use_network(lambda: (_ for _ in ()).throw(ValueError("not CP4")))
        torch.save({"W2": torch.zeros(1)}, weights)
        with pytest.raises(SegmentationError, match=r"cannot load .* install the major"):
            package.load_model(str(weights), gpu=False, options={})
        undo()

    def test_a_gpu_is_used_where_there_is_one_and_said_where_there_is_none(self, weights):
        models = package.import_models()
        if models.torch.cuda.is_available():
            assert package.load_model(str(weights), gpu=True, options={}).gpu
            return
        with pytest.warns(UserWarning, match="finds no GPU"):
            assert not package.load_model(str(weights), gpu=True, options={}).gpu


def mosaic(shared_data, size):
    import imageio.v3 as iio
    import tifffile

    corner = (slice(1024, 1024 + size), slice(2048, 2048 + size))
    truth = tifffile.imread(shared_data / "dsb2018_mosaic_4096_labels.tif")[corner]
    return iio.imread(shared_data / "dsb2018_mosaic_4096.png")[corner], truth.astype(np.int64)


def figures(shared_data, fn, size):
    """Return F1 against the truth and of tiled against untiled, on a corner of real nuclei."""
    pixels, truth = mosaic(shared_data, size)
    whole = tile_process(pixels, fn, tile_shape=-1)
    tiled = tile_process(pixels, fn, tile_shape=256, overlap=32)
    return compare_objects(truth, tiled).f1, compare_objects(whole, tiled).f1


real_weights = [*real, pytest.mark.shared_data, pytest.mark.usefixtures("imported")]


class TestRealWeights:
    pytestmark = real_weights

    @only(3)
    def test_nuclei_of_cellpose_3_are_the_same_tiled_and_untiled(self, shared_data):
        undo = networks.use_network(networks.small_network_of_cellpose_3)
        fn = cellpose_fn(shared_data / "models" / "cp3_small_f16", diameter=17)
        truth, untiled = figures(shared_data, fn, 512)
        undo()
        assert truth > 0.8
        assert untiled > 0.97

    @only(4)
    def test_nuclei_of_cellpose_4_are_the_same_tiled_and_untiled(self, shared_data):
        undo = networks.register_tiny_encoder()
        options = {"use_bfloat16": False}
        fn = cellpose_fn(shared_data / "models" / "cp4_tiny", diameter=14, model_options=options)
        truth, untiled = figures(shared_data, fn, 512)
        undo()
        assert truth > 0.5
        assert untiled > 0.85

    @pytest.mark.parametrize(("major", "other"), [(3, "cp4_tiny"), (4, "cp3_small_f16")])
    def test_weights_of_the_other_major_are_refused(self, major, other, shared_data):
        if networks.major() != major:
            pytest.skip(f"Cellpose {major} is not installed")
        undo = (lambda: None) if major == 3 else networks.register_tiny_encoder()
        with pytest.raises(SegmentationError, match=r"cannot load .*CP.*install the major"):
            package.load_model(str(shared_data / "models" / other), gpu=False, options={})
        undo()
