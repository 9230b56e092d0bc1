"""Every data set from its raw files to scores: prepare, train DiffCast a few steps, evaluate."""

import contextlib
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import run
from dataset import build_dataset
from dataset.published.prepare import prepare
from dataset.sequences import EVENT_ID, SPLITS
from diffcast.evaluation import loop as evaluation
from diffcast.loading import spread
from tests.dataset.conftest import SevirFolder
from tests.dataset.miniature import tenths, write_cikm, write_meteonet, write_shanghai
from tests.tiny import arguments, read_losses
from utils.errors import InputError
from utils.weights import load_metadata

START, STEP = datetime(2023, 5, 1), timedelta(minutes=5)
MISSING = range(220, 256)  # bytes that mean no data in the folder of frames


def rain(times, shape, peak: int) -> np.ndarray:
    """Frames uint8 `(T, H, W)` of a cell that moves on; no two are the same: two pixels tell the time."""
    times = np.asarray(times)[:, None, None]
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = ((y - shape[0] / 2) / shape[0]) ** 2 + ((x - times * 0.3) % shape[1] / shape[1] - 0.5) ** 2
    frames = (peak * np.exp(-12 * distance)).astype(np.uint8)
    frames[:, :1, :1], frames[:, :1, 1:2] = times % 80, times // 80
    return frames


@dataclass(frozen=True)
class Case:
    """A data set's miniature, and how to run it."""

    name: str
    path: Path
    size: tuple[int, int]  # of its frames
    frames: int  # in a row, at most
    masked: bool
    words: tuple[str, ...] = ()
    has_stride: bool = True


def sevir(folder: Path) -> Case:
    times = ("2018-03-01", "2018-07-01", "2018-12-31", "2019-01-01", "2019-09-30", "2019-10-02", "2019-12-01")
    archive = SevirFolder(folder, {f"S{n}": f"{time} 12:00:00" for n, time in enumerate(times)})
    return Case("sevir", archive.path, (16, 16), 49, masked=False)


def sevir_lr(folder: Path) -> Case:
    archive = SevirFolder(folder)
    for year, events in (("2018", ["A", "B"]), ("2019", ["C", "D"])):
        archive.write_file(f"vil/{year}/SEVIR_VIL_{year}.h5", events, shape=(16, 16, 25))
    words = ("--seq_len", "13", "--frames_in", "7", "--frames_out", "6")
    return Case("sevir_lr", folder, (16, 16), 25, masked=False, words=words)


def shanghai(folder: Path) -> Case:
    write_shanghai(folder / "raw", [rain(times, (12, 12), 254) for times in (range(610), range(700, 750))])
    prepare("shanghai", folder / "raw", folder / "shanghai.h5")
    return Case("shanghai", folder / "shanghai.h5", (12, 12), 25, masked=False, has_stride=False)


def meteo(folder: Path) -> Case:
    out_of_reach = np.zeros((12, 14), bool)
    out_of_reach[8:, 11:] = True
    for number, times in enumerate((range(610), range(700, 750))):
        frames = tenths(rain(times, (12, 14), 60), out_of_reach)
        write_meteonet(folder / "raw" / f"{number}.npz", times, frames)
    prepare("meteonet", folder / "raw", folder / "meteo.h5")
    return Case("meteo", folder / "meteo.h5", (12, 14), 25, masked=True, has_stride=False)


def cikm(folder: Path) -> Case:
    samples = [rain(range(20 * n, 20 * n + 15), (101, 101), 254)[:, None].repeat(4, axis=1) for n in range(7)]
    write_cikm(folder / "raw", np.stack(samples[:5]), np.stack(samples[5:]))
    prepare("cikm", folder / "raw", folder / "cikm.h5")
    words = ("--seq_len", "15", "--frames_out", "10")
    return Case("cikm", folder / "cikm.h5", (128, 128), 15, masked=True, words=words, has_stride=False)


