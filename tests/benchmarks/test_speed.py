"""Each benchmark of speed runs at toy size and writes what it promises."""

import json

import pytest
import torch

from benchmarks.speed import crops, data


def test_data_reads_both_forms_with_and_without_workers(tmp_path, capsys):
    file = tmp_path / "data.json"
    sizes = "--events 4 --size 24 --img_size 16 --batch_size 2 --num_workers 0 1 --seconds 0.05 --rounds 1"
    data.main([*sizes.split(), "--json", str(file)])
    result = json.loads(file.read_text())
    assert [row["workers"] for row in result["rows"]] == ["0", "1"]
    for row in result["rows"]:
        assert row["times faster"] == pytest.approx(row["packed seq/s"] / row["HDF5 seq/s"])
    assert "in memory" in capsys.readouterr().out


def test_crops_are_read_from_every_form(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crops, "STORM", 64)
    monkeypatch.setattr(crops, "LIBRARY", 1)
    file = tmp_path / "crops.json"
    sizes = "--days 1 --size 100 150 --batch_size 2 --num_workers 0 --seconds 0.05 --rounds 1"
    crops.main([*sizes.split(), "--folder", str(tmp_path), "--json", str(file)])
    result = json.loads(file.read_text())
    assert result["packing"]["frames"] == 288
    assert 0 < result["packing"]["cache kB/frame"] < result["packing"]["source kB/frame"]
    assert {"cache /s", "raw memory map /s", "complete frames /s"} <= result["rows"][0].keys()
    assert list(tmp_path.iterdir()) == [file]
    assert "in memory" in capsys.readouterr().out


def test_every_form_gives_the_same_crops(tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "STORM", 64)
    crops.write_archive(tmp_path, 1, 100, 150)
    data, _ = crops.measure_packing(tmp_path)
    crops.write_raw(data.cache, tmp_path / "raw.npy")
    crops.write_zarr(data.cache, tmp_path / "frames.zarr")
    for form in (crops.Stored(data, tmp_path / "raw.npy"), crops.InZarr(data, tmp_path / "frames.zarr")):
        for index in data.order(0, 0)[:3]:
            torch.testing.assert_close(form[int(index)], data[int(index)], rtol=0, atol=0, equal_nan=True)
