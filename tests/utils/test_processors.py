"""Processes that load data fit the machine."""

import warnings

import pytest
from torch.utils.data import DataLoader

from utils.errors import InputError
from utils.processors import loading_processes, processors


def test_no_more_processes_load_data_than_the_machine_has_processors():
    assert loading_processes(0) == 0
    assert loading_processes(1) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of more
        DataLoader([0], num_workers=loading_processes(10_000))
    assert loading_processes(10_000) == processors()


def test_a_negative_number_of_processes_is_refused():
    with pytest.raises(InputError, match="num_workers must be 0 or more, not -1"):
        loading_processes(-1)
