import io
import tarfile

import h5py
import numcodecs
import numpy as np
import pytest
import xarray

from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.files import read_frame
from dataset.frames.archive.names import moment
from dataset.frames.config import read_config
from tests.dataset.archive import Archive
from tests.dataset.test_frames_meteoswiss import write_gif
from tests.dataset.test_frames_readers import RADOLAN, WRITERS, radolan, write_grib
from tests.fuzz.children import ACCEPTED, REFUSED, fuzz, mutate
from utils.errors import InputError

ROWS = {"coords": {"y": np.arange(16.0)}, "dims": ("y", "x")}
MORE_WRITERS = {
    "gif": (".gif", write_gif),
    "grib": (".grib2", write_grib),
    "radolan": ("-bin", lambda path: path.write_bytes(radolan("RW", RADOLAN))),
}
PACKING = {"_FillValue": -1, "scale_factor": 0.5, "add_offset": 1.0, "chunksizes": (8, 16), "zlib": True}


def netcdf(**encoding) -> bytes:
    field = xarray.DataArray(np.arange(256.0).reshape(16, 16) / 3, **ROWS, attrs={"units": "dBZ", "valid_max": 80.0})
    content = io.BytesIO()
    xarray.Dataset({"v": field}).to_netcdf(content, engine="h5netcdf", encoding={"v": encoding})
    return content.getvalue()


def odim() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["Conventions"] = b"ODIM_H5/V2_4"
        file["v"] = np.arange(256, dtype=np.uint8).reshape(16, 16)
        file.create_group("what").attrs.update(gain=0.5, offset=-32.0, nodata=255.0, undetect=0.0, quantity=b"DBZH")
    return content.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_netcdf_and_odim_frames_are_read_or_refused(tmp_path):
    samples = [netcdf(), netcdf(dtype="int16", **PACKING), netcdf(dtype="int8", _FillValue=-1), odim()]
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="v", units="dBZ")
    config, path = read_config(tmp_path), archive.path(0)
    for sample in samples:
        path.write_bytes(sample)
        read_frame(path, config)
    outcomes = fuzz("frames", lambda rng: path.write_bytes(mutate(samples, rng)), lambda: read_frame(path, config), 600)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(WRITERS | MORE_WRITERS))
def test_mutated_frames_of_weather_services_are_read_or_refused(tmp_path, name):
    suffix, write = (WRITERS | MORE_WRITERS)[name]
    archive = Archive(tmp_path).configure(pattern=f"%Y%m%d%H%M{suffix}", units=None, extent_km=None)
    config, path = read_config(tmp_path), archive.path(0)
    write(path)
    read_frame(path, config)
    samples = [path.read_bytes()]
    outcomes = fuzz(name, lambda rng: path.write_bytes(mutate(samples, rng)), lambda: read_frame(path, config), 600)
    assert outcomes[REFUSED] > 1
    assert outcomes[ACCEPTED] > 1 or "gzipped" in name  # whose checksum finds every change


@pytest.mark.slow
def test_frames_of_mutated_tars_are_read_or_refused(tmp_path):
    samples, frame = [], (tmp_path / "frame.npy")
    np.save(frame, np.arange(48, dtype=np.uint8).reshape(6, 8))
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "sample", "w", format=kind) as tar:
            for name in (f"{'long/' * 30}x", "2023050100.npy", "2023050101.npy"):
                tar.add(frame, name)
        samples.append((tmp_path / "sample").read_bytes())
    Archive(tmp_path).configure(pattern="frames.tar/%Y%m%d%H.npy", interval=60)
    tar = tmp_path / "frames.tar"

    def read():
        archive = archive_of(read_config(tmp_path))
        for time in archive.times():
            archive.read(moment(time))

    tar.write_bytes(samples[0])
    read()
    outcomes = fuzz("tar", lambda rng: tar.write_bytes(mutate(samples, rng)), read, 600)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Blosc", "Zstd", "GZip", "LZ4", "BloscCodec", "ZstdCodec", "GzipCodec", "shards"])
def test_frames_of_mutated_stores_are_read_or_refused(tmp_path, name):
    codecs = pytest.importorskip("zarr.codecs")
    zarr_format, store = (3 if name.endswith(("Codec", "shards")) else 2), tmp_path / "v.zarr"
    times = np.arange("2023-05-01", "2023-05-03", dtype="datetime64[D]").astype("datetime64[ns]")
    field = xarray.DataArray(np.ones((2, 16, 16)), {"time": times, "y": np.arange(16.0)}, ("time", "y", "x"))
    module = codecs if zarr_format == 3 else numcodecs
    about = {"shards": (2, 16, 16)} if name == "shards" else {"compressors": getattr(module, name)()}
    encoding = {"v": {"chunks": (1, 8, 16), "dtype": "float32"} | about}
    xarray.Dataset({"v": field}).to_zarr(store, zarr_format=zarr_format, encoding=encoding, consolidated=False)
    Archive(tmp_path).configure(pattern=None, store="v.zarr", interval=1440)
    files = {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}

    def write(rng):
        spoiled = rng.choice([*files])
        for path, content in files.items():
            path.write_bytes(mutate([content], rng) if path == spoiled else content)

    def read():
        archive = archive_of(read_config(tmp_path))
        for time in archive.times():
            archive.read(moment(time))

    read()
    outcomes = fuzz(f"zarr, {name}", write, read, 600)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 2  # few, because checksums and metadata cover most bytes


def test_a_text_whose_type_is_damaged_does_not_crash_the_process(tmp_path):
    path = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.h5").path(0)
    WRITERS["odim"][1](path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x19\x01\x00\x00\x10") + 1] |= 8  # a list of nothing
    path.write_bytes(content)
    with pytest.raises(InputError, match="give the key variable"):
        read_frame(path, read_config(tmp_path))


def test_a_damaged_text_does_not_make_reading_endless(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="v")
    content = bytearray(odim())
    free = content.index(b"GCOL") + 16 + 32 + 24  # behind two texts
    content[free + 9] ^= 2  # of the size
    archive.path(0).write_bytes(content)
    with pytest.raises(InputError, match="its texts are damaged"):
        read_frame(archive.path(0), read_config(tmp_path))
