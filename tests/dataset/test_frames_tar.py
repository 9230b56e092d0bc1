"""Frames in tar files, some of which are damaged or hostile."""

import gzip
import io
import tarfile
from datetime import datetime

import numpy as np
import pytest

from dataset.frames.archive import tars
from dataset.frames.archive.archive import archive_of
from dataset.frames.config import read_config
from dataset.frames.latest import latest
from tests.dataset.archive import START, STEP, Archive
from utils.errors import InputError

PATTERN = "%Y/radar_%Y%m%d.tar/%H/radar_%Y%m%d%H%M.npy"


@pytest.fixture
def archive(tmp_path) -> Archive:
    """Frames 0 to 47 in one tar, and the same ones in files."""
    archive = Archive(tmp_path / "files")
    archive.folder.mkdir()
    archive.configure().add(range(48))
    pack(archive, range(48))
    return archive


def name(number) -> str:
    return f"{START + number * STEP:%H/radar_%Y%m%d%H%M}.npy"


def pack(archive, numbers, mode="w", packed=lambda content: content):
    tarred = Archive(archive.folder.parent / "tarred").folder
    (tarred / "2023").mkdir(parents=True, exist_ok=True)
    archive.tarred = Archive(tarred).configure(pattern=PATTERN)
    archive.tar = tarred / "2023" / "radar_20230501.tar"
    with tarfile.open(archive.tar, mode) as tar:
        for number in numbers:
            content = packed(archive.path(number).read_bytes())
            add(tar, f"./{name(number)}", content)


def add(tar, path, content=b"", **changes):
    info = tarfile.TarInfo(path)
    info.size, info.mtime = len(content), 1.5e9
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_sequences_from_a_tar_equal_those_from_files(archive, packed):
    pack(archive, range(48), packed=packed)
    ours, files = archive.tarred.open(stride=1), archive.open(stride=1)
    assert len(ours) == len(files) == 21
    for index in range(len(ours)):
        np.testing.assert_array_equal(ours[index], files[index])
        assert ours.sequence_id(index) == files.sequence_id(index)


def test_a_tar_is_listed_once_and_again_when_it_has_grown(archive, monkeypatch):
    pack(archive, range(30))
    frames, calls = archive_of(read_config(archive.tarred.folder)), []
    monkeypatch.setattr(tars.tarfile, "open", lambda *words, **named: calls.append(1) or opened(*words, **named))
    assert len(frames.times()) == len(frames.find()) == 30
    frames.read(START + 7 * STEP)
    assert len(calls) == 1
    pack(archive, range(30, 33), mode="a")
    calls.clear()
    assert len(frames.times()) == 33
    np.testing.assert_array_equal(frames.read(START + 32 * STEP).values, archive.frames[32])
    assert len(calls) == 1


opened = tarfile.open


def test_of_two_members_with_one_name_the_later_counts(archive):
    archive.store(3, archive.frames[4])
    pack(archive, [3], mode="a")
    np.testing.assert_array_equal(archive.tarred.open(stride=1)[3][0], archive.tarred.open(stride=1)[3][1])


def test_links_and_members_that_lead_elsewhere_are_ignored(archive, tmp_path):
    elsewhere = tmp_path / "secret.npy"
    np.save(elsewhere, np.zeros((6, 8), np.uint8))
    with tarfile.open(archive.tar, "w") as tar:
        add(tar, name(0), elsewhere.read_bytes())
        add(tar, name(1), type=tarfile.SYMTYPE, linkname=str(elsewhere))
        add(tar, name(2), type=tarfile.LNKTYPE, linkname=name(0))
        add(tar, name(3), type=tarfile.FIFOTYPE)
        add(tar, f"../2023/radar_20230501.tar/{name(4)}", elsewhere.read_bytes())
        add(tar, f"/{name(5)}", elsewhere.read_bytes())
    assert archive_of(read_config(archive.tarred.folder)).times().tolist() == [epoch(0)]


def epoch(number) -> int:
    return int((START + number * STEP - datetime(1970, 1, 1)).total_seconds())


def test_a_tar_that_is_still_arriving_gives_the_frames_that_are_complete(archive, caplog):
    content = archive.tar.read_bytes()
    whole = content.index(f"./{name(20)}".encode())
    archive.tar.write_bytes(content[: whole + 600])  # some of the content of frame 20
    assert len(archive_of(read_config(archive.tarred.folder)).times()) == 20
    newest = latest(archive.tarred.folder, 4, (6, 8), now=START + 20 * STEP)
    assert newest.times[-1] == START + 19 * STEP


@pytest.mark.parametrize("size", [2**40, -512, -(2**40)])
def test_members_of_impossible_sizes_end_the_list_with_a_warning(archive, caplog, size):
    content = bytearray(archive.tar.read_bytes())
    header = content.index(f"./{name(5)}".encode())
    content[header + 124 : header + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    archive.tar.write_bytes(content)
    assert len(archive_of(read_config(archive.tarred.folder)).times()) == 5
    assert "is damaged" in caplog.text
    assert str(archive.tar) in caplog.text


def test_a_long_header_does_not_use_memory(archive, caplog):
    with tarfile.open(archive.tar, "a", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "x" * 10**6, b"1")
    assert len(archive_of(read_config(archive.tarred.folder)).times()) == 48
    assert "a header of 1000448 bytes" in caplog.text


def test_a_member_larger_than_a_frame_may_be_is_ignored(archive, monkeypatch):
    monkeypatch.setattr(tars, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="holds no frame with a name like"):
        archive_of(read_config(archive.tarred.folder)).times()


def test_a_compressed_tar_is_refused_and_other_files_are_no_folders(archive, monkeypatch):
    archive.tarred.configure(pattern=PATTERN.replace(".tar", ".tar.gz"))
    packed = archive.tar.with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(archive.tar.read_bytes()))
    with pytest.raises(InputError, match=f"{packed} is compressed, .* decompress it"):
        archive.tarred.open()
    packed.write_text("no tar")
    with pytest.raises(InputError, match="holds no frame with a name like"):
        archive.tarred.open()


def test_messages_name_the_member_of_a_tar(archive):
    pack(archive, [0], packed=lambda content: content[:-7])
    message = f"{archive.tar}/{name(0)} cannot be used"
    with pytest.raises(InputError, match=message):
        archive.tarred.open()
