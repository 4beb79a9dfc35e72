"""Whatever is damaged in a file, opening and reading it gives pixels or an error of ours."""

from __future__ import annotations

import io
import warnings

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from patchworks_core import ImageError, open_image

PIXELS = np.random.default_rng(0).integers(0, 200, (3, 24, 32)).astype("u1")


def tiff(**options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, **options)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    return buffer.getvalue()


FILES = {
    "plain.tif": tiff(photometric="minisblack"),
    "a.ome.tif": tiff(ome=True, metadata={"axes": "ZYX"}, compression="zlib"),
    "imagej.tif": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "a.npy": npy(),
    "a.png": iio.imwrite("<bytes>", PIXELS[0], extension=".png"),
}

damages = st.lists(
    st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
)


def damage(content: bytes, where: list[tuple[int, bytes]], cut: float) -> bytes:
    """Overwrite a few bytes, and leave out the end."""
    changed = bytearray(content)
    for place, new in where:
        at = place % len(changed)
        changed[at : at + len(new)] = new
    return bytes(changed[: max(1, int(len(changed) * cut))])


def opens_or_is_refused(path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = f"{path}"
        try:
            assert open_image(path, channel=None).fingerprint
        except ImageError as error:
            message = str(error)
    assert path.name in message


@pytest.mark.parametrize("name", FILES)
@given(where=damages, cut=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
def test_a_damaged_file_opens_or_is_refused_in_words(tmp_path_factory, name, where, cut):
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(damage(FILES[name], where, cut))
    opens_or_is_refused(path)


def write_zarr(path, zarr_format):
    zarr.create_array(str(path), data=PIXELS[0], chunks=(8, 8), zarr_format=zarr_format)
    return path / {2: ".zarray", 3: "zarr.json"}[zarr_format]


@pytest.mark.parametrize("zarr_format", [2, 3])
@given(where=damages, cut=st.sampled_from([1.0, 1.0, 0.9, 0.5]))
def test_damaged_metadata_of_an_array_are_refused_in_words(
    tmp_path_factory, zarr_format, where, cut
):
    path = tmp_path_factory.mktemp("damaged") / "a.zarr"
    metadata = write_zarr(path, zarr_format)
    metadata.write_bytes(damage(metadata.read_bytes(), where, cut))
    opens_or_is_refused(path)


values = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    st.lists(st.integers(-3, 40), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.mark.parametrize("zarr_format", [2, 3])
@given(field=st.integers(0, 30), value=values)
def test_a_field_of_metadata_with_any_value_is_refused_in_words(
    tmp_path_factory, zarr_format, field, value
):
    import json

    path = tmp_path_factory.mktemp("damaged") / "a.zarr"
    metadata = write_zarr(path, zarr_format)
    content = json.loads(metadata.read_text())
    content[sorted(content)[field % len(content)]] = value
    metadata.write_text(json.dumps(content))
    opens_or_is_refused(path)


def write_multiscale(group, shape):
    group.create_array("0", data=np.ones(shape, "u2"))
    axes = {5: "tczyx", 2: "yx"}[len(shape)]
    kind = {"t": "time", "c": "channel"}
    scale = [{"type": "scale", "scale": [0.5] * len(axes)}]
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": axis, "type": kind.get(axis, "space")} for axis in axes],
            "datasets": [{"path": "0", "coordinateTransformations": scale}],
        }
    ]


@pytest.mark.parametrize(
    ("groups", "shape", "advice"),
    [(("0", "1"), (1, 1, 1, 32, 32), "path/0"), (("labels/n",), (32, 32), "path/labels/n")],
)
def test_a_group_of_images_names_the_images_and_the_advice_can_be_followed(
    tmp_path, groups, shape, advice
):
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    for name in groups:
        write_multiscale(root.require_group(name), shape)
    with pytest.raises(ImageError, match=rf"name one, such as {advice}$"):
        open_image(tmp_path / "a.zarr")
    assert open_image(tmp_path / "a.zarr" / advice.removeprefix("path/")).pixel_size["x"] == 0.5


@pytest.mark.parametrize("extension", [".scn", ".qptiff", ".gel", ".bif"])
def test_slides_and_gels_that_are_tiff_inside_open(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    tifffile.imwrite(path, PIXELS[0], tile=(16, 16))
    assert open_image(path).shape == (24, 32)
