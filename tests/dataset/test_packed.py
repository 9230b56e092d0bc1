import logging
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import h5py
import pytest
import torch
from torch.utils.data import DataLoader

from dataset import build_dataset, cache
from dataset.pack import main
from dataset.sevir import packed
from dataset.sevir.packed import Packed, pack
from dataset.sevir.reader import Sevir
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


@pytest.mark.parametrize(("split", "img_size"), [("train", 8), ("valid", 16), ("test", 24)])
def test_packed_items_equal_direct_ones_bit_for_bit(sevir, split, img_size):
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


def test_another_size_does_not_use_the_cache(sevir, tmp_path):
    pack("sevir", sevir.path, SIZE, packed_path=tmp_path)
    with pytest.raises(InputError, match="no packed cache"):
        build(sevir, packed_path=tmp_path, img_size=4)


def test_a_cache_serves_every_split_scheme_and_changes_of_the_catalogue(sevir):
    pack("sevir", sevir.path, SIZE)
    assert isinstance(build(sevir, "valid", split_scheme="benchmark"), Packed)
    sevir.row("A")["time_utc"] = "2019-03-02 12:00:00"
    sevir.write_catalog()
    assert isinstance(build(sevir, "valid"), Packed)
    assert build(sevir, "valid").event_ids == ["A", "C"]


def other_file(sevir, folder):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["A", "B"], compression="gzip")


def other_position(sevir, folder):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["B", "A"])
    sevir.row("A")["file_index"], sevir.row("B")["file_index"] = 1, 0
    sevir.write_catalog()


def short_cache(sevir, folder):
    path = folder / "events.bin"
    path.write_bytes(path.read_bytes()[: 49 * SIZE**2 + 9])


def broken_index(sevir, folder):
    (folder / "index.json").write_text("{")


@pytest.mark.parametrize("spoil", [other_file, other_position, short_cache, broken_index])
def test_a_cache_that_does_not_fit_is_ignored_with_a_reason_and_completed(sevir, spoil, caplog):
    spoil(sevir, pack("sevir", sevir.path, SIZE))
    assert isinstance(build(sevir), Sevir)
    assert "events of the train split, such as" in caplog.text
    pack("sevir", sevir.path, SIZE)
    assert isinstance(build(sevir), Packed)
    for cached, direct in zip(build(sevir), Sevir(sevir.path, "train", SIZE), strict=True):
        assert torch.equal(cached, direct)


def test_events_that_cannot_be_used_are_skipped_as_by_the_direct_reader(sevir):
    sevir.row("A")["file_index"] = "7"
    sevir.write_catalog()
    pack("sevir", sevir.path, SIZE)
    dataset = build(sevir)
    assert isinstance(dataset, Packed)
    assert dataset.skipped == Sevir(sevir.path, "train", SIZE).skipped == {"file_index is out of range": 1}


def test_a_file_downloaded_after_packing_is_added(sevir, monkeypatch):
    path = sevir.file("C")
    away = path.rename(path.with_suffix(".away"))
    pack("sevir", sevir.path, SIZE)
    away.rename(path)
    assert isinstance(build(sevir, "valid"), Sevir)
    read = record_reads(monkeypatch)
    pack("sevir", sevir.path, SIZE)
    assert read == ["C", "D"]
    assert isinstance(build(sevir, "valid"), Packed)


def test_the_cache_serves_when_its_source_files_are_gone(sevir):
    expected = build(sevir)[3]
    pack("sevir", sevir.path, SIZE)
    sevir.file("A").unlink()
    assert torch.equal(build(sevir)[3], expected)


def test_a_cache_that_was_made_anew_in_another_order_is_an_error(sevir):
    folder = pack("sevir", sevir.path, SIZE)
    dataset = build(sevir)
    shutil.rmtree(folder)
    catalog = sevir.path / "CATALOG.csv"
    header, first, *others = catalog.read_text().splitlines()
    catalog.write_text("\n".join([header, *others, first]) + "\n")
    pack("sevir", sevir.path, SIZE)
    with pytest.raises(InputError, match="was made anew meanwhile"):
        dataset[0]


def test_rows_that_are_lost_later_are_an_error(sevir):
    folder = pack("sevir", sevir.path, SIZE)
    dataset = build(sevir)
    short_cache(sevir, folder)
    with pytest.raises(InputError, match="Cannot read the cache"):
        dataset[0]


class Killed(BaseException):
    pass


def record_reads(monkeypatch, kill_at=None) -> list[str]:
    """The ids of the events that packing reads from now on; it is killed at the event number `kill_at`."""
    read, original = [], packed.EventFiles.read

    def read_event(self, event, first, stop):
        if len(read) == kill_at:
            raise Killed
        read.append(event.id)
        return original(self, event, first, stop)

    monkeypatch.setattr(packed.EventFiles, "read", read_event)
    monkeypatch.setattr(cache, "BATCH", 1)
    return read


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_killed_run_continues_where_it_stopped(sevir, monkeypatch, number):
    with monkeypatch.context() as patch:
        before = record_reads(patch, number)
        with pytest.raises(Killed):
            pack("sevir", sevir.path, SIZE)
    assert isinstance(build(sevir), Packed if number >= 2 else Sevir)
    after = record_reads(monkeypatch)
    pack("sevir", sevir.path, SIZE)
    assert before + after == ["A", "B", "C", "D"]
    command(sevir, "--verify")


def test_verify_finds_a_flipped_bit_in_the_cache(sevir):
    folder = pack("sevir", sevir.path, SIZE)
    command(sevir, "--verify")
    damage(folder / "events.bin")
    with pytest.raises(InputError, match=r"1 events .* the first is D"):
        command(sevir, "--verify")


def test_verify_finds_a_source_that_changed_in_place(sevir):
    pack("sevir", sevir.path, SIZE)
    with h5py.File(sevir.file("D"), "r+") as file:
        file["vil"][-1, 3, 3] += 9
    with pytest.raises(InputError, match=r"1 events .* the first is D"):
        command(sevir, "--verify")


def test_two_runs_at_once_read_each_event_once(sevir, monkeypatch):
    read = record_reads(monkeypatch)
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(lambda _: pack("sevir", sevir.path, SIZE), range(2)))
    assert folders[0] == folders[1]
    assert read == ["A", "B", "C", "D"]


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
