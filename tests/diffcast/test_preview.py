"""What trackers receive at a validation."""

import torch
from accelerate import Accelerator

from dataset import build_dataset
from diffcast.training import loop
from diffcast.training.loop import Trainer, TrainingSettings
from diffcast.training.preview import preview


class Recorded:
    """A tracker that keeps what it is given."""

    name = "tensorboard"

    def __init__(self):
        self.scalars, self.images = {}, {}

    def log(self, values, step, **_):
        self.scalars |= values

    def log_images(self, values, step, **_):
        self.images |= values


def test_each_validation_sends_scores_and_a_picture_to_the_trackers(tiny, storm_folder, tmp_path):
    data = build_dataset("sevir", "valid", storm_folder, 16)
    model, accelerator = tiny(), Accelerator(cpu=True)
    accelerator.trackers = [tracker := Recorded()]
    settings = TrainingSettings(batch_size=2, epochs=0, training_steps=1, valid_sequences=1, num_workers=0)
    (tmp_path / "checkpoints").mkdir()
    assert Trainer(accelerator, model, data, data, settings, tmp_path, {}).run()
    assert 0 < tracker.scalars["valid_crps"] < 1
    assert 0 <= tracker.scalars["valid_csi"] <= 1
    assert tracker.images["valid_forecast"].shape == (1, 2 * 16, 4 * 16, 3)


def test_a_preview_that_fails_does_not_end_the_training(tiny, storm_folder, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loop, "preview", fail)
    data = build_dataset("sevir", "valid", storm_folder, 16)
    accelerator = Accelerator(cpu=True)
    accelerator.trackers = [Recorded()]
    settings = TrainingSettings(batch_size=2, epochs=0, training_steps=1, valid_sequences=1, num_workers=0)
    (tmp_path / "checkpoints").mkdir()
    assert Trainer(accelerator, tiny(), data, data, settings, tmp_path, {}).run()
    assert "no preview for the trackers: out of memory" in caplog.text
    assert (tmp_path / "checkpoints" / "ckpt-1").is_dir()


def test_a_preview_is_the_same_every_time(tiny, storm_folder):
    data = build_dataset("sevir", "valid", storm_folder, 16)
    first, second = (preview(tiny().eval(), data, Accelerator(cpu=True).device, seed=0) for _ in range(2))
    assert first[0] == second[0]
    assert (first[1] == second[1]).all()
