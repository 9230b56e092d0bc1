"""Which process sees which sequence, and with which seed."""

import itertools

import pytest
import torch

from dataset import build_dataset
from diffcast.loading import (
    EvaluationBatches,
    TrainingBatches,
    derived_seed,
    generators,
    load_batches,
    spread,
    turned,
)
from tests.tiny import InMemory


def sequences(number: int) -> InMemory:
    return InMemory(torch.zeros(number, 1, 1, 1, 1))


class TestTrainingBatches:
    def test_two_processes_with_half_the_batch_see_what_one_sees(self):
        one = TrainingBatches(sequences(23), 4, seed=1, start=0, stop=12)
        two = [TrainingBatches(sequences(23), 2, seed=1, start=0, stop=12, rank=rank, processes=2) for rank in (0, 1)]
        assert list(one) == [first + second for first, second in zip(*two, strict=True)]

    @pytest.mark.parametrize("start", [3, 5, 7])
    def test_a_resumed_stream_goes_on(self, start):
        whole = list(TrainingBatches(sequences(23), 4, seed=1, start=0, stop=12))
        rest = TrainingBatches(sequences(23), 4, seed=1, start=start, stop=12)
        assert list(rest) == whole[start:]
        assert len(rest) == 12 - start

    def test_every_epoch_has_another_order_of_the_same_sequences(self):
        orders = [
            list(itertools.chain(*TrainingBatches(sequences(20), 4, seed, start=first, stop=first + 5)))
            for seed in (1, 2)
            for first in (0, 5, 10)
        ]
        assert all(sorted(order) == list(range(20)) for order in orders)
        assert len({tuple(order) for order in orders}) == 6

    def test_a_sequence_occurs_at_most_once_an_epoch_but_none_is_left_out_for_ever(self):
        batches = list(TrainingBatches(sequences(23), 4, seed=1, start=0, stop=50))
        for first in range(0, 50, 5):
            epoch = list(itertools.chain(*batches[first : first + 5]))
            assert len(set(epoch)) == 20
        assert set(itertools.chain(*batches)) == set(range(23))


class TestEvaluationBatches:
    @pytest.mark.parametrize("processes", [1, 2, 3, 5])
    def test_batches_are_the_same_for_any_number_of_processes(self, processes):
        sequences = [i * i for i in range(10)]
        shares = [EvaluationBatches(sequences, 3, rank, processes) for rank in range(processes)]
        assert sorted(itertools.chain(*shares)) == [[0, 1, 4], [9, 16, 25], [36, 49, 64], [81]]
        assert sum(map(len, shares)) == 4


class TestSeeds:
    def test_different_keys_give_different_seeds(self):
        keys = [(a, b, c) for a in range(3) for b in range(3) for c in range(100)]
        seeds = {derived_seed(*key) for key in keys}
        assert len(seeds) == len(keys)
        assert all(0 <= seed < 2**63 for seed in seeds)

    def test_a_seed_is_the_same_everywhere(self):
        assert derived_seed(0, 1, 2) == 1535930435702422785

    def test_a_generator_depends_on_its_own_key_alone(self):
        def draws(*keys):
            return [torch.randn(3, generator=one).tolist() for one in generators(torch.device("cpu"), *keys)]

        batch = draws(5, 1, torch.tensor([10, 11]))
        assert batch == [*draws(5, 1, [10]), *draws(5, 1, [11])]
        assert batch[0] not in (batch[1], *draws(5, 2, [10]), *draws(6, 1, [10]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_numbers_its_sequences(workers):
    dataset = InMemory(torch.arange(6.0).view(6, 1, 1, 1, 1).expand(6, 2, 1, 4, 4))
    loader = load_batches(dataset, EvaluationBatches([5, 1, 3], 2), workers, torch.device("cpu"))
    loaded = [(indices.tolist(), batch[:, 0, 0, 0, 0].tolist(), batch.shape[1:]) for indices, batch in loader]
    assert loaded == [([5, 1], [5.0, 1.0], (2, 1, 4, 4)), ([3], [3.0], (2, 1, 4, 4))]


def test_a_process_without_a_share_has_an_empty_loader():
    assert (
        list(
            load_batches(
                InMemory(torch.ones(1)), EvaluationBatches([0], 1, rank=1, processes=2), 4, torch.device("cpu")
            )
        )
        == []
    )


@pytest.mark.parametrize(
    ("total", "wanted", "indices"),
    [(5, None, [0, 1, 2, 3, 4]), (3, 9, [0, 1, 2]), (9, 3, [0, 3, 6]), (10, 4, [0, 2, 5, 7]), (4, 0, []), (0, 2, [])],
)
def test_indices_are_spread_evenly(total, wanted, indices):
    assert spread(total, wanted) == indices


@pytest.mark.parametrize(("height", "width", "symmetries"), [(4, 4, 8), (4, 6, 4)])
def test_sequences_are_turned_as_wholes_into_each_of_their_symmetries_alike_often(height, width, symmetries):
    sequence = torch.arange(3.0 * height * width).view(1, 3, 1, height, width)
    draws = [torch.Generator().manual_seed(seed) for seed in range(800)]
    found = turned(sequence.expand(800, -1, -1, -1, -1), draws)
    shapes, counts = found.unique(dim=0, return_counts=True)
    assert len(shapes) == symmetries
    assert counts.min() > 0.7 * 800 / symmetries
    assert all(torch.equal(turn[1] - turn[0], torch.full((1, height, width), height * width)) for turn in shapes)
    assert any(torch.equal(turn, sequence[0]) for turn in shapes)
    assert any(torch.equal(turn, sequence[0].rot90(1 if height == width else 2, (-2, -1))) for turn in shapes)


def test_bytes_become_the_frames_that_the_data_set_gives(storm_folder):
    dataset = build_dataset("sevir", "train", storm_folder, 16)
    assert dataset.stored(3).dtype == torch.uint8
    ((indices, frames),) = load_batches(dataset, [[3, 7]], 0, torch.device("cpu"))
    assert torch.equal(frames, torch.stack([dataset[index] for index in indices.tolist()]))
