import csv
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset import build_dataset
from dataset.sevir.packed import Packed, pack
from dataset.source import VIL
from dataset.synthetic import writer as synthetic
from dataset.synthetic.storms import LIFETIME, LIFETIME_AT, LIFETIME_POWER, SPEED, evolving_field, storms
from dataset.synthetic.writer import enlarge, enlargement, ensure, event_times, write_sevir
from utils.errors import InputError

REAL_HEADER = (
    "id,file_name,file_index,img_type,time_utc,minute_offsets,episode_id,event_id,event_type,llcrnrlat,llcrnrlon,"
    "urcrnrlat,urcrnrlon,proj,size_x,size_y,height_m,width_m,data_min,data_max,pct_missing"
)


def read_catalog(folder: Path) -> list[dict]:
    with (folder / "CATALOG.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_event_depends_only_on_the_seed_and_its_number():
    together = storms(4, frames=5, size=16, seed=7)
    assert torch.equal(storms(1, frames=5, size=16, seed=7, first=3)[0], together[3])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(storms(1, frames=5, size=16, seed=8)[0], together[0])


def test_intensities_are_those_of_real_storms():
    sample = storms(400, frames=5, size=24)
    for level, probability in {1: 0.62, 16: 0.30, 74: 0.15, 133: 0.035, 160: 0.010, 181: 0.005}.items():
        assert (sample >= level).float().mean() == pytest.approx(probability, rel=0.2), level
    assert sample.max() == 254  # 255 would read as missing


def test_spectrum_falls_as_that_of_radar():
    frames = storms(16, frames=2, size=128).flatten(0, 1).numpy().astype(float)
    window = np.hanning(128)
    power = np.abs(np.fft.fft2((frames - frames.mean((1, 2), keepdims=True)) * window * window[:, None])) ** 2
    k = np.fft.fftfreq(128, 1 / 128)
    ring = np.hypot(k[:, None], k).round().astype(int).ravel()
    spectrum = np.bincount(ring, power.mean(0).ravel()) / np.bincount(ring)
    for (low, high), slope in {(2, 8): -2.5, (8, 32): -2.75, (32, 64): -3.4}.items():
        k = np.arange(low, high + 1)
        assert np.polyfit(np.log(k), np.log(spectrum[k]), 1)[0] == pytest.approx(slope, abs=0.3)


def test_small_scales_are_forgotten_first_and_the_variance_stays():
    grid, pixel, lag = 96, 4.0, 4
    fields = torch.cat([evolving_field(30, grid, pixel, torch.Generator().manual_seed(i)) for i in range(4)])
    assert fields.var().item() == pytest.approx(1, abs=0.15)
    modes = torch.fft.rfft2(fields.unflatten(0, (4, 30)))
    k = torch.hypot(torch.fft.fftfreq(grid, pixel)[:, None], torch.fft.rfftfreq(grid, pixel))
    for wavelength in (12, 24, 48, 96):
        band = modes[..., (k * wavelength > 0.9) & (k * wavelength < 1.1)]
        product = (band[:, lag:] * band[:, :-lag].conj()).real.mean()
        a = np.exp(-1 / (LIFETIME * (wavelength / LIFETIME_AT) ** LIFETIME_POWER))
        expected = a**lag * (1 + lag * (1 - a**2) / (1 + a**2))  # of AR(2) with the double root a
        assert product / band.abs().square().mean() == pytest.approx(expected, abs=0.08), wavelength


def test_storms_move_with_the_wind():
    lag, pixel = 4, 384 / 64
    gains = []
    for event in storms(8, frames=9, size=64).float():
        first, second = (event[t] - event[t].mean() for t in (2, 2 + lag))
        correlation = torch.fft.ifft2(torch.fft.fft2(second) * torch.fft.fft2(first).conj()).real
        y, x = divmod(correlation.argmax().item(), 64)
        distance = np.hypot((x + 32) % 64 - 32, (y + 32) % 64 - 32) * pixel / lag
        assert SPEED[0] - 1.5 < distance < SPEED[1] + 1.5
        gains.append(correlation.max() / correlation[0, 0])
    assert np.mean(gains) > 1.2


def test_reader_who_shrinks_the_frames_gets_the_storms_back():
    frames = storms(1, frames=3, size=128)[0]
    large = enlarge(frames, enlargement(128, 384))
    again = F.interpolate(large[:, None].float(), size=128, mode="bilinear", antialias=True)[:, 0]
    assert large.max() <= 254
    assert (again - frames).abs().mean() < 0.5
    assert again.var().item() == pytest.approx(frames.float().var().item(), rel=0.01)


def test_storms_say_that_they_are_synthetic_however_they_are_read(tmp_path, sevir, caplog):
    caplog.set_level("INFO")
    write_sevir(tmp_path, events=3, size=8, resolution=8)
    direct = [build_dataset(name, "test", tmp_path, 8) for name in ("sevir", "synthetic")]
    pack("sevir", tmp_path, 8)
    packed = build_dataset("sevir", "test", tmp_path, 8)
    assert isinstance(packed, Packed)
    for dataset in (*direct, packed):
        assert (dataset.source.name, dataset.source.synthetic) == ("synthetic storms", True)
        assert dataset.source.thresholds == VIL.thresholds
    assert caplog.text.count("synthetic storms, 1 events") >= 3
    assert "Sevir" not in caplog.text
    assert build_dataset("sevir", "train", sevir.path, 8).source == VIL


def test_files_have_the_layout_of_sevir(tmp_path):
    write_sevir(tmp_path, events=10, size=24, resolution=8, seed=1)
    rows = read_catalog(tmp_path)
    assert ",".join(rows[0]) == REAL_HEADER
    assert len({row["id"] for row in rows}) == 10
    assert len({row["file_name"] for row in rows}) == 4
    enlarging = enlargement(8, 24)
    for number, row in enumerate(rows):
        assert (row["img_type"], float(row["pct_missing"]), row["size_x"]) == ("vil", 0, "24")
        with h5py.File(tmp_path / "data" / row["file_name"]) as file:
            assert file["vil"].shape[1:] == (24, 24, 49)
            assert file["vil"].dtype == np.uint8
            index = int(row["file_index"])
            assert file["id"][index].decode() == row["id"]
            stored = torch.from_numpy(file["vil"][index]).movedim(-1, 0)
        assert torch.equal(stored, enlarge(storms(1, 49, 8, seed=1, first=number)[0], enlarging))
    assert not (tmp_path / synthetic.STAGING).exists()


@pytest.mark.parametrize(("events", "counts"), [(3, (1, 1, 1)), (10, (7, 1, 2)), (200, (140, 20, 40))])
def test_dates_give_every_split_its_share(events, counts):
    times = np.array(event_times(events))
    train = times <= datetime(2019, 1, 1)
    test = times > datetime(2019, 10, 1)
    assert (train.sum(), (~train & ~test).sum(), test.sum()) == counts
    assert {time.year for time in times} == {2018, 2019}


def test_failed_run_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    def fail_at_the_second(*args, first):
        if first == 1:
            raise KeyboardInterrupt
        return storms(*args, first=first)

    (tmp_path / synthetic.STAGING / "data").mkdir(parents=True)  # what a killed run leaves
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "storms", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            write_sevir(tmp_path, events=3, size=8)
    assert [path.name for path in tmp_path.iterdir()] == [".synthetic.lock"]
    write_sevir(tmp_path, events=3, size=8)
    assert len(read_catalog(tmp_path)) == 3


def test_ensure_generates_once_for_many_callers(tmp_path, monkeypatch):
    generated, start = [], threading.Barrier(3)

    def slow_storms(*args, first):
        generated.append(first)
        time.sleep(0.05)
        return storms(*args, first=first)

    def call(_):
        start.wait()
        ensure(tmp_path / "new")

    monkeypatch.setattr(synthetic, "DEFAULT", {"events": 3, "size": 8, "resolution": 8, "seed": 0})
    monkeypatch.setattr(synthetic, "storms", slow_storms)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))
    assert generated == [0, 1, 2]
    assert len(read_catalog(tmp_path / "new")) == 3


@pytest.mark.parametrize("name", ["CATALOG.csv", "data"])
def test_existing_data_is_never_overwritten(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} exists already"):
        write_sevir(tmp_path, events=3, size=8)


@pytest.mark.parametrize("bad", [{"events": 0}, {"size": 4}, {"resolution": 0}, {"seed": -1}])
def test_impossible_numbers_are_named(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        write_sevir(tmp_path, **{"events": 3, "size": 8} | bad)
    assert not list(tmp_path.iterdir())


def test_command_line_reports_an_unwritable_folder_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "dataset", "synthetic", "--out", str(tmp_path / "file" / "storms")]
    root = Path(synthetic.__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot write")
    assert run.stderr.count("\n") == 1
