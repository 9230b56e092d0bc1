"""A step that is not finite changes nothing and is told; its batch can be found."""

import logging
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from diffcast.training.guard import (
    MOST_OVERFLOWS,
    Buffers,
    Guard,
    skip_if_not_finite,
    spoil_if_not_finite,
    write_diagnosis,
)
from diffcast.training.losslog import LossFile, Reading, StepLosses
from tests.chaos import disk


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_step_changes_neither_weights_nor_state(bad):
    def train(steps):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        buffers = Buffers(model)
        for step in steps:
            frames = torch.full((2, 3), float(step)) if step < 3 else torch.full((2, 3), bad)
            optimizer.zero_grad()
            spoil_if_not_finite((model(frames) - torch.tensor([[1.0], [2.0]])).square().mean()).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            skip_if_not_finite(optimizer, norm)
            optimizer.step()
            buffers.restore_if_not_finite(norm)
        state = optimizer.state_dict()["state"][0]
        weights = {name: value for name, value in model.state_dict().items() if "batches" not in name}
        return [*weights.values(), *state.values()]

    assert all(map(torch.equal, train([0, 3, 1, 3, 3, 2]), train([0, 1, 2])))


def test_an_infinite_loss_with_a_finite_gradient_spoils_it():
    weight = torch.ones((), requires_grad=True)
    spoil_if_not_finite(weight + math.inf).backward()
    assert weight.grad.isnan()
    weight.grad = None
    spoil_if_not_finite(weight * 3).backward()
    assert weight.grad == 3


def losses(step, *batches, norm=1.0):
    return StepLosses(step, {"loss": sum(map(sum, batches))}, list(batches), norm, 0.1)


def test_the_guilty_batch_is_told(caplog):
    guard = Guard(lambda number, process: [f"batch {number} of {process}"], scaled=False)
    guard.read([losses(1, [1, 1], [1, 1]), losses(2, [1, 1], [1, math.nan]), losses(3, [1, 1], [1, 1], norm=math.inf)])
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "step 2: skipped, its loss is not finite; sequences batch 3 of 1"
    assert messages[1].startswith("step 3: skipped, its gradient norm is not finite; sequences batch 4 of 0, batch 5")
    assert (guard.skipped, guard.in_a_row) == (2, 2)
    guard.read([losses(4, [1, 1], [1, 1])])
    assert (guard.skipped, guard.in_a_row) == (2, 0)


def test_overflow_under_loss_scaling_is_no_bad_step():
    guard = Guard(lambda number, process: [], scaled=True)
    guard.read([losses(1, [1.0], norm=math.inf)])
    assert guard.skipped == 0
    guard.read([losses(2, [math.nan], norm=math.inf)])
    assert guard.skipped == 1


def test_overflows_without_end_are_bad_steps():
    guard = Guard(lambda number, process: [], scaled=True)
    guard.read([losses(step, [1.0], norm=math.inf) for step in range(1, MOST_OVERFLOWS + 1)])
    assert guard.skipped == 0
    resumed = Guard(lambda number, process: [], scaled=True)
    resumed.load_state(guard.state())
    resumed.read([losses(step, [1.0], norm=math.nan) for step in range(MOST_OVERFLOWS + 1, MOST_OVERFLOWS + 4)])
    assert (resumed.skipped, resumed.in_a_row) == (3, 3)
    resumed.read([losses(54, [1.0]), losses(55, [1.0], norm=math.inf)])
    assert (resumed.skipped, resumed.in_a_row) == (3, 0)


def test_a_file_in_the_place_of_the_diagnosis_is_told(tmp_path):
    guard = Guard(lambda number, process: [], scaled=False)
    guard.read([losses(1, [math.nan])])
    (tmp_path / "diagnosis").touch()
    told = write_diagnosis(tmp_path, guard, 0, lambda folder, step: pytest.fail("no folder"))
    assert told.startswith(f"there is no diagnosis: cannot create {tmp_path / 'diagnosis'}")


def test_a_reading_keeps_each_batch_apart():
    reading = Reading(("loss", "part"), batches=2)
    for value in range(1, 5):
        reading.add_batch({"loss": torch.tensor(float(value)), "part": torch.tensor(10.0 * value)})
    for norm in (0.5, 0.25):
        reading.add_step(torch.tensor(norm), 0.1)
    assert reading.collect(Accelerator(cpu=True), last_step=7) == [
        StepLosses(6, {"loss": 1.5, "part": 15}, [[1, 2]], 0.5, 0.1),
        StepLosses(7, {"loss": 3.5, "part": 35}, [[3, 4]], 0.25, 0.1),
    ]


class TestLossFile:
    def test_a_vanished_folder_is_one_warning(self, tmp_path, caplog):
        file = LossFile(tmp_path / "gone" / "losses.csv")
        for step in (1, 2):
            file.append([{"step": step, "loss": 1.0}])
        assert [record.levelno for record in caplog.records] == [logging.WARNING]

    def test_a_full_disk_leaves_a_gap_and_no_half_line(self, tmp_path):
        file = LossFile(tmp_path / "losses.csv")
        file.append([{"step": 1, "loss": 1.0}])
        with pytest.MonkeyPatch.context() as patch:
            disk.at_call(patch, 1, disk.full)
            file.append([{"step": 2, "loss": 1.0}])
        file.append([{"step": 3, "loss": 1.0}])
        assert file.path.read_text().splitlines() == ["step,loss", "1,1.0", "3,1.0"]

    def test_a_cut_line_is_forgotten(self, tmp_path):
        file = LossFile(tmp_path / "losses.csv")
        file.path.write_text("step,loss\n1,1.0\n2,1.0\n3,1.")
        file.truncate(1)
        assert file.path.read_text() == "step,loss\n1,1.0\n"
        file.path.write_text("step,lo")
        file.truncate(1)
        file.append([{"step": 1, "loss": 1.0}])
        assert file.path.read_text().splitlines() == ["step,loss", "1,1.0"]
