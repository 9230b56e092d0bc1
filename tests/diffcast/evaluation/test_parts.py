"""Parts of an evaluation: whole or not there, kept only for the same evaluation, damaged ones named."""

import numpy as np
import pytest
import torch

from diffcast.evaluation.parts import MOST_BATCHES, Part, Parts, digest_of, split_into_parts
from utils.errors import InputError


def part(number):
    """Two sequences whose CRPS sums are `number` and `number + 1` over 4 pixels of 2 lead times.

    In the first, it rains on one of the four; each count is one more at the second threshold.
    """
    crps = torch.tensor([[0.0, number], [number + 1, 0.0]], dtype=torch.float64)
    pixels = torch.full((2, 2), 2)
    table = torch.tensor([[1, 0, 1, 2], [0, 0, 3, 1]])  # hits, misses, false alarms, correct negatives
    counts = torch.stack([table, table + 1], dim=-1)[..., None]  # (n, 4, K, T)
    terms = {"ensemble/crps": crps, "ensemble/pixels": pixels, "categorical/counts": counts}
    state = {name: values.sum(dim=0) for name, values in terms.items()}
    return Part(
        [number, number + 10],
        [f"a{number}+0", f"b{number}+5"],
        [f"a{number}", f"b{number}"],
        {"model": state},
        {"model": terms},
    )


@pytest.fixture
def parts(tmp_path):
    parts = Parts(tmp_path / "sequences", digest_of({"seed": 0}))
    parts.prepare()
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
    index, crps, rain = parts.cases(3, "model")
    assert index.tolist() == [0, 10, 1, 11, 2, 12]
    np.testing.assert_allclose(crps, np.array([0, 1, 1, 2, 2, 3]) / 4)
    assert rain.tolist() == [0.25, 0] * 3


def test_what_a_killed_process_was_writing_goes(parts):
    (parts.folder / ".part-00007.123.npz").touch()
    parts.prepare()
    assert [parts.done(number) for number in range(4)] == [True] * 3 + [False]
    assert len(list(parts.folder.iterdir())) == 3


@pytest.mark.parametrize("old", [False, True], ids=["of another seed", "of an earlier version"])
def test_parts_of_another_evaluation_are_never_counted(parts, old):
    path = parts.folder / "part-00001.npz"
    if old:
        with np.load(path) as file:
            np.savez(path, **{name: file[name] for name in file.files if name != "evaluation"})
    content = path.read_bytes()
    reader = Parts(parts.folder, digest_of({"seed": 0 if old else 1}))
    for ask in (lambda: reader.done(1), lambda: reader.total(3, "model"), lambda: reader.cases(3, "model")):
        with pytest.raises(InputError, match=r"part-0000\d.npz belongs to another evaluation; move it away"):
            ask()
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_prepared_is_named(tmp_path):
    (tmp_path / "sequences").touch()
    with pytest.raises(InputError, match=r"cannot create .*sequences for the scores"):
        Parts(tmp_path / "sequences", digest_of({})).prepare()


def test_a_sequence_without_a_valid_pixel_has_no_crps(parts):
    dry = part(3)
    dry.terms["model"]["ensemble/pixels"][1] = 0
    dry.terms["model"]["ensemble/crps"][1] = 0
    parts.save(3, dry)
    assert np.isnan(parts.cases(4, "model")[1]).tolist() == [False] * 7 + [True]


def test_a_damaged_part_is_done_again_or_named(parts, caplog):
    path = parts.folder / "part-00001.npz"
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 3, len(content) // 3 + 40):
        content[position] ^= 255
    path.write_bytes(content)
    assert not parts.done(1)
    assert "part-00001.npz is damaged" in caplog.text
    path.write_bytes(content[:-30])
    with pytest.raises(InputError, match=r"part-00001.npz is damaged .*; delete it"):
        parts.total(3, "model")
    path.unlink()
    with pytest.raises(InputError, match=r"part-00001.npz is missing"):
        parts.total(3, "model")
