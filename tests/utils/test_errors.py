"""What ends a command line, and how."""

import numpy as np
import pytest
import torch

from dataset.hdf5 import AccessError
from utils.errors import InputError, exit_on_input_error


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InputError("no such file: a.h5."), 2, "error: no such file: a.h5.\n"),
        (InputError("Caught in worker 0\nutils.errors.InputError: a.h5 is damaged."), 2, "error: a.h5 is damaged.\n"),
        (AccessError("Caught in worker 0\ndataset.hdf5.AccessError: cannot read a."), 2, "error: cannot read a.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_mistake_and_an_interruption_end_in_one_sentence(raised, status, said, capsys):
    with pytest.raises(SystemExit) as end, exit_on_input_error():
        raise raised
    assert end.value.code == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "ask",
    [lambda: torch.empty(2**60), lambda: torch.empty(2**62, 2**30), lambda: np.empty(2**50)],
    ids=["of PyTorch", "beyond counting", "of NumPy"],
)
def test_a_lack_of_memory_is_told_in_one_sentence(ask, capsys):
    with pytest.raises(SystemExit, match="2"), exit_on_input_error():
        ask()
    error = capsys.readouterr().err
    assert error.startswith("error: this needs more memory than there is; ask for smaller")
    assert error.count("\n") == 1


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ValueError, match="defect"), exit_on_input_error():
        raise ValueError("defect")
