"""Frames as services and tools write them: NetCDF by CF's rules, ODIM, units, grids, grey pictures."""

import itertools
import struct
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
import xarray
from PIL import Image

from dataset.demo_sequences import read_sequences
from dataset.frames.archive.files import read_frame
from dataset.frames.config import read_config
from dataset.frames.latest import latest
from tests.dataset.archive import START, Archive
from utils.errors import InputError

NAN, LOW = np.nan, 0.0
NETCDF = {"_NCProperties": b"version=2"}
TYPES = {"u1": np.uint8, "i1": np.int8, "i2": np.int16, "u2": np.uint16, "f4": np.float32, "f8": np.float64}


@pytest.fixture
def archive(tmp_path) -> Archive:
    """A folder of reflectivity in NetCDF, still empty."""
    archive = Archive(tmp_path)
    return configured(archive)


def configured(archive, **changes):
    settings = {"pattern": "%Y%m%d%H%M.nc", "variable": "dbz", "units": "dBZ", "range": [0, 60], "thresholds": [10, 20]}
    return archive.configure(**settings | changes)


def write(archive, stored, attributes=(), root=(), coordinates=(), dimensions=("y", "x")):
    """The first frame: a data set `dbz` with attributes, and coordinates `{name: (values, attributes)}`."""
    with h5py.File(archive.path(0), "w") as file:
        file.attrs.update(root)
        data = file.create_dataset("dbz", data=stored)
        data.attrs.update(attributes)
        for name, (values, about) in dict(coordinates).items():
            file[name] = values
            file[name].attrs.update(about)
            if name in dimensions:
                file[name].make_scale(name)
                data.dims[dimensions.index(name)].attach_scale(file[name])


def read(archive):
    """The first frame in units, NaN where it is missing."""
    frames = latest(archive.folder, 1, archive.shape, now=START)
    return (frames.source.offset + frames.source.scale * frames.frames)[0, 0]


def assert_holds(archive, expected):
    archive.shape = np.shape(expected)
    np.testing.assert_allclose(read(archive), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "stored", "attributes", "expected"),
    [
        (
            "i1",
            [0, 40, -76, -1],
            {"_Unsigned": "true", "scale_factor": 0.25, "_FillValue": np.int8(-1)},
            [0, 10, 45, NAN],
        ),
        ("i1", [0, 40, -76, -1], {"_Unsigned": b"true", "scale_factor": 0.25, "missing_value": [-1]}, [0, 10, 45, NAN]),
        ("i1", [0, 40, -76, -1], {"_Unsigned": "true", "scale_factor": 0.25, "valid_range": [0, -2]}, [0, 10, 45, NAN]),
        ("i1", [0, 40, -3, -1], {"_Unsigned": "false", "missing_value": [-1, -3]}, [0, 40, NAN, NAN]),
        ("f4", [0, 9.96921e36, 45, 1e20], {}, [0, NAN, 45, NAN]),
        ("f4", [-np.inf, np.inf, 45, NAN], {"_FillValue": np.float32(-1)}, [LOW, NAN, 45, NAN]),
        ("f4", [0, 45, -9999.9, 1], {"missing_value": -9999.9}, [0, 45, NAN, 1]),
        ("i2", [0, -32767, 45, 1], {}, [0, NAN, 45, 1]),
        ("u2", [0, 65535, 45, 1], {"_FillValue": np.uint16(1)}, [0, 60, 45, NAN]),
        ("u1", [0, 255, 45, 1], {"scale_factor": 0.1}, [0, 25.5, 4.5, 0.1]),  # bytes have no default
        ("i2", [0, 200, 90, -1], {"scale_factor": 0.5, "valid_max": np.int16(120)}, [0, NAN, 45, LOW]),
        ("i2", [0, 200, 90, -1], {"scale_factor": 0.5, "valid_range": np.int16([0, 120])}, [0, NAN, 45, NAN]),
        ("i2", [0, 200, 90, -1], {"scale_factor": 0.5, "valid_range": [0.0, 60.0]}, [0, NAN, 45, NAN]),
        ("f4", [0, 200, -np.inf, -1], {"valid_min": 0.0}, [0, 60, LOW, NAN]),
        ("i2", [0, -20, -90, 1], {"scale_factor": -0.5, "valid_min": np.int16(-40)}, [0, 10, NAN, LOW]),
    ],
)
def test_netcdf_means_what_cf_says(archive, kind, stored, attributes, expected):
    write(archive, np.array([stored, stored]).astype(TYPES[kind]), attributes, NETCDF)
    assert_holds(archive, [expected, expected])


