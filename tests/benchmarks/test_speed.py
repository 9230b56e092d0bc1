"""Each benchmark of speed runs at toy size and writes what it promises."""

import json

import pytest

from benchmarks.speed import data


def test_data_reads_both_forms_with_and_without_workers(tmp_path, capsys):
    file = tmp_path / "data.json"
    sizes = "--events 4 --size 24 --img_size 16 --batch_size 2 --num_workers 0 1 --seconds 0.05 --rounds 1"
    data.main([*sizes.split(), "--json", str(file)])
    result = json.loads(file.read_text())
    assert [row["workers"] for row in result["rows"]] == ["0", "1"]
    for row in result["rows"]:
        assert row["times faster"] == pytest.approx(row["packed seq/s"] / row["HDF5 seq/s"])
    assert "in memory" in capsys.readouterr().out
