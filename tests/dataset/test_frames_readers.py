"""Formats of weather services: what their files say need not be typed, and hostile files are refused."""

import gzip

import h5py
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import xarray
from PIL import Image

from dataset.check import main
from dataset.frames.archive.files import read_frame
from dataset.frames.complete import complete_config, first_frame
from dataset.frames.config import read_config
from tests.dataset.archive import START, Archive
from utils.errors import InputError

NAN = np.nan
BARE = {"units": None, "extent_km": None, "range": [-10, 60], "thresholds": [10, 20]}  # the files say the rest
LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
CORNER = (100_000.0, -200_000.0)  # x and y of the outer upper left corner
PIXEL = 2000.0
DBZ = np.array([[255, 64, 104], [0, 184, 84]], np.uint8)
EXPECTED = [[NAN, 0, 20], [-10, 60, 10]]  # 0 is dry


@pytest.fixture
def archive(tmp_path) -> Archive:
    return Archive(tmp_path)


def configured(archive, suffix, **changes) -> Archive:
    return archive.configure(pattern=f"%Y%m%d%H%M{suffix}", **BARE | changes)


def write_odim(path):
    longitude, latitude = pyproj.Proj(LAEA)(*CORNER, inverse=True)
    where = {"projdef": LAEA.encode(), "UL_lon": longitude, "UL_lat": latitude, "xscale": PIXEL, "yscale": PIXEL}
    about = {"gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0, "quantity": b"DBZH"}
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = b"ODIM_H5/V2_4"
        file["dataset1/data1/data"] = DBZ
        file["dataset1/data2/data"] = DBZ
        file.create_group("dataset1/data1/what").attrs.update(about)
        file.create_group("where").attrs.update(where)
        file.create_group("what").attrs.update(date=b"20230501", time=b"000000")


def write_knmi(path):
    corner = {"geo_column_offset": 100.0, "geo_row_offset": 200.0, "geo_pixel_size_x": 2.0, "geo_pixel_size_y": -2.0}
    with h5py.File(path, "w") as file:
        file["image1/image_data"] = DBZ
        file["image1"].attrs["image_geo_parameter"] = b"REFLECTIVITY_[DBZ]"
        about = {"calibration_formulas": b"GEO=0.5*PV+-32.0", "calibration_missing_data": np.int32([255])}
        file.create_group("image1/calibration").attrs.update(about)
        file.create_group("overview").attrs["product_datetime_end"] = b"01-MAY-2023;00:00:00.000"
        file.create_group("geographic").attrs.update(corner)
        projection = b"+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
        file.create_group("geographic/map_projection").attrs["projection_proj4_params"] = projection


def write_netcdf(path):
    attributes = {"units": "dBZ", "grid_mapping": "crs", "standard_name": "equivalent_reflectivity_factor"}
    about = {"standard_name": "projection_x_coordinate", "units": "km"}
    x, y = np.array([101.0, 103, 105]), np.array([-203.0, -201])  # y rises
    dataset = xarray.Dataset({"dbz": (("y", "x"), DBZ[::-1], attributes)})
    dataset["dbz"].attrs.update(scale_factor=0.5, add_offset=-32.0, _FillValue=np.uint8(255))
    dataset["x"], dataset["y"] = ("x", x, about), ("y", y, about | {"standard_name": "projection_y_coordinate"})
    dataset["crs"] = ((), 0, pyproj.CRS(LAEA).to_cf())
    dataset["time"] = ((), 0, {"units": "seconds since 2023-05-01 00:00:00 UTC"})
    dataset.to_netcdf(path, engine="h5netcdf")


def write_pgm(path, shape=DBZ.shape):
    sphere = pyproj.Proj("+proj=stere +lat_0=90 +lon_0=25 +lat_ts=60 +R=6371288")
    longitude, latitude = sphere(CORNER[0], CORNER[1] - 2 * PIXEL, inverse=True)
    header = ["P5", "# obstime 202305010000", "# param CorrectedReflectivity", "# projection radar {"]
    header += ["# type stereographic", "# centrallongitude 25", "# centrallatitude 90", "# truelatitude 60"]
    header += [f"# metersperpixel_x {PIXEL}", f"# metersperpixel_y {PIXEL}"]
    header += [f"# bottomleft {longitude} {latitude}", "# }", f"{shape[1]} {shape[0]}", "255\n"]
    path.write_bytes("\n".join(header).encode() + DBZ.tobytes())


def write_geotiff(path, shape=DBZ.shape):
    items = {"Observation time": "202305010000", "Quantity": "Reflectivity", "Gain": 0.5, "Offset": -32, "Undetect": 0}
    place = {
        "crs": rasterio.crs.CRS.from_proj4(LAEA),
        "transform": rasterio.Affine(PIXEL, 0, CORNER[0], 0, -PIXEL, CORNER[1]),
    }
    size = {"count": 1, "height": shape[0], "width": shape[1], "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", nodata=255, **size, **place) as target:
        target.update_tags(**items)
        target.units = ["dBZ"]
        if shape == DBZ.shape:
            target.write(DBZ, 1)


RAIN = np.array([[-3, 0, 20], [-1, 60, 10]], np.float32)  # mm/h; -3 has no coverage, and -1 is dry
MRMS = {"DISCIPLINE": "209", "IDS_CENTER": "161", "IDS_MASTER_TABLE": "255", "IDS_REF_TIME": "2023-05-01T00:00:00Z"}
MRMS |= {"PDS_PDTN": "0", "PDS_TEMPLATE_NUMBERS": "6 1 8 0 97 0 0 0 0 0 0 0 0 102 0 0 0 0 0 255 1 0 0 0 0"}


def write_grib(path):
    """The frame `RAIN` as NOAA's Multi-Radar Multi-Sensor system packs it."""
    size = {"count": 1, "height": RAIN.shape[0], "width": RAIN.shape[1]}
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(0.01, 0, -130, 0, -0.01, 55)}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype="float32", **size, **place) as target:
            target.write(RAIN, 1)
        with memory.open() as source:
            rasterio.shutil.copy(source, path, driver="GRIB", DATA_ENCODING="PNG", NBITS="12", **MRMS)


