import csv
import logging
import pickle
from datetime import datetime, timedelta

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from dataset import build_dataset
from dataset.sevir import reader
from dataset.sevir.reader import EmptySplitError, Sevir
from dataset.source import VIL
from tests.dataset.conftest import COLUMNS
from utils.errors import InputError

PUBLISHED = {  # complete events of SEVIR from a day to the next one here; the last two are 4,053 together
    datetime(2018, 1, 1): 11_906,
    datetime(2019, 1, 1, 1): 3_020,
    datetime(2019, 6, 1, 1): 2_610,
    datetime(2019, 10, 1, 1): 1_443,
}


def train(sevir, **options):
    return Sevir(sevir.path, "train", img_size=sevir.size, **options)


def spoil(sevir, event="B", **changes):
    sevir.row(event).update(changes)
    sevir.write_catalog()


@pytest.mark.parametrize(
    ("scheme", "stride", "starts"),
    [
        ("official", None, [0, 5, 10, 15, 20]),
        ("benchmark", None, [0, 12, 24]),
        ("benchmark", 24, [0, 24]),
    ],
)
def test_windows_start_every_stride_frames_while_they_fit(sevir, scheme, stride, starts):
    dataset = train(sevir, split_scheme=scheme, stride=stride)
    ids = [dataset.sequence_id(i) for i in range(len(dataset))]
    assert ids == [f"{event}+{start}" for event in "AB" for start in starts]


def test_an_item_is_its_window_of_the_stored_bytes_over_255(sevir):
    dataset = train(sevir)
    item = dataset[7]  # B+10
    expected = sevir.vil["B"][:, :, 10:35].transpose(2, 0, 1)[:, None].astype(np.float32) / np.float32(255)
    assert item.dtype == torch.float32
    assert item.shape == (25, 1, 16, 16)
    assert torch.equal(item, torch.from_numpy(expected))
    assert dataset.source is VIL
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("img_size", [8, 24])
def test_resizing_is_antialiased_bilinear_rounded_to_bytes(sevir, img_size):
    item = Sevir(sevir.path, "test", img_size)[1]
    frames = torch.from_numpy(sevir.vil["D"][:, :, 5:30].transpose(2, 0, 1)[:, None] / 255.0)
    exact = F.interpolate(frames, (img_size, img_size), mode="bilinear", antialias=img_size < 16)
    assert (item - exact).abs().max() <= 0.5001 / 255
    assert torch.equal(item, (item * 255).round() / 255)


@pytest.mark.parametrize(
    ("scheme", "time", "split"),
    [
        ("official", "2019-01-01 00:00:00", "train"),
        ("official", "2019-01-01 00:00:01", "valid"),
        ("official", "2019-10-01 00:00:00", "valid"),
        ("official", "2019-10-01 00:00:01", "test"),
        ("official", "2019-10-01 01:00:00+02:00", "valid"),
        ("benchmark", "2019-06-01 00:00:00", "valid"),
        ("benchmark", "2019-06-01 00:00:01", "test"),
    ],
)
def test_a_split_holds_the_events_after_its_start_up_to_its_end(sevir, scheme, time, split):
    spoil(sevir, "C", time_utc=time)
    assert "C" in Sevir(sevir.path, split, 16, split_scheme=scheme).event_ids


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A catalogue of as many events as SEVIR's, and others that do not count; files without a single written frame."""
    folder, rows = tmp_path_factory.mktemp("published"), []
    for begin, count in PUBLISHED.items():
        name, ids = f"vil/{begin:%Y%m}.h5", [f"S{begin:%y%m}{n:05}" for n in range(count)]
        for n, event in enumerate(ids):
            time = begin + n * timedelta(minutes=8)
            rows += [(event, name, n, kind, time, 0.0) for kind in ("vil", "ir069")]
        for incomplete, copies in ((0.0, 2), (0.5, 1)):
            rows += copies * [(f"R{begin:%y%m}{incomplete}", name, len(ids), "vil", begin, incomplete)]
            ids.append(rows[-1][0])
        (folder / "data" / "vil").mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / "data" / name, "w") as file:
            file["id"] = np.array(ids, "S")
            file.create_dataset("vil", (len(ids), 384, 384, 49), np.uint8, chunks=(1, 384, 384, 49))
    with (folder / "CATALOG.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


@pytest.mark.parametrize(
    ("scheme", "split", "events", "sequences"),
    [
        ("benchmark", "train", 11_906, 35_718),
        ("benchmark", "valid", 3_020, 9_060),
        ("benchmark", "test", 4_053, 12_159),
        ("official", "train", 11_906, 59_530),
        ("official", "valid", 5_630, 28_150),
        ("official", "test", 1_443, 7_215),
    ],
)
def test_splits_of_the_published_events_have_the_published_numbers(published, scheme, split, events, sequences):
    dataset = Sevir(published, split, 384, split_scheme=scheme)
    assert (len(dataset.event_ids), len(dataset)) == (events, sequences)
    if scheme == "official":  # whole batches that a training of DiffCast's released code logs
        batch, batches = {"train": (6, 9_921), "valid": (12, 2_345), "test": (12, 601)}[split]
        assert len(dataset) // batch == batches
    assert dataset[-1 + len(dataset)].shape == (25, 1, 384, 384)


def test_other_image_types_do_not_count_at_all(sevir):
    sevir.add_row("B", "vis/2018/x.h5", 0, "2018-12-31 23:55:00", img_type="vis")
    sevir.write_catalog()
    dataset = train(sevir)
    assert dataset.event_ids == ["A", "B"]
    assert dataset.skipped == {}


def test_all_copies_of_a_repeated_id_are_dropped(sevir):
    sevir.rows.append({**sevir.row("B"), "file_index": 0})
    sevir.write_catalog()
    dataset = train(sevir)
    assert dataset.event_ids == ["A"]
    assert dataset.skipped == {"id occurs more than once": 2}


def test_whole_numbers_may_have_the_point_that_pandas_gives_a_column_with_gaps(sevir):
    for row in sevir.rows:
        row["file_index"] = f"{row['file_index']:.1f}"
    sevir.write_catalog()
    assert [event.index for event in Sevir(sevir.path, "train", 16).events] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pct_missing": "0.01"}, "pct_missing is not 0"),
        ({"file_index": "0.5"}, "unreadable catalogue row"),
        ({"file_index": "inf"}, "unreadable catalogue row"),
        ({"time_utc": "soon"}, "unreadable catalogue row"),
        ({"file_name": "vil/2018/gone.h5"}, "file is missing"),
        ({"file_index": "2"}, "file_index is out of range"),
        ({"file_index": "-1"}, "file_index is out of range"),
        ({"file_index": "0"}, "id in the file differs from the catalogue's"),
    ],
)
def test_an_unusable_row_is_skipped_counted_and_logged(sevir, changes, reason, caplog):
    spoil(sevir, **changes)
    with caplog.at_level(logging.INFO):
        dataset = train(sevir)
    assert dataset.event_ids == ["A"]
    assert dataset.skipped == {reason: 1}
    assert [f"1 x {reason}" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "layout",
    [
        {"dtype": np.int16},
        {"shape": (16, 8, 49)},
        {"shape": (16, 16)},
    ],
)
def test_a_file_of_another_layout_is_skipped(sevir, layout):
    sevir.write_file("vil/2018/other.h5", ["B"], **layout)
    spoil(sevir, file_name="vil/2018/other.h5", file_index="0")
    dataset = train(sevir)
    assert dataset.event_ids == ["A"]
    assert sum(dataset.skipped.values()) == 1


