"""The form of NetCDF-4 files, which netCDF's own library needs to understand them."""

import h5py
import numpy as np
import pytest

from utils.errors import InputError
from utils.netcdf import Variable, write_netcdf


@pytest.fixture
def variables():
    packed = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    attributes = {f"note_{number}": "ten more" for number in range(10)}  # many are stored in another way than few
    return {
        "rain": Variable(("time", "y", "x"), packed, {"units": "m²", "_FillValue": np.int16(7), **attributes}),
        "time": Variable(("time",), np.arange(2.0), {"units": "minutes since 2023-05-01"}),
        "y": Variable(("y",), np.arange(3.0), {}),
        "x": Variable(("x",), np.arange(4.0), {}),
        "when": Variable((), np.float64(5), {}),
    }


def test_dimensions_are_shared_scales_named_after_their_coordinates(variables, tmp_path):
    write_netcdf(tmp_path / "a.nc", variables, {})
    with h5py.File(tmp_path / "a.nc") as file:
        rain = file["rain"]
        assert [dimension[0].name for dimension in rain.dims] == ["/time", "/y", "/x"]
        assert [file[name].attrs["NAME"] for name in ("time", "y", "x")] == [b"time", b"y", b"x"]
        assert [file[name].attrs["_Netcdf4Dimid"] for name in ("time", "y", "x")] == [0, 1, 2]
        assert all(file[name].is_scale for name in ("time", "y", "x"))
        assert not rain.is_scale
        assert file["when"].shape == ()


def test_values_and_attributes_come_back(variables, tmp_path):
    write_netcdf(tmp_path / "a.nc", variables, {"Conventions": "CF-1.8", "empty": ""})
    with h5py.File(tmp_path / "a.nc") as file:
        assert file.attrs["Conventions"] == b"CF-1.8"
        rain = file["rain"]
        assert np.array_equal(rain[()], variables["rain"].values)
        assert rain.attrs["units"].decode() == "m²"
        assert h5py.h5a.open(rain.id, b"units").get_type().is_variable_str() is False
        assert rain.attrs["_FillValue"].tolist() == [7]
        assert rain.attrs["_FillValue"].dtype == rain.dtype == np.int16
        assert rain.fillvalue == 7
        assert rain.attrs["note_9"] == b"ten more"
        assert rain.chunks == (1, 3, 4)
        assert rain.compression == "gzip"


def test_a_file_is_whole_or_not_there(variables, tmp_path):
    (tmp_path / "a.nc").write_text("the old one")
    with pytest.raises(InputError, match=r"cannot write .*none/a\.nc"):
        write_netcdf(tmp_path / "none" / "a.nc", variables, {})
    del variables["rain"].attributes["units"]
    variables["rain"].attributes["units"] = object()
    with pytest.raises(TypeError):
        write_netcdf(tmp_path / "a.nc", variables, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    assert (tmp_path / "a.nc").read_text() == "the old one"
