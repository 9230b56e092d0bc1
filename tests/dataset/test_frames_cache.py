"""The cache of decoded frames: whole, shared, and never of other frames or settings."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from dataset import pack
from dataset.frames.cache import cache as frames_cache
from dataset.frames.cache.cache import open_cache
from dataset.frames.cache.encoding import Encoder
from dataset.frames.complete import complete_config
from dataset.frames.reader import open_frames
from tests.dataset.archive import START, STEP, Archive
from tests.tiny import ROOT
from utils.errors import InputError

DAYS = {0: range(4), 1: range(288, 292), 2: range(576, 580)}  # numbers of frames


@pytest.fixture
def three_days(tmp_path) -> Archive:
    """Four frames of 40 x 70 pixels a day, all for training."""
    split = {"valid_from": "2023-06-01", "test_from": "2023-06-02"}
    archive = Archive(tmp_path).configure(split=split, missing=255, thresholds=[100])
    for numbers in DAYS.values():
        archive.add(numbers, shape=(40, 70))
    return archive


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Numbers of the frames that were decoded."""
    numbers, encode = [], Encoder.encode

    def noting(self, time):
        numbers.append((time - START) // STEP)
        return encode(self, time)

    monkeypatch.setattr(Encoder, "encode", noting)
    return numbers


def assert_right(archive: Archive) -> None:
    dataset = archive.open(img_size=(40, 70), stride=1)
    stored = [np.stack([archive.frames[number] for number in numbers]) for numbers in DAYS.values()]
    for frames, expected in zip(dataset, stored, strict=True):
        valid = np.where(expected == 255, np.nan, expected.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(frames[:, 0], valid)


def test_the_cache_spares_decoding_and_makes_days_with_new_or_changed_frames_anew(three_days, read):
    assert_right(three_days)
    assert sorted(read) == [number for numbers in DAYS.values() for number in numbers]
    read.clear()
    three_days.store(289, three_days.frames[289] // 2)
    os.utime(three_days.path(289), ns=(0, 12345))
    three_days.add([700], shape=(40, 70))
    assert_right(three_days)
    assert sorted(read) == [*DAYS[1], *DAYS[2], 700]
    read.clear()
    three_days.path(700).unlink()
    assert_right(three_days)
    assert read == []
    three_days.configure(**three_days.settings | {"range": [0, 200]}).open(img_size=(40, 70))
    assert len(read) == 12


def test_a_killed_packing_continues_with_the_days_that_it_lacked(three_days, monkeypatch, read):
    class Killed(BaseException):
        pass

    write_day = frames_cache.write_day

    def killed_at_the_third(path, *content):
        if len(list(path.parent.iterdir())) == 2:
            raise Killed
        write_day(path, *content)

    with monkeypatch.context() as patch:
        patch.setattr(frames_cache, "write_day", killed_at_the_third)
        with pytest.raises(Killed):
            three_days.open(img_size=(40, 70))
    read.clear()
    assert_right(three_days)
    assert len(read) == 4


@pytest.mark.parametrize("damage", [lambda content: content[:-5], lambda content: b"", lambda content: b"x" * 1000])
def test_a_damaged_day_is_made_anew(three_days, read, damage):
    assert_right(three_days)
    file = next(three_days.folder.glob("packed/*/20230502.safetensors"))
    file.write_bytes(damage(file.read_bytes()))
    read.clear()
    assert_right(three_days)
    assert sorted(read) == [*DAYS[1]]


def test_a_day_damaged_while_it_is_in_use_is_a_sentence(three_days):
    dataset = three_days.open(img_size=(40, 70))
    for file in three_days.folder.glob("packed/*/*"):
        file.write_bytes(
            bytes(byte ^ 255 if 10000 < place < 12000 else byte for place, byte in enumerate(file.read_bytes()))
        )
    with pytest.raises(InputError, match=r"Cannot read the cache .*safetensors .*delete it and start again"):
        dataset[0]


@pytest.mark.slow
def test_processes_make_the_same_cache_at_once(three_days):
    command = (
        "import sys; from dataset.frames.reader import open_frames; open_frames('train', sys.argv[1], (40, 70), 4)"
    )
    makers = [subprocess.Popen([sys.executable, "-c", command, three_days.folder], cwd=ROOT) for _ in range(3)]
    assert [maker.wait() for maker in makers] == [0, 0, 0]
    assert_right(three_days)
    files = {file: file.read_bytes() for file in three_days.folder.glob("packed/*/*")}
    assert [file.name for file in sorted(files)] == [f"2023050{day}.safetensors" for day in (1, 2, 3)]
    shutil.rmtree(three_days.folder / "packed")
    three_days.open(img_size=(40, 70))
    assert {file: file.read_bytes() for file in files} == files


def test_valid_and_wet_pixels_of_blocks_are_counted(three_days):
    cache = three_days.open(img_size=(40, 70)).cache
    frames = np.stack([three_days.frames[number] for number in DAYS[0]])
    blocks = frames[:, 32:40, 64:70]
    counts = cache.counts(np.arange(4))[:, :, 1, 2]
    np.testing.assert_array_equal(counts[:, 0], (blocks != 255).sum((1, 2)))
    np.testing.assert_array_equal(counts[:, 1], ((blocks != 255) & (blocks >= 100)).sum((1, 2)))


def test_settings_and_cache_may_lie_outside_an_archive_that_is_read_only(archive, tmp_path):
    expected = archive.open()[3]
    shutil.rmtree(archive.folder / "packed")
    file = (archive.folder / "frames.yaml").rename(tmp_path / "mine.yaml")
    file.write_text(yaml.safe_dump(archive.settings | {"folder": "radar"}))
    before = set(archive.folder.rglob("*"))
    assert torch.equal(open_frames("train", file, (6, 8), 4, packed_path=tmp_path / "fast")[3], expected)
    assert set(archive.folder.rglob("*")) == before
    (archive.folder / "packed").write_text("a file stands where the folder should")
    with pytest.raises(InputError, match=r"Cannot use the cache .* with --packed_path"):
        open_frames("train", file, (6, 8), 4)


def test_a_cache_that_was_made_anew_is_not_read_under_the_old_settings(archive):
    dataset = archive.open()
    archive.configure(range=[0, 200]).open()
    with pytest.raises(InputError, match="made anew meanwhile"):
        dataset[0]


def test_workers_and_copies_read_the_same(archive):
    dataset = archive.open(img_size=(8, 8))
    alone = [dataset[index] for index in range(len(dataset))]
    for frames, other in zip(alone, DataLoader(dataset, batch_size=None, num_workers=2), strict=True):
        np.testing.assert_array_equal(frames, other)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[1], alone[1])


def test_the_command_line_packs_frames_with_processes_and_continues(three_days, read):
    pack.main(["--dataset", "frames", "--data_path", str(three_days.folder), "--num_workers", "2"])
    assert len(list(three_days.folder.glob("packed/*_full/*.safetensors"))) == 3
    assert read == []  # but in the processes
    assert open_cache(complete_config(three_days.folder), None).read(np.arange(12)).shape == (12, 1, 40, 70)
    pack.main(["--dataset", "frames", "--data_path", str(three_days.folder), "--img_size", "20", "--num_workers", "0"])
    assert len(read) == 12
    with pytest.raises(InputError, match="takes one or two numbers, not 1 2 3"):
        pack.main(["--dataset", "frames", "--data_path", str(three_days.folder), "--img_size", "1", "2", "3"])