def test_values_equal_those_that_xarray_reads(archive):
    random, path = np.random.default_rng(0), archive.path(0)
    field = xarray.Variable(("y", "x"), np.where(random.random((20, 30)) < 0.3, np.nan, 60 * random.random((20, 30))))
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 20.0, "_FillValue": -5}
    xarray.Dataset({"dbz": field}).to_netcdf(path, engine="h5netcdf", encoding={"dbz": packing})
    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        expected = dataset["dbz"].to_numpy()
    assert_holds(archive, expected)


def test_defaults_of_netcdf_are_values_in_other_hdf5_files(archive):
    write(archive, np.array([[0, 65535], [45, 1]], np.uint16))
    assert_holds(archive, [[0, 60], [45, 1]])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.float32([[0, -np.inf], [1e20, np.nan]]), [[0, LOW], [NAN, NAN]]),
        (np.ma.array([[0, 7], [45, 7]], mask=[[0, 1], [0, 1]]).filled(), [[0, NAN], [45, NAN]]),
    ],
)
def test_masked_arrays_and_minus_infinity_in_npy(archive, stored, expected):
    configured(archive, pattern="%Y%m%d%H%M.npy", variable=None).store(0, stored)
    assert_holds(archive, expected)


RISING, FALLING = np.array([1.0, 3.0]), np.array([3.0, 1.0])
NORTH, EAST = {"standard_name": "projection_y_coordinate"}, {"standard_name": "projection_x_coordinate"}


@pytest.mark.parametrize(
    ("dimensions", "coordinates", "attributes", "expected"),
    [
        (("y", "x"), {"y": (FALLING, NORTH), "x": (RISING, EAST)}, {}, [[1, 2], [3, 4]]),
        (("y", "x"), {"y": (RISING, NORTH), "x": (RISING, EAST)}, {}, [[3, 4], [1, 2]]),
        (("y", "x"), {"y": (RISING, NORTH), "x": (FALLING, EAST)}, {}, [[4, 3], [2, 1]]),
        (("lat", "lon"), {"lat": (RISING, {}), "lon": (RISING, {})}, {}, [[3, 4], [1, 2]]),
        (("a", "b"), {"a": (RISING, {"units": "degrees_north"}), "b": (RISING, {"axis": "X"})}, {}, [[3, 4], [1, 2]]),
        (("lon", "lat"), {"lon": (RISING, {}), "lat": (RISING, {})}, {}, [[2, 4], [1, 3]]),
        (("y", "x"), {"y": (np.arange(2), {}), "x": (np.arange(2), {})}, {}, [[1, 2], [3, 4]]),  # numbers of pixels
        (("y", "x"), {"lat": ([[50, 51], [52, 53]], {})}, {"coordinates": "lat lon"}, [[3, 4], [1, 2]]),
    ],
)
def test_north_is_up_and_east_is_right_whatever_way_a_grid_goes(archive, dimensions, coordinates, attributes, expected):
    write(archive, np.float32([[1, 2], [3, 4]]), attributes, NETCDF, coordinates, dimensions)
    assert_holds(archive, expected)


def test_coordinates_that_a_copy_has_lost_tell_nothing(archive):
    write(archive, np.float32([[1, 2], [3, 4]]), {}, NETCDF, {"y": (RISING, NORTH)})
    with h5py.File(archive.path(0), "r+") as file:
        lost = np.empty(2, object)
        lost[:] = [np.array([h5py.Reference()], h5py.ref_dtype)] * 2
        file["dbz"].attrs.create("DIMENSION_LIST", lost, dtype=h5py.vlen_dtype(h5py.ref_dtype))
    assert_holds(archive, [[1, 2], [3, 4]])


def test_knmi_says_scale_units_and_what_is_missing(archive):
    configured(archive, variable="image1/image_data", units="mm", range=[0, 10], thresholds=[1, 2, 5])
    with h5py.File(archive.path(0), "w") as file:
        file["image1/image_data"] = np.array([[0, 250], [65535, 65534]], np.uint16)
        file["image1"].attrs["image_geo_parameter"] = np.bytes_("ACCUMULATED_PRECIPITATION_[MM]")
        file.create_group("image1/calibration").attrs.update(
            calibration_formulas=np.bytes_("GEO=0.01*PV+0.0"),
            calibration_missing_data=np.int32([65534]),
            calibration_out_of_image=np.int32([65535]),
        )
    assert_holds(archive, [[0, 2.5], [NAN, NAN]])
    configured(archive, variable="image1/image_data", units="mm/h", range=[0, 10], thresholds=[1, 2, 5])
    with pytest.raises(InputError, match="units are mm there but mm/h"):
        read(archive)