def radolan(product, values, precision="E-01", version=3) -> bytes:
    """A composite of the German Weather Service, of 16 bits or of bytes; `values` from south to north."""
    height, width = values.shape
    about = f"VS{version:2}SW   2.13.1PR {precision}INT  60GP{height:4}x{width:4}MF 00000001MS  9<boo,ros>"
    size = len(product) + 15 + 9 + len(about) + 1 + values.nbytes
    return f"{product}010000100000523BY{size:7}{about}\3".encode() + values.tobytes()


def gzipped(write):
    def write_gzip(path):
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_gzip


WRITERS = {
    "odim": (".h5", write_odim),
    "knmi": (".h5", write_knmi),
    "netcdf": (".nc", write_netcdf),
    "geotiff": (".tif", write_geotiff),
    "pgm": (".pgm", write_pgm),
    "odim, gzipped": (".h5.gz", gzipped(write_odim)),
    "pgm, gzipped": (".pgm.gz", gzipped(write_pgm)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_values_units_time_and_grid_come_from_the_file(archive, name):
    suffix, write = WRITERS[name]
    write(configured(archive, suffix).path(0))
    config = complete_config(archive.folder)
    _, frame = first_frame(config)
    np.testing.assert_array_equal(np.clip(frame.values, -10, 60), EXPECTED)
    metadata = frame.metadata
    assert (metadata.format, metadata.time) == (name.partition(",")[0], START)
    assert config.units == "dBZ"
    assert config.extent_km == pytest.approx(6)
    np.testing.assert_allclose(metadata.georeference.x, [101_000, 103_000, 105_000], atol=1e-3)
    np.testing.assert_allclose(metadata.georeference.y, [-201_000, -203_000], atol=1e-3)
    assert pyproj.CRS(metadata.georeference.crs).is_projected


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": "mm/h"}, "units are dBZ there but mm/h"),
        ({"extent_km": 100}, "the width is 6 km there but extent_km is 100"),
        ({"format": "png"}, "format is [a-z]+ there but png"),
    ],
)
def test_settings_that_contradict_the_file_are_refused(archive, name, changes, message):
    suffix, write = WRITERS[name]
    path = configured(archive, suffix, **changes).path(0)
    write(path)
    with pytest.raises(InputError, match=f"{path}: {message}"):
        read_frame(path, read_config(archive.folder))


def test_the_check_describes_the_first_frame(archive, caplog):
    write_odim(configured(archive, ".h5").path(0))
    with caplog.at_level("INFO"):
        main(["--dataset", "frames", "--data_path", str(archive.folder), "--num_workers", "0"])
    assert "odim of 2 x 3 pixels (uint8); DBZH, -10 to 60 dBZ; 16.7 % missing; 2023-05-01 00:00 UTC" in caplog.text
    assert "pixels of 2 x 2 km, +proj=laea" in caplog.text


