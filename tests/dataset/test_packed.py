import logging
import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset import build_dataset
from dataset.sevir import packed
from dataset.sevir.packed import Packed, main, pack
from dataset.sevir.reader import Sevir
from utils import files
from utils.errors import InputError

SIZE = 8


def build(sevir, split="train", **options):
    return build_dataset("sevir", split, sevir.path, **{"img_size": SIZE, **options})


def command(sevir, *more):
    main(["--data_path", str(sevir.path), "--img_size", str(SIZE), "--num_workers", "0", *more])


def damage(path, position=-5):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("img_size", [8, 16, 24])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_packed_items_equal_direct_ones_bit_for_bit(sevir, img_size, split):
    pack("sevir", sevir.path, img_size)
    cached, direct = build(sevir, split, img_size=img_size), Sevir(sevir.path, split, img_size)
    assert isinstance(cached, Packed)
    assert len(cached) == len(direct)
    assert cached.skipped == direct.skipped
    for index in range(len(direct)):
        assert torch.equal(cached[index], direct[index])
        assert cached.sequence_id(index) == direct.sequence_id(index)


def test_workers_read_the_same_as_the_parent(sevir):
    pack("sevir", sevir.path, SIZE, workers=2)
    dataset = build(sevir)
    alone = torch.stack(list(DataLoader(dataset, batch_size=None)))
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert torch.equal(torch.stack(list(loader)), alone)


def test_a_pickled_dataset_leaves_the_cache_behind(sevir):
    pack("sevir", sevir.path, SIZE)
    dataset = build(sevir)
    expected = dataset[3]
    content = pickle.dumps(dataset)
    assert len(content) < 49 * SIZE * SIZE
    assert torch.equal(pickle.loads(content)[3], expected)


def test_the_cache_is_found_by_default_and_elsewhere_when_told(sevir, tmp_path, caplog):
    assert isinstance(build(sevir), Sevir)
    command(sevir, "--out", str(tmp_path / "fast"))
    assert isinstance(build(sevir), Sevir)
    with caplog.at_level(logging.INFO):
        assert isinstance(build(sevir, packed_path=tmp_path / "fast"), Packed)
    assert "using the packed cache" in caplog.text
    command(sevir)
    assert isinstance(build(sevir), Packed)


@pytest.mark.parametrize("options", [{"img_size": 4}, {"split_scheme": "benchmark"}])
def test_other_settings_do_not_use_the_cache(sevir, tmp_path, options):
    pack("sevir", sevir.path, SIZE, packed_path=tmp_path)
    with pytest.raises(InputError, match="no packed cache"):
        build(sevir, packed_path=tmp_path, **options)


def other_catalog(sevir, folder):
    sevir.row("A")["time_utc"] = "2018-05-02 12:00:00"
    sevir.write_catalog()


def other_file(sevir, folder):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["A", "B"], compression="gzip")


def short_cache(sevir, folder):
    path = folder / "train.npy"
    path.write_bytes(path.read_bytes()[:-1])


def other_shape(sevir, folder):
    np.save(folder / "train.npy", np.zeros((2, 49, 4, 4), np.uint8))


def broken_index(sevir, folder):
    (folder / "index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (other_catalog, "catalog_sha256"),
        (other_file, "SEVIR_VIL_2018.h5 has changed"),
        (short_cache, "train.npy"),
        (other_shape, "train.npy is damaged"),
        (broken_index, "format is None"),
    ],
)
def test_a_cache_that_does_not_fit_is_ignored_with_a_reason_and_replaced(sevir, spoil, reason, caplog):
    spoil(sevir, pack("sevir", sevir.path, SIZE))
    assert isinstance(build(sevir), Sevir)
    assert reason in caplog.text
    pack("sevir", sevir.path, SIZE)
    assert isinstance(build(sevir), Packed)
    assert torch.equal(build(sevir)[0], Sevir(sevir.path, "train", SIZE)[0])


def test_a_file_downloaded_after_packing_makes_the_cache_stale(sevir):
    path = sevir.file("C")
    away = path.rename(path.with_suffix(".away"))
    folder = pack("sevir", sevir.path, SIZE)
    assert {path.name for path in folder.iterdir()} == {"index.json", "train.npy"}
    away.rename(path)
    assert isinstance(build(sevir, "valid"), Sevir)
    pack("sevir", sevir.path, SIZE)
    assert isinstance(build(sevir, "valid"), Packed)