def write_odim(archive, stored, whats, root=b"ODIM_H5/V2_4"):
    """The first frame in ODIM, with the groups `what` that are given by their place."""
    with h5py.File(archive.path(0), "w") as file:
        file.attrs["Conventions"] = root
        file["dataset1/data1/data"] = stored
        for place, attributes in whats.items():
            file.create_group(f"{place}/what").attrs.update(attributes)


GAIN, MARKS = {"gain": 0.5, "offset": -32.0}, {"nodata": 255.0, "undetect": 0.0}
ODIM = {"pattern": "%Y%m%d%H%M.h5", "variable": "dataset1/data1/data"}
STORED = np.array([[255, 0], [154, 84]], np.uint8)


@pytest.mark.parametrize(
    ("stored", "whats", "expected"),
    [
        (STORED, {"dataset1/data1": GAIN | MARKS | {"quantity": b"DBZH"}}, [[NAN, LOW], [45, 10]]),
        (STORED, {"dataset1": GAIN | MARKS}, [[NAN, LOW], [45, 10]]),
        (STORED, {"dataset1": {"gain": 3.0} | MARKS, "dataset1/data1": GAIN}, [[NAN, LOW], [45, 10]]),
        (STORED, {"dataset1/data1": {"quantity": b"TH"}}, [[60, 0], [60, 60]]),
        (STORED, {}, [[60, 0], [60, 60]]),
        (
            np.array([[-9999000, -8888000], [45, 1e6]]),
            {"dataset1": {"nodata": -9999000.0, "undetect": -8888000.0}},
            [[NAN, LOW], [45, 60]],
        ),
    ],
)
def test_odim_says_what_is_dry_what_is_missing_and_what_values_mean(archive, stored, whats, expected):
    configured(archive, **ODIM)
    write_odim(archive, stored, whats)
    assert_holds(archive, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.4}, r"scale is 0.5 there but 0.4 in .*frames.yaml"),
        ({"offset": -30}, r"offset is -32 there but -30 in .*frames.yaml"),
        ({"missing": [255, 0]}, r"0 is dry there but missing in .*frames.yaml"),
        ({"units": "mm/h"}, r"units are dBZ there but mm/h in .*frames.yaml"),
    ],
)
def test_settings_that_contradict_a_file_are_refused_by_name(archive, changes, message):
    configured(archive, **ODIM, **changes)
    write_odim(archive, STORED, {"dataset1": GAIN | MARKS | {"quantity": b"DBZH"}})
    archive.shape = (2, 2)
    with pytest.raises(InputError, match=message):
        read(archive)


def test_settings_that_a_file_confirms_or_does_not_mention_are_used(archive):
    configured(archive, **ODIM, scale=0.5000001, offset=-32, missing=[84, 255])
    write_odim(archive, STORED, {"dataset1": {"gain": 0.5}})
    assert_holds(archive, [[NAN, LOW], [45, NAN]])


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        *(("mm/h", spelling) for spelling in ("mm hr-1", "mm h**-1", "mm per hour", "kg m-2 h-1")),
        ("DBZ", "dBZ"),
        ("1", "dBZ"),  # no units
    ],
)
def test_spellings_of_units_are_the_same(archive, stored, typed):
    write(archive, np.float32([[0, 45]]), {"units": stored}, NETCDF)
    configured(archive, units=typed)
    assert_holds(archive, [[0, 45]])


@pytest.mark.parametrize(("stored", "typed"), [("kg m-2", "mm/h"), ("mm/day", "mm/h")])
def test_units_that_contradict_are_refused_and_both_named(archive, stored, typed):
    write(archive, np.int16([[0, 45]]), {"units": stored, "scale_factor": 0.05}, NETCDF)
    configured(archive, units=typed)
    archive.shape = (1, 2)
    with pytest.raises(InputError, match=f"units are {stored} there but {typed} in .*frames.yaml"):
        read(archive)


def test_a_scale_that_a_file_does_not_have_may_convert_its_units(archive):
    write(archive, np.float32([[0, 4.5]]), {"units": "kg m-2"}, NETCDF)
    configured(archive, units="mm/h", scale=10)
    assert_holds(archive, [[0, 45]])