def test_a_key_that_neither_settings_nor_files_give_is_named(archive):
    configured(archive, ".npy").add([0])
    with pytest.raises(InputError, match="lacks the key units"):
        complete_config(archive.folder)


def test_several_datasets_that_may_be_the_frame_are_named(archive):
    path = configured(archive, ".nc").path(0)
    with h5py.File(path, "w") as file:
        file["rain"], file["snow"], file["x"] = DBZ, DBZ, np.arange(3)
    with pytest.raises(InputError, match=r"2 \(rain, snow\) of the data sets .* give the key variable"):
        read_frame(path, read_config(archive.folder))


def test_a_gzip_bomb_is_refused_and_a_truncated_file_too(archive, monkeypatch):
    path = configured(archive, ".h5.gz").path(0)
    config = read_config(archive.folder)
    gzipped(write_odim)(path)
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(InputError, match=f"{path} cannot be used"):
        read_frame(path, config)
    path.write_bytes(content)
    monkeypatch.setattr("dataset.frames.archive.files.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="larger than 1000 bytes"):
        read_frame(path, config)


def test_a_pgm_that_is_shorter_or_larger_than_it_may_be_is_refused(archive):
    path = configured(archive, ".pgm").path(0)
    config = read_config(archive.folder)
    write_pgm(path, (3, 3))
    with pytest.raises(InputError, match="its 3 x 3 pixels are not complete"):
        read_frame(path, config)
    write_pgm(path, (10**6, 10**6))
    with pytest.raises(InputError, match="its 1000000 x 1000000 pixels are more than"):
        read_frame(path, config)


def test_a_pgm_of_any_tool_gives_its_numbers(archive):
    path = configured(archive, ".pgm", units="dBZ", extent_km=3).path(0)
    Image.fromarray(np.uint16([[0, 40], [7, 60]])).save(path)
    np.testing.assert_array_equal(read_frame(path, read_config(archive.folder)).values, [[0, 40], [7, 60]])


@pytest.mark.parametrize("suffix", [".grib2", ".grib2.gz"])
def test_grib_says_what_is_missing_and_where_its_pixels_are(archive, suffix):
    (gzipped(write_grib) if suffix.endswith("gz") else write_grib)(configured(archive, suffix).path(0))
    config = complete_config(archive.folder)
    _, frame = first_frame(config)
    np.testing.assert_array_equal(frame.values, [[NAN, 0, 20], [-1, 60, 10]])
    assert (config.units, frame.metadata.quantity) == ("mm/hr", "Radar Precipitation Rate")
    assert (frame.metadata.format, frame.metadata.time) == ("grib", START)
    assert config.extent_km == pytest.approx(0.03 * 111.195 * np.cos(np.radians(54.99)))
    np.testing.assert_allclose(frame.metadata.georeference.x, [-129.995, -129.985, -129.975])
    np.testing.assert_allclose(frame.metadata.georeference.y, [54.995, 54.985])


def test_a_grib_that_holds_a_larger_picture_than_it_declares_is_refused(archive):
    path = configured(archive, ".grib2").path(0)
    write_grib(path)
    size = b"IHDR" + (3).to_bytes(4, "big") + (2).to_bytes(4, "big")
    assert size in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(size, b"IHDR" + 2 * (30000).to_bytes(4, "big")))
    with pytest.raises(InputError, match="a picture of 30000 x 30000 pixels, more than"):
        read_frame(path, read_config(archive.folder))


RADOLAN = np.array([[0x29C4, 0, 0x1000 + 17], [4095, 0x4000 + 5, 0x8000 + 7]], "<u2")  # no data; negative; clutter
BYTES = np.array([[250, 0, 65], [105, 249, 255]], np.uint8)


