"""Training and evaluation on crops of frames, from the command line."""

import json

import numpy as np
import pytest
import torch

import run
from dataset.frames.crops import open_crops
from models import Advection
from tests.dataset.archive import Archive
from tests.diffcast.training.test_training import interrupt_second_validation
from tests.tiny import NETWORK, read_losses
from utils.weights import load_metadata

RUN = "Diffsimvp_frames"
SCORING = "--num_workers 0 --sampling_steps 2 --eval_sequences 6 --cases 1"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    """Noise of 70 x 100 pixels, 12 frames a split."""
    made = Archive(tmp_path_factory.mktemp("radar"))
    split = {"valid_from": "2023-05-01T01:00", "test_from": "2023-05-01T02:00"}
    return made.configure(split=split).add(range(36), shape=(70, 100))


def command(archive, exp_dir, words: str = "") -> list[str]:
    fixed = (
        f"{NETWORK} --use_diff --dataset frames --data_path {archive.folder} --exp_dir {exp_dir} {SCORING} --seq_len 4 "
        "--frames_in 2 --frames_out 2 --batch_size 4 --training_steps 8 --warmup_steps 2 --valid_every 2 "
        "--valid_sequences 3"
    )
    return [*fixed.split(), *words.split()]


@pytest.mark.slow
def test_a_training_on_crops_resumes_to_the_bit_and_is_evaluated_on_tiles(archive, tmp_path, monkeypatch):
    run.main(command(archive, tmp_path / "whole", "--crop 32"))
    with monkeypatch.context() as patch:
        interrupt_second_validation(patch)
        with pytest.raises(SystemExit):
            run.main(command(archive, tmp_path / "cut", "--crop 32 --num_workers 2 --no_eval"))
    run.main(command(archive, tmp_path / "cut", "--no_eval --resume"))
    whole, cut = (tmp_path / name / RUN for name in ("whole", "cut"))
    assert read_losses(whole) == read_losses(cut)
    best = whole / "checkpoints/best.safetensors"
    assert best.read_bytes() == (cut / "checkpoints/best.safetensors").read_bytes()
    assert load_metadata(best)["course"]["crop"] == 32

    words = f"--eval --ckpt_milestone {best} --data_path {archive.folder} --exp_dir {tmp_path / 'again'} {SCORING}"
    run.main(words.split())
    first, again = (
        json.loads((tmp_path / name / RUN / "evaluation_best/metrics.json").read_text()) for name in ("whole", "again")
    )
    assert again["settings"]["crop"] == 32
    assert again["scores"]["trend"]["crps"] == first["scores"]["trend"]["crps"]
    assert np.isfinite(again["scores"]["trend"]["crps"])


def test_crops_that_contradict_other_options_are_a_sentence(archive, tmp_path, capsys):
    for words, message in {
        "--crop 32 --img_size 64": "--crop 32 replaces --img_size 64 64; leave --img_size out",
        "--crop 40": "crop 40 is not possible; use a multiple of 32 pixels",
        "--crop 32 --dataset synthetic": "crop belongs to frames",
    }.items():
        with pytest.raises(SystemExit) as stop:
            run.main(command(archive, tmp_path, words))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("whole", [False, True])
def test_tiles_are_forecast_by_themselves_or_as_parts_of_the_map(archive, tmp_path, whole):
    words = f"--eval --backbone advection --dataset frames --data_path {archive.folder} --crop 32 --stride 4 --cases 1 "
    words += f"--frames_in 2 --frames_out 2 --seq_len 4 --num_workers 0 --exp_dir {tmp_path}"
    run.main([*words.split(), *(["--whole_map"] if whole else [])])
    scores = json.loads(next(tmp_path.glob("*/evaluation_*/metrics.json")).read_text())["scores"]
    dataset = open_crops("test", archive.folder, 32, 4, 4)
    errors = []
    for index in range(len(dataset)):
        number, part = dataset.part_of(index)
        frames, forecast = dataset.map_frames(number), Advection((1, 32, 32), 2, 2).forecast
        on_map = torch.zeros(2, *frames.shape[1:])
        on_map[..., :70, :100] = forecast(frames[None, :2, :, :70, :100])[0, 0]
        made = on_map[(..., *part)]
        if not whole:
            made = forecast(dataset[index][None, :2].nan_to_num())[0, 0]
        errors.append((made - dataset[index][2:]).abs())
    by_frame = torch.stack(errors).nanmean((-3, -2, -1))
    assert scores["advection"]["mae"] == pytest.approx(255 * by_frame.mean().item(), rel=1e-5)