def test_a_split_without_usable_events_is_an_error_that_says_why(sevir):
    spoil(sevir, "D", pct_missing="3")
    with pytest.raises(EmptySplitError, match="test split \\(1 x pct_missing is not 0\\)"):
        Sevir(sevir.path, "test", 16)


def test_a_broken_catalogue_is_named(sevir):
    catalog = sevir.path / "CATALOG.csv"
    sevir.write_catalog(columns=("id", "file_name", "file_index", "img_type"))
    with pytest.raises(InputError, match=r"CATALOG\.csv lacks the column.s. time_utc, pct_missing"):
        train(sevir)
    catalog.write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(InputError, match=r"CATALOG\.csv"):
        train(sevir)
    catalog.unlink()
    with pytest.raises(InputError, match=r"holds no CATALOG\.csv"):
        train(sevir)
    with pytest.raises(InputError, match="nowhere does not exist"):
        Sevir(sevir.path / "nowhere", "train")
    with pytest.raises(InputError, match=r"SEVIR_VIL_2018\.h5 is no folder"):
        Sevir(sevir.file("A"), "train")


def test_a_truncated_file_is_named_at_construction(sevir):
    path = sevir.file("A")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"SEVIR_VIL_2018\.h5"):
        train(sevir)


def test_a_file_that_vanishes_later_is_named(sevir):
    dataset = train(sevir)
    sevir.file("B").unlink()
    with pytest.raises(InputError, match=r"cannot read .*SEVIR_VIL_2018\.h5: No such file"):
        dataset[9]


def test_a_damaged_chunk_is_named_with_its_event(sevir):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["A", "B"], compression="gzip")
    path = sevir.file("B")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    dataset = train(sevir)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Cannot read event B from .*SEVIR_VIL_2018\.h5"):
        dataset[9]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seq_len", 0),
        ("stride", 0),
        ("img_size", 0),
        ("split", "dev"),
        ("name", "radar"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(sevir, option, value):
    options = {"name": "sevir", "split": "train", option: value}
    with pytest.raises(InputError, match=f"{value}"):
        build_dataset(data_path=sevir.path, **options)


def test_workers_read_the_same_as_the_parent(sevir):
    dataset = train(sevir)
    alone = torch.stack(list(DataLoader(dataset, batch_size=None)))  # leaves the parent's handles open
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert torch.equal(torch.stack(list(loader)), alone)


def test_a_pickled_dataset_opens_files_anew(sevir):
    dataset = train(sevir)
    expected = dataset[3]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3], expected)


def test_a_forked_process_opens_files_of_its_own(sevir, monkeypatch):
    dataset = train(sevir)
    dataset[0]
    monkeypatch.setattr("os.getpid", lambda: -1)
    opened, open_hdf5 = [], reader.open_hdf5
    monkeypatch.setattr(reader, "open_hdf5", lambda path: opened.append(open_hdf5(path)) or opened[-1])
    dataset[0]
    monkeypatch.setattr("os.getpid", lambda: -2)
    dataset[0]
    assert [bool(file) for file in opened] == [False, True]  # closed, and opened anew
