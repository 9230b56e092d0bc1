"""What a resumed training does with what it finds: lost best weights, later checkpoints, another run."""

import math
import shutil

import pytest
import torch
from accelerate import Accelerator

import run
from dataset.sequences import Sequences
from diffcast.training.loop import TrainingSettings
from diffcast.training.validation import validation_loss
from models import Backbone
from tests.tiny import arguments, read_losses
from utils import checkpoint, files
from utils.files import locked
from utils.weights import load_weights

RUN = "Singlesimvp_sevir"
WORDS = ["--epochs", "0", "--training_steps", "8", "--valid_every", "4", "--keep_checkpoints", "9", "--no_eval"]


@pytest.fixture(scope="module")
def finished(storm_folder, tmp_path_factory):
    """The folder of a training of 8 steps."""
    exp_dir = tmp_path_factory.mktemp("exps")
    run.main(arguments(storm_folder, exp_dir, *WORDS))
    return exp_dir / RUN


@pytest.fixture
def trained(finished, storm_folder, tmp_path):
    """A copy of the folder of a training, and how to take it up again."""
    shutil.copytree(finished, tmp_path / RUN)
    return tmp_path / RUN, lambda *words: run.main(arguments(storm_folder, tmp_path, *WORDS, *words))


def steps(folder):
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")]


@pytest.mark.parametrize("lost", ["damaged", "missing"])
def test_lost_best_weights_are_replaced_by_the_present_ones(trained, lost):
    folder, train = trained
    best = folder / "checkpoints" / checkpoint.BEST
    _, metadata = load_weights(best)
    if lost == "missing":
        best.unlink()
    else:
        content = bytearray(best.read_bytes())
        content[-1] ^= 1
        best.write_bytes(content)
    train("--resume")
    assert "the best weights so far are lost" in (folder / "run.log").read_text()
    assert load_weights(best)[1] == metadata | {"step": 8, "valid_loss": pytest.approx(1, abs=1)}
    assert steps(folder) == [4, 8]


def test_later_checkpoints_stay_until_there_is_a_new_one(trained, monkeypatch):
    folder, train = trained
    monkeypatch.setattr(run, "train", lambda *_: False)
    with pytest.raises(SystemExit):
        train("--resume", str(folder / "checkpoints" / "ckpt-4"))
    monkeypatch.undo()
    assert steps(folder) == [4, 8]


def test_a_training_that_went_back_replaces_later_checkpoints(trained):
    folder, train = trained
    before = (folder / "checkpoints" / "ckpt-8").stat().st_ino
    losses = read_losses(folder)
    checkpoint.save_checkpoint(folder / "checkpoints", 99, {}, {}, {})
    train("--resume", str(folder / "checkpoints" / "ckpt-4"))
    assert steps(folder) == [4, 8]
    assert (folder / "checkpoints" / "ckpt-8").stat().st_ino != before
    assert read_losses(folder) == losses


def test_a_second_run_in_the_same_folder_is_refused(trained, monkeypatch, capsys):
    folder, train = trained
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0)
    with locked(folder, ""), pytest.raises(SystemExit):
        train("--resume")
    assert f"another run is at work in {folder}; " in capsys.readouterr().err


class Brittle(Backbone):
    """A backbone whose loss is the mean of its frames, infinite for some sequences."""

    def forward(self, observed, future, generator=None):
        return {"loss": future.mean()}


class Frames(Sequences):
    """Sequences of 3 frames, each with the value of its own."""

    def __init__(self, *values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return torch.full((3, 1, 2, 2), self.values[index])

    def sequence_id(self, index):
        return f"storm {index}"


@pytest.mark.parametrize(
    ("values", "mean", "told"),
    [
        ((1.0, 3.0, 2.0), 2.0, ""),
        ((1.0, math.inf, 2.0), 1.5, "1 sequence(s) have no finite validation loss and are left out of it: storm 1"),
        ((math.nan, math.inf), math.nan, "2 sequence(s)"),
    ],
)
def test_sequences_without_a_finite_loss_are_left_out(values, mean, told, caplog):
    settings = TrainingSettings(batch_size=2, num_workers=0)
    model = Brittle((1, 2, 2), 1, 2)
    found = validation_loss(Accelerator(cpu=True), model, Frames(*values), settings, lambda: False)
    assert found == {"loss": pytest.approx(mean, nan_ok=True)}
    assert told in caplog.text


def test_a_validation_without_any_finite_loss_ends_the_training_after_a_checkpoint(
    storm_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("diffcast.training.loop.validation_loss", lambda *_: {"loss": math.nan})
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(storm_folder, tmp_path, *WORDS))
    assert stop.value.code == 2
    assert "no sequence has a finite validation loss at step 4" in capsys.readouterr().err
    assert steps(tmp_path / RUN) == [4]
