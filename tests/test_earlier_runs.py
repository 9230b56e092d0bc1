"""A training that commit d368d19 began is continued and scored as that commit did."""

import json
import shutil

import pytest

import run
from tests.tiny import ROOT, read_losses

EARLIER = ROOT / "tests" / "golden" / "run_2026_11"


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_scored_the_same(storm_folder, tmp_path):
    folder = tmp_path / "Diffconvgru_sevir"
    shutil.copytree(EARLIER / "ckpt-4", folder / "checkpoints" / "ckpt-4")
    words = "--backbone convgru --use_diff --resume --num_workers 0 --members 2 --sampling_steps 2 --cases 0"
    run.main([*words.split(), "--data_path", str(storm_folder), "--exp_dir", str(tmp_path)])
    expected = json.loads((EARLIER / "expected.json").read_text())
    assert [row["loss"] for row in read_losses(folder)] == pytest.approx(expected["loss"], rel=1e-3)
    scores = json.loads((folder / "evaluation_best" / "metrics.json").read_text())["scores"]
    assert {name: one["crps"] for name, one in scores.items()} == pytest.approx(expected["crps"], rel=1e-3)