def frames(folder: Path, garbage: int = 0) -> Case:
    """Frames that are not square, padded to 16 x 24, with a corner of missing pixels that holds `garbage`."""
    random = np.random.default_rng(garbage)
    for number, frame in enumerate(rain(range(150), (12, 20), 210)):
        frame[8:, 12:] = random.choice(MISSING, (4, 8))
        Image.fromarray(frame).save(folder / f"{START + number * STEP:%Y%m%d%H%M}.png")
    described = {
        **{"pattern": "%Y%m%d%H%M.png", "interval": 5, "extent_km": 100, "units": "dBZ", "stride": 3},
        **{"scale": 70 / 255, "offset": -10, "range": [-10, 50], "thresholds": [10, 20, 30], "missing": [*MISSING]},
        "split": {"valid_from": START + 70 * STEP, "test_from": START + 110 * STEP},
    }
    (folder / "frames.yaml").write_text(yaml.safe_dump(described))
    return Case("frames", folder, (12, 20), 40, masked=True, words=("--img_size", "16", "24"))


CASES = {build.__name__: build for build in (sevir, sevir_lr, shanghai, meteo, cikm, frames)}


def trained_on(*names: str) -> pytest.MarkDecorator:
    """Run a test with a training on each of these data sets; all but the folder of frames are slow."""
    cases = [pytest.param(name, marks=() if name == "frames" else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("case", cases, indirect=True, scope="module")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Case:
    """A data set, made from raw files once for all tests."""
    return CASES[request.param](tmp_path_factory.mktemp(request.param))


def run_case(case: Case, exp_dir: Path, *words: str) -> Path:
    """Train DiffCast a few steps unless `words` say otherwise, and evaluate; returns the run's folder."""
    run.main(arguments(case.path, exp_dir, "--dataset", case.name, "--use_diff", *case.words, *words))
    return exp_dir / f"Diffsimvp_{case.name}"


@pytest.fixture(scope="module")
def finished(case, tmp_path_factory) -> Path:
    """The folder of a run on a data set."""
    return run_case(case, tmp_path_factory.mktemp("exps"))


def scores_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation_best" / "metrics.json").read_text())["scores"]


@trained_on(*CASES)
def test_raw_files_lead_to_scores(case, finished):
    losses = read_losses(finished)
    assert len(losses) == 6
    assert all(np.isfinite(row["loss"]) for row in losses)
    scores = scores_of(finished)
    assert set(scores) == {"diffcast_simvp", "trend", "advection", "persistence"}
    names = ["csi", "mse", "mae", "crps", "ssim"]
    assert all(np.isfinite(of_one[name]) for of_one in scores.values() for name in names)
    counts = scores["persistence"]["counts"]
    sequences = json.loads((finished / "evaluation_best" / "metrics.json").read_text())["sequences"]
    counted = sum(of_kind[0][0] for of_kind in counts.values())
    assert 0 < counted < sequences * 16 * 24 if case.masked else counted == sequences * 16 * 16
    assert len(list((finished / "evaluation_best").glob("case_*.gif"))) == 1


@trained_on(*CASES)
def test_weights_and_scores_tell_the_data_they_are_of(case, finished):
    scored = json.loads((finished / "evaluation_best" / "metrics.json").read_text())["source"]
    for weights in (finished / "checkpoints").glob("**/*.safetensors"):
        assert load_metadata(weights)["source"] == scored
    if case.name == "frames":
        told = {key: scored[key] for key in ("units", "offset", "scale", "thresholds", "interval")}
        assert told == {"units": "dBZ", "offset": -10, "scale": 60, "thresholds": [10, 20, 30], "interval": 5}


@trained_on("frames")
def test_thresholds_are_in_the_units_of_the_source(case, finished):
    counts = scores_of(finished)["persistence"]["counts"]
    dataset = build_dataset(case.name, "test", case.path, case.size)
    expected = np.zeros((3, 20), int)
    for frames in map(dataset.__getitem__, spread(len(dataset), 5)):
        values = -10 + 60 * frames.numpy()[5:, 0]
        expected += [(values >= threshold - 1e-4).sum(axis=(1, 2)) for threshold in (10, 20, 30)]
    assert (np.array(counts["hits"]) + counts["misses"]).tolist() == expected.tolist()
    assert expected.min() > 0


@trained_on("frames")
def test_pictures_show_frames_without_padding_and_forecasts_where_the_radar_sees(case, finished, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation, "draw_case", lambda *words: drawn.append(words) or [])
    run_case(case, tmp_path, "--eval", "--ckpt_milestone", str(finished / "checkpoints" / "best.safetensors"))
    ((_, _, observed, target, forecasts, source, pixel_km),) = drawn
    assert pixel_km == pytest.approx(100 / case.size[1])
    assert source.thresholds == (10, 20, 30)
    unseen = torch.zeros(case.size, dtype=torch.bool)
    unseen[8:, 12:] = True
    for frames in (observed, target, *forecasts.values()):
        assert frames.shape[-2:] == case.size
        assert (frames.isnan() == unseen).all()


@pytest.mark.slow
@trained_on("frames")
def test_a_training_does_not_go_on_with_values_of_another_meaning(case, tmp_path, capsys):
    run_case(case, tmp_path, "--cases", "0", "--eval_sequences", "1")
    config = yaml.safe_load((case.path / "frames.yaml").read_text())
    other = tmp_path / "other.yaml"
    for changes, words in (({"thresholds": [15]}, []), ({"range": [0, 60]}, ["range [-10, 50] / [0, 60]"])):
        other.write_text(yaml.safe_dump(config | {"folder": str(case.path)} | changes))
        more = ("--resume", "--cases", "0", "--eval_sequences", "1", "--packed_path", str(tmp_path))
        with pytest.raises(SystemExit) if words else contextlib.nullcontext():
            run_case(replace(case, path=other), tmp_path, *more)
        assert all(word in capsys.readouterr().err for word in words)


@pytest.mark.parametrize(
    ("name", "option", "told"),
    [
        ("frames", {"split_scheme": "benchmark"}, "split benchmark"),
        ("sevir_lr", {"packed_path": "packed"}, "packed_path"),
        ("cikm", {"stride": 3}, "stride"),
        ("meteo", {"scale": 70}, "scale"),
        ("sevir", {"img_size": (8, 16)}, "img_size 8 16"),
    ],
)
def test_an_option_that_a_data_set_does_not_have_is_refused(tmp_path, name, option, told):
    with pytest.raises(InputError, match=told):
        build_dataset(name, "train", tmp_path, **option)


@pytest.mark.slow
def test_what_stands_in_missing_pixels_of_files_changes_no_training(tmp_path):
    outcomes = []
    for garbage in (1, 2):
        (tmp_path / str(garbage)).mkdir()
        folder = run_case(frames(tmp_path / str(garbage), garbage), tmp_path / f"exps_{garbage}", "--cases", "0")
        outcomes.append(([row["loss"] for row in read_losses(folder)], scores_of(folder)))
    assert outcomes[0] == outcomes[1]


def test_an_item_is_one_tensor_with_nan_where_nothing_is_known(case):
    dataset = build_dataset(case.name, "valid", case.path, case.size, 7)
    for index, item in enumerate(dataset):
        assert (item.dtype, item.shape) == (torch.float32, (7, 1, *case.size))
        assert item.nan_to_num(0).clamp(0, 1).equal(item.nan_to_num(0))
        assert item.isnan().any() == case.masked
        np.testing.assert_array_equal(dataset.decode(dataset.stored(index)), item)
    assert all(EVENT_ID.fullmatch(dataset.sequence_id(index)) for index in range(len(dataset)))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_no_two_splits_share_a_frame(case, data):
    seq_len = data.draw(st.integers(1, case.frames), "seq_len")
    stride = data.draw(st.integers(1, 30), "stride") if case.has_stride else None
    seen = []
    for split in SPLITS:
        dataset = build_dataset(case.name, split, case.path, case.size, seq_len, stride)
        seen.append({frame.numpy().tobytes() for item in dataset for frame in item})
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen))