def test_the_cache_serves_when_its_source_files_are_gone(sevir):
    expected = build(sevir)[3]
    pack("sevir", sevir.path, SIZE)
    sevir.file("A").unlink()
    assert torch.equal(build(sevir)[3], expected)


class Killed(BaseException):
    pass


def record_reads(monkeypatch, kill_at=None) -> list[str]:
    """The ids of the events that packing reads from now on; it is killed at the event number `kill_at`."""
    read, original = [], packed._WholeEvents.__getitem__

    def getitem(self, event):
        if len(read) == kill_at:
            raise Killed
        read.append(self.source.event_ids[event])
        return original(self, event)

    monkeypatch.setattr(packed._WholeEvents, "__getitem__", getitem)
    return read


def pack_until_killed(sevir, monkeypatch, kill_at) -> list[str]:
    with monkeypatch.context() as patch:
        read = record_reads(patch, kill_at)
        with pytest.raises(Killed):
            pack("sevir", sevir.path, SIZE)
    return read


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_killed_run_leaves_no_cache_and_continues_where_it_stopped(sevir, monkeypatch, number):
    before = pack_until_killed(sevir, monkeypatch, number)
    assert isinstance(build(sevir), Sevir)
    after = record_reads(monkeypatch)
    folder = pack("sevir", sevir.path, SIZE)
    assert before + after == ["A", "B", "C", "D"]
    assert sorted(os.listdir(folder)) == ["index.json", "test.npy", "train.npy", "valid.npy"]
    command(sevir, "--verify")


def test_bytes_lost_before_a_run_continues_are_noticed_and_rewritten(sevir, monkeypatch):
    pack_until_killed(sevir, monkeypatch, 3)
    damage(sevir.path / "packed" / f"sevir_official_{SIZE}.part" / "train.npy")
    with pytest.raises(InputError, match="start again"):
        pack("sevir", sevir.path, SIZE)
    assert isinstance(build(sevir), Sevir)
    command(sevir, "--verify")


def test_an_unfinished_run_of_another_source_is_not_continued(sevir, monkeypatch):
    pack_until_killed(sevir, monkeypatch, 1)
    other_file(sevir, None)
    read = record_reads(monkeypatch)
    pack("sevir", sevir.path, SIZE)
    assert read == ["A", "B", "C", "D"]


def test_verify_finds_a_flipped_bit_in_the_cache(sevir):
    folder = pack("sevir", sevir.path, SIZE)
    command(sevir, "--verify")
    damage(folder / "valid.npy")
    with pytest.raises(InputError, match=r"1 events .* the first is C"):
        command(sevir, "--verify")


def test_verify_finds_a_source_that_changed_in_place(sevir):
    pack("sevir", sevir.path, SIZE)
    with h5py.File(sevir.file("D"), "r+") as file:
        file["vil"][-1, 3, 3] += 9
    with pytest.raises(InputError, match=r"1 events .* the first is D"):
        command(sevir, "--verify")


def test_two_runs_do_not_pack_into_one_folder_at_once(sevir, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.1)
    (sevir.path / "packed").mkdir()
    with files.locked(sevir.path / "packed", ""), pytest.raises(InputError, match="another run is at work in"):
        pack("sevir", sevir.path, SIZE)
    assert not list((sevir.path / "packed").glob("sevir*"))


def test_an_unwritable_place_is_an_error_that_points_to_out(sevir):
    (sevir.path / "packed").write_text("a file stands where the folder should")
    with pytest.raises(InputError, match="--out"):
        command(sevir)


def test_synthetic_data_is_generated_where_there_is_none(sevir, monkeypatch):
    calls = []
    monkeypatch.setattr("dataset.synthetic.writer.ensure", calls.append)
    dataset = build_dataset("synthetic", "train", sevir.path, SIZE)
    assert calls == [sevir.path]
    assert torch.equal(dataset[0], Sevir(sevir.path, "train", SIZE)[0])
