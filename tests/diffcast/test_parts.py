"""Parts of an evaluation: whole or not there, kept only for the same evaluation, damaged ones named."""

import numpy as np
import pytest
import torch

from diffcast.parts import MOST_BATCHES, Part, Parts, split_into_parts
from utils.errors import InputError


def part(number):
    """Two sequences whose CRPS sums are `number` and `number + 1` over 4 pixels of 2 lead times."""
    crps = torch.tensor([[0.0, number], [number + 1, 0.0]], dtype=torch.float64)
    pixels = torch.full((2, 2), 2)
    terms = {"ensemble/crps": crps, "ensemble/pixels": pixels}
    state = {name: values.sum(dim=0) for name, values in terms.items()}
    return Part([number, number + 10], [f"a{number}", f"b{number}"], {"model": state}, {"model": terms})


@pytest.fixture
def parts(tmp_path):
    parts = Parts(tmp_path / "sequences")
    parts.prepare({"seed": 0}, finished=False)
    for number in (0, 1, 2):
        parts.save(number, part(number))
    return parts


@pytest.mark.parametrize("batches", [0, 1, 63, 65, 5000])
def test_parts_hold_every_batch_in_order(batches):
    work = [[number] for number in range(batches)]
    split = split_into_parts(work)
    assert [batch for some in split for batch in some] == work
    assert all(len(some) <= MOST_BATCHES for some in split)


def test_states_add_up_and_sequences_keep_their_terms(parts):
    total = parts.total(3, "model")
    assert total["ensemble/crps"].tolist() == [1 + 2 + 3, 0 + 1 + 2]
    assert total["ensemble/pixels"].dtype == torch.int64
    index, crps = parts.crps(3, "model")
    assert index == [0, 10, 1, 11, 2, 12]
    np.testing.assert_allclose(crps, np.array([0, 1, 1, 2, 2, 3]) / 4)


@pytest.mark.parametrize(
    ("identity", "finished", "kept"),
    [({"seed": 0}, False, True), ({"seed": 1}, False, False), ({"seed": 0}, True, False)],
    ids=["interrupted", "of another evaluation", "finished"],
)
def test_only_an_interrupted_evaluation_goes_on(parts, identity, finished, kept):
    parts.prepare(identity, finished)
    assert [parts.done(number) for number in range(4)] == [kept] * 3 + [False]


def test_a_damaged_part_is_named(parts):
    path = parts.folder / "part-00001.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"part-00001.npz is damaged .*; delete it"):
        parts.total(3, "model")
    path.unlink()
    with pytest.raises(InputError, match=r"part-00001.npz is missing"):
        parts.total(3, "model")
