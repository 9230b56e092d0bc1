"""Each benchmark of speed runs at toy size and writes what it promises."""

import json

import pytest
import torch

from benchmarks.speed import data, training
from tests.tiny import BACKBONES, tiny_architecture


def test_training_measures_every_form_against_the_contiguous_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "EVENTS", 6)
    small = [f"{name}={value}" for name, value in BACKBONES["simvp"].items()]
    sizes = (
        "--img_size 16 --dim 8 --dim_mults 1 2 --batch_size 2 --grad_acc_step 2 --num_workers 0 --steps 1 --rounds 1"
    )
    file = tmp_path / "training.json"
    training.main([*sizes.split(), "--use_diff", "--json", str(file), "--backbone_options", *small])
    result = json.loads(file.read_text())
    assert [row["form"] for row in result["rows"]] == [
        "float32, contiguous",
        "float32",
        "bfloat16",
        "bfloat16, 2 batches per step",
    ]
    assert result["rows"][0]["times faster"] == 1
    for row, sequences in zip(result["rows"], (2, 2, 2, 4), strict=True):
        assert row["sequences/s"] == pytest.approx(sequences / row["s/step"])
        assert 0 < row["waits for data"] < 1
    assert "waits for data" in capsys.readouterr().out


def test_training_gives_accumulated_batches_the_gradient_of_their_mean():
    model = tiny_architecture("simvp", use_diff=False).build()
    batches = [(torch.tensor([i]), torch.rand(1, 25, 1, 16, 16)) for i in range(2)]
    run = training.Training(model, training.Form("", True, torch.float32, 2), torch.device("cpu"))
    for batch in batches:
        run.accumulate(*batch)
    frames = torch.cat([frames for _, frames in batches])
    model(*frames.tensor_split([5], dim=1))["loss"].backward()
    for ours, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-4)


def test_data_reads_both_forms_with_and_without_workers(tmp_path, capsys):
    file = tmp_path / "data.json"
    sizes = "--events 4 --size 24 --img_size 16 --batch_size 2 --num_workers 0 1 --seconds 0.05 --rounds 1"
    data.main([*sizes.split(), "--json", str(file)])
    result = json.loads(file.read_text())
    assert [row["workers"] for row in result["rows"]] == ["0", "1"]
    for row in result["rows"]:
        assert row["times faster"] == pytest.approx(row["packed seq/s"] / row["HDF5 seq/s"])
    assert "in memory" in capsys.readouterr().out
