"""The cache of decoded frames: whole, shared, and never of other frames or settings."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from dataset import cache
from dataset.frames import cache as frames_cache
from dataset.frames.encoding import Encoder
from dataset.frames.reader import open_frames
from tests.dataset.archive import START, STEP
from utils.errors import InputError


def test_the_cache_spares_decoding_and_takes_in_what_is_new_or_changed(archive, monkeypatch):
    read, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, time: read.append((time - START) // STEP) or encode(self, time))
    archive.open()
    assert sorted(read) == list(range(48))
    archive.add([48, 60])
    archive.store(2, archive.frames[2] + 1)
    os.utime(archive.path(2), ns=(0, 12345))
    read.clear()
    assert torch.equal(archive.open(stride=1)[2][0, 0], torch.from_numpy(archive.frames[2]).float() / 255)
    assert sorted(read) == [2, 48, 60]
    read.clear()
    archive.open("valid")
    assert read == []
    archive.configure(range=[0, 200]).open()
    assert sorted(set(read)) == sorted(archive.frames)


@pytest.mark.parametrize("batches", [0, 1, 3])
@pytest.mark.parametrize("broken", ["levels", "records"])
def test_a_killed_packing_continues_where_it_stopped(archive, monkeypatch, batches, broken):
    class Killed(BaseException):
        pass

    read, encode = [], Encoder.encode

    def encode_until_killed(self, time):
        if (time - START) // STEP == 10 * batches + 3:
            raise Killed
        return encode(self, time)

    monkeypatch.setattr(frames_cache, "BATCH", 10)
    monkeypatch.setattr(cache, "BATCH", 10)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", encode_until_killed)
        with pytest.raises(Killed):
            archive.open()
    (file,) = archive.folder.glob(f"packed/*/{broken}.bin")
    with file.open("ab") as stream:
        stream.write(b"half a row")
    monkeypatch.setattr(Encoder, "encode", lambda self, time: read.append(time) or encode(self, time))
    dataset = archive.open("test", stride=1)
    assert len(read) == 48 - 10 * batches
    for index in range(len(dataset)):
        assert torch.equal(dataset[index][0, 0], torch.from_numpy(archive.frames[36 + index]).float() / 255)


def test_rows_lost_from_the_cache_are_decoded_again(archive):
    expected = archive.open("test")[0]
    (file,) = archive.folder.glob("packed/*/levels.bin")
    os.truncate(file, file.stat().st_size - 5)
    dataset = archive.open("test", stride=1)
    assert torch.equal(dataset[0], expected)
    assert torch.equal(dataset[8][3, 0], torch.from_numpy(archive.frames[47]).float() / 255)


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
