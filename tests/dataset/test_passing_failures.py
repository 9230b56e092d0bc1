"""Failures of the machine, such as disks without locks, are no faults of the data and leave no trace."""

import errno
import fcntl
import io
import os
import sys

import h5py
import numpy as np
import pytest
import torch

from dataset import build_dataset, hdf5
from dataset.check import check, main
from dataset.exclusions import read_exclusions
from dataset.published.reader import RadarH5
from dataset.sevir.packed import pack
from dataset.sevir.reader import Sevir
from tests.dataset.archive import Archive, aged, truncated
from utils.errors import InputError, exit_on_input_error

NUMBERS = (errno.EACCES, errno.EIO, errno.ENOENT)


@pytest.fixture
def refusing(monkeypatch):
    """Let the opening of files with a name fail, until it is called with None."""
    refused = {}

    def guard(original):
        def opened(path, *args, **options):
            if os.path.basename(str(path)) in refused:
                number = refused[os.path.basename(str(path))]
                raise OSError(number, f"{os.strerror(number)} (errno = {number})")
            return original(path, *args, **options)

        return opened

    for module, name in ((io, "open"), (sys.modules["builtins"], "open"), (h5py, "File")):
        monkeypatch.setattr(module, name, guard(getattr(module, name)))
    monkeypatch.setattr(hdf5, "PAUSES", ())

    def refuse(name, number=errno.EIO):
        refused.clear()
        if name:
            refused[name] = number

    return refuse


def command(*arguments):
    """Exit status."""
    try:
        with exit_on_input_error():
            main(list(map(str, arguments)))
    except SystemExit as end:
        return end.code
    return 0


def test_archives_are_read_without_locks(sevir):
    with sevir.file("A").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert torch.equal(
            Sevir(sevir.path, "train", 16)[0][:, 0] * 255, torch.from_numpy(sevir.vil["A"][..., :25]).movedim(2, 0)
        )
        assert check("sevir", sevir.path).faults == []


def test_frames_are_read_without_locks_where_there_are_none(tmp_path, monkeypatch):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="rain").add(range(8))

    def without_locks(path, mode, locking=None, opened=h5py.File):
        if locking is False:
            return opened(path, mode, locking=locking)
        raise OSError(errno.ENOLCK, "Unable to synchronously open file (unable to lock file, errno = 37)")

    monkeypatch.setattr(h5py, "File", without_locks)
    assert ", 0 unusable files" in archive.open().describe()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_frame_that_cannot_be_opened_at_present_is_no_unusable_one(archive, refusing, number):
    refusing(archive.path(5).name, number)
    with pytest.raises(InputError, match=rf"cannot read .*{archive.path(5).name}: {os.strerror(number)}; see to"):
        archive.open()
    refusing(None)
    assert ", 0 unusable files" in archive.open().describe()


def test_a_frame_is_not_read_while_another_program_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "PAUSES", ())
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="rain").add(range(8))
    with archive.path(3).open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"cannot read .*0015.nc: Resource temporarily unavailable"):
            archive.open()
    assert ", 0 unusable files" in archive.open().describe()


def test_a_check_ends_at_a_frame_that_cannot_be_opened_and_excludes_nothing(archive, refusing, capsys):
    refusing(archive.path(5).name, errno.EACCES)
    arguments = ("--dataset", "frames", "--data_path", archive.folder, "--fix", "--num_workers", 0)
    assert command(*arguments) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith(f"error: cannot read {archive.path(5)}: Permission denied;")
    )
    assert not read_exclusions(archive.folder / "frames.yaml")


@pytest.mark.parametrize("number", NUMBERS)
def test_an_archive_that_cannot_be_opened_at_present_is_not_told_to_be_damaged(sevir, refusing, number):
    dataset = Sevir(sevir.path, "train", 16)
    refusing(sevir.file("A").name, number)
    for read in (lambda: Sevir(sevir.path, "train", 16), lambda: dataset[0], lambda: check("sevir", sevir.path)):
        with pytest.raises(InputError, match=rf"^cannot read .*SEVIR_VIL_2018.h5: {os.strerror(number)}; see to"):
            read()
    refusing("CATALOG.csv", number)
    with pytest.raises(InputError, match=rf"^cannot read .*CATALOG.csv: {os.strerror(number)}"):
        Sevir(sevir.path, "train", 16)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_published_file_that_cannot_be_opened_at_present_is_not_told_to_be_damaged(tmp_path, refusing, number):
    path = tmp_path / "cikm.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "valid", "test"):
            file[f"{split}_len"], file[f"{split}/sample_1"] = 1, np.ones((15, 9, 9), "u1")
    dataset = RadarH5("cikm", path, "test", (16, 16), 15)
    refusing("cikm.h5", number)
    for read in (lambda: RadarH5("cikm", path, "test", (16, 16), 15), lambda: dataset[0], lambda: check("cikm", path)):
        with pytest.raises(InputError, match=rf"^cannot read .*cikm.h5: {os.strerror(number)}; see to"):
            read()


def test_a_cache_that_cannot_be_read_at_present_is_kept(archive, sevir, refusing):
    archive.open()
    folder = pack("sevir", sevir.path, 16)
    expected = build_dataset("sevir", "train", sevir.path, 16)[0]
    files = [*archive.folder.glob("packed/*/*"), *folder.glob("*")]
    before = [file.stat().st_mtime_ns for file in files]
    refusing(next(archive.folder.glob("packed/*/*")).name)
    with pytest.raises(InputError, match="Input/output error"):
        archive.open()
    for name in ("index.json", "records.bin"):
        refusing(name)
        with pytest.raises(InputError, match="Input/output error"):
            pack("sevir", sevir.path, 16)
    refusing(None)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert torch.equal(build_dataset("sevir", "train", sevir.path, 16)[0], expected)


def test_a_file_that_is_missing_is_told_and_never_excluded(sevir):
    data = sevir.path / "data"
    data.rename(sevir.path / "elsewhere")
    assert command("--data_path", sevir.path, "--fix", "--num_workers", 0) == 1
    (sevir.path / "elsewhere").rename(data)
    assert Sevir(sevir.path, "train", 16).event_ids == ["A", "B"]


def test_what_is_only_half_written_is_told_and_excluded_a_minute_later(archive, sevir):
    whole = archive.path(7).read_bytes()
    for path in (archive.path(7), sevir.file("A")):
        os.truncate(path, path.stat().st_size - 7)
    checks = (
        ("--dataset", "frames", "--data_path", archive.folder, "--fix", "--num_workers", 0),
        ("--data_path", sevir.path, "--fix", "--num_workers", 0),
    )
    assert [command(*arguments) for arguments in checks] == [1, 1]
    assert not read_exclusions(archive.folder / "frames.yaml")
    assert not read_exclusions(sevir.path)
    assert ", 1 unusable files and 0 excluded" in archive.open().describe()
    archive.path(7).write_bytes(whole)
    assert ", 0 unusable files and 0 excluded" in archive.open().describe()
    truncated(archive.path(7))
    aged(sevir.file("A"))
    assert [command(*arguments) for arguments in checks] == [0, 0]
    assert list(read_exclusions(archive.folder / "frames.yaml")) == ["20230501T003500"]
    assert list(read_exclusions(sevir.path)) == ["A", "B"]