def test_a_cache_does_not_hide_units_that_contradict(archive):
    write(archive, np.float32([[0, 45]]), {"units": "dBZ"}, NETCDF)
    split = {"valid_from": "2023-06-01", "test_from": "2023-07-01"}
    configured(archive, split=split).open(img_size=(1, 2), seq_len=1)
    configured(archive, split=split, units="mm/h")
    with pytest.raises(InputError, match="units are dBZ there but mm/h"):
        archive.open(img_size=(1, 2), seq_len=1)


GREYS = np.array([[0, 40], [80, 255]], np.uint8)


def palette(path):
    picture = Image.fromarray(np.array([[3, 1], [0, 2]], np.uint8), "P")
    picture.putpalette([80] * 3 + [40] * 3 + [255] * 3 + [0] * 3)
    picture.save(path)


def bits(path):
    Image.fromarray(GREYS > 50).save(path)


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (palette, GREYS),
        (lambda path: Image.fromarray(GREYS).convert("P").save(path), GREYS),
        (lambda path: Image.fromarray(GREYS).convert("RGB").save(path), GREYS),
        (bits, 255 * (GREYS > 50)),
    ],
)
def test_a_picture_of_greys_gives_the_greys_however_it_is_stored(archive, save, expected):
    save(configured(archive, pattern="%Y%m%d%H%M.png", variable=None, range=[0, 255]).path(0))
    assert_holds(archive, expected)


def colored_but_dry(path):
    picture = Image.fromarray(np.zeros((2, 2), np.uint8), "P")
    picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.save(path)


def bands_of_16_bits(path):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + 3 * b"\1\2")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("save", "message"), [(colored_but_dry, "coloured"), (bands_of_16_bits, "of 16 bits")])
def test_pictures_that_would_lose_values_are_refused(archive, save, message):
    save(configured(archive, pattern="%Y%m%d%H%M.png", variable=None).path(0))
    archive.shape = (2, 2)
    with pytest.raises(InputError, match=message):
        read(archive)


def test_sequences_of_pictures_follow_the_same_rules(tmp_path):
    path = tmp_path / "storm" / "inputs" / "0.png"
    path.parent.mkdir(parents=True)
    bits(path)
    (sequence,) = read_sequences(tmp_path, 1, 1, 2)
    assert sequence.inputs[0, 0].tolist() == (GREYS > 50).tolist()
    bands_of_16_bits(path)
    with pytest.raises(InputError, match="of 16 bits"):
        read_sequences(tmp_path, 1, 1, 1)


HOSTILE = [b"", b"true" * 9999, "\x1b[31m\n", np.nan, np.inf, 0, 1e308, -1, [1, 2, 3], np.zeros(8000), [b"a", b"b"]]
HOSTILE += [np.float16(1e4), np.array([[1, 2], [3, 4]]), h5py.Empty("f8"), np.array([(1, 2)], "i4, f4"), True]
CF = ("_Unsigned", "_FillValue", "missing_value", "scale_factor", "add_offset", "valid_range", "valid_min")
CF += ("units", "coordinates", "DIMENSION_LIST")


@pytest.mark.parametrize(("conventions", "keys"), [("CF-1.8", CF), ("ODIM_H5/V2_4", (*GAIN, *MARKS, "quantity"))])
@pytest.mark.parametrize("kind", ["i1", "f4"])
@pytest.mark.filterwarnings("ignore")
def test_hostile_attributes_are_read_or_refused(archive, kind, conventions, keys):
    names = []
    with h5py.File(archive.path(0), "w") as file:
        file.attrs.update({**NETCDF, "Conventions": conventions})
        for key, value in itertools.product(keys, HOSTILE):
            group = file.create_group(f"dataset{len(names)}")
            group["data"] = np.array([[0, 1], [2, 3]]).astype(TYPES[kind])
            names.append(group["data"].name)
            for holder in (group["data"], group.create_group("what")):
                holder.attrs[key] = value
    config = read_config(archive.folder)
    refusals = [refusal_of(archive.path(0), replace(config, variable=name)) for name in names]
    assert all(str(archive.path(0)) in refusal and refusal.isprintable() for refusal in filter(None, refusals))
    assert 0 < len(list(filter(None, refusals))) < len(names)


def refusal_of(path, config):
    try:
        assert read_frame(path, config).values.shape == (2, 2)
    except InputError as error:
        return str(error)
    return ""