@pytest.mark.parametrize(
    ("product", "precision", "values", "units", "expected"),
    [
        ("RW", "E-01", RADOLAN, "mm", [[409.5, -0.5, NAN], [NAN, 0, 1.7]]),
        ("RY", "E-02", RADOLAN, "mm", [[40.95, -0.05, NAN], [NAN, 0, 0.17]]),
        ("RX", "E+00", BYTES, "dBZ", [[20, NAN, NAN], [NAN, -32.5, 0]]),
        ("WN", "E-01", RADOLAN & 0x3FFF, "dBZ", [[172.25, -32.25, -32.15], [NAN, -32.5, -31.65]]),
    ],
)
def test_radolan_says_what_bits_mean_and_its_first_row_is_the_southern_one(
    archive, product, precision, values, units, expected
):
    path = configured(archive, "-bin", extent_km=3).path(0)
    path.write_bytes(radolan(product, values, precision))
    config = complete_config(archive.folder)
    frame = read_frame(path, config)
    np.testing.assert_allclose(frame.values, expected)
    assert (config.units, frame.metadata.quantity, frame.metadata.time) == (units, product, START)


@pytest.mark.parametrize(("version", "x", "y"), [(3, -522_962.167, -3_759_144.724), (5, -523_196.835, -3_772_588.862)])
def test_radolan_places_its_national_grid(archive, version, x, y):
    path = configured(archive, "-bin").path(0)
    path.write_bytes(radolan("RW", np.full((900, 900), 5, "<u2"), version=version))
    config = complete_config(archive.folder)
    georeference = read_frame(path, config).metadata.georeference
    assert config.extent_km == pytest.approx(900)
    np.testing.assert_allclose([georeference.x[0], georeference.y[0]], [x, y], atol=1e-2)


def test_a_radolan_of_another_size_than_its_header_says_is_refused(archive):
    path = configured(archive, "-bin").path(0)
    config = read_config(archive.folder)
    path.write_bytes(radolan("RW", RADOLAN)[:-1])
    with pytest.raises(InputError, match="its 11 bytes are not 2 x 3 values, 12 bytes by its header"):
        read_frame(path, config)
    path.write_bytes(radolan("RW", RADOLAN).replace(b"GP   2x   3", b"GP99999x99999"))
    with pytest.raises(InputError, match="its 99999 x 99999 pixels are more than"):
        read_frame(path, config)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_picture_of_many_pixels_or_bands_is_refused(archive):
    path = configured(archive, ".tif").path(0)
    config = read_config(archive.folder)
    write_geotiff(path, (2**16, 2**16))
    with pytest.raises(InputError, match="its 65536 x 65536 pixels are more than"):
        read_frame(path, config)
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", count=2, height=3, width=3):
        pass
    with pytest.raises(InputError, match=r"its shape \(2, 3, 3\) is not that of one frame"):
        read_frame(path, config)


def test_a_picture_from_south_to_north_is_turned(archive):
    path = configured(archive, ".tif").path(0)
    write_geotiff(path)
    with rasterio.open(path, "r+") as target:
        target.transform = rasterio.Affine(PIXEL, 0, CORNER[0], 0, PIXEL, CORNER[1] - 2 * PIXEL)
        target.write(DBZ[::-1], 1)
    frame = read_frame(path, read_config(archive.folder))
    np.testing.assert_array_equal(np.clip(frame.values, -10, 60), EXPECTED)
    np.testing.assert_allclose(frame.metadata.georeference.y, [-201_000, -203_000])


def test_a_package_that_is_missing_is_named(archive, monkeypatch):
    path = configured(archive, ".tif").path(0)
    write_geotiff(path)
    monkeypatch.setattr("dataset.frames.packages.find_spec", lambda name: None)
    with pytest.raises(InputError, match="geotiff needs the package rasterio: pip install rasterio"):
        read_frame(path, read_config(archive.folder))


def test_a_projection_that_would_open_other_files_is_not_used(archive):
    path = configured(archive, ".h5").path(0)
    write_odim(path)
    with h5py.File(path, "r+") as file:
        file["where"].attrs["projdef"] = b"+proj=longlat +nadgrids=/etc/passwd"
    assert read_frame(path, read_config(archive.folder)).metadata.georeference is None


def test_frames_are_read_without_the_package_for_projections(archive, monkeypatch):
    monkeypatch.setattr("dataset.frames.packages.find_spec", lambda name: None)
    write_netcdf(configured(archive, ".nc").path(0))
    georeference = first_frame(complete_config(archive.folder))[1].metadata.georeference
    assert (georeference.crs, georeference.extent_km) == (None, 6)
    write_odim(configured(archive, ".h5").path(0))
    with pytest.raises(InputError, match=r"lacks the key extent_km.* pip install pyproj"):
        complete_config(archive.folder)
    configured(archive, ".h5", extent_km=6)
    assert first_frame(complete_config(archive.folder))[1].metadata.georeference is None
