"""Time the scores against NumPy and scikit-image, frame by frame and threshold by threshold.

    OMP_NUM_THREADS=1 python -m benchmarks.scores [--sequences 4] [--turns 5] [--json result.json]

There are two references, both with scikit-image's SSIM and block_reduce. The lean loop does nothing twice. The usual
script is written as scripts of the field are: for each frame and threshold it pools both frames (for CSI-pool4 and
CSI-pool16) and calls a function that makes them binary and multiplies them; the errors come from scikit-image.
All get the same fields on one thread, are timed in turn (CPU time, as machines are shared), and must agree. Then the
time of all scores together, and the memory of evaluating few and many sequences.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal
from skimage.measure import block_reduce
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from utils.metrics import CategoricalScores, FrameErrors, ScoreGroup, Scores, StructuralSimilarity

THRESHOLDS = (16, 74, 133, 160, 181, 219)
LEADS, SIZE = 20, 128
CASES = {  # pool sizes, and whether SSIM is among the errors
    "counts and errors": ((1,), False),
    "counts, pooled counts and errors": ((1, 4, 16), False),
    "counts, errors and SSIM": ((1,), True),
    "counts, pooled counts, errors and SSIM": ((1, 4, 16), True),
}


def rain(sequences: int, members: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Smooth moving fields, two thirds of them dry: forecasts `(B, M, T, 1, H, W)` and targets `(B, T, 1, H, W)`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(sequences * (members + 1), 1, 4, 12, 12, generator=generator)
    fields = F.interpolate(noise, (LEADS, size, size), mode="trilinear").view(
        sequences, members + 1, LEADS, 1, size, size
    )
    target = fields[:, 0]
    forecast = 0.7 * target[:, None] + 0.5 * fields[:, 1:]
    return (0.5 * forecast - 0.1).clamp(0, 1), (255 * (0.5 * target - 0.1).clamp(0, 1)).floor() / 255


def frame_similarity(forecast: np.ndarray, target: np.ndarray) -> float:
    """SSIM of one frame by scikit-image, with the settings of Wang et al. 2004."""
    return structural_similarity(
        target.astype(np.float64),
        forecast.astype(np.float64),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def lean_loop(forecast: np.ndarray, target: np.ndarray, pools: tuple[int, ...], similarity: bool):
    """Counts `(P, 4, K, T)` and mean errors `(5, T)` of fields `(N, T, H, W)`, in a loop without waste."""
    counts = np.zeros((len(pools), 4, len(THRESHOLDS), LEADS), dtype=np.int64)
    errors = np.zeros((len(forecast), 5, LEADS))
    for n in range(len(forecast)):
        for t in range(LEADS):
            x = 255 * np.clip(forecast[n, t], 0, 1)
            y = 255 * np.clip(target[n, t], 0, 1)
            mse = np.mean((x - y) ** 2)
            rmse = np.sqrt(mse)
            errors[n, :4, t] = mse, np.mean(np.abs(x - y)), rmse, 20 * np.log10(255 / rmse)
            if similarity:
                errors[n, 4, t] = frame_similarity(x, y)
            for p, pool in enumerate(pools):
                a, b = (x, y) if pool == 1 else (block_reduce(field, (pool, pool), np.max) for field in (x, y))
                for k, threshold in enumerate(THRESHOLDS):
                    counts[p, 0, k, t] += np.sum((a >= threshold) & (b >= threshold))
                    counts[p, 1, k, t] += np.sum((a < threshold) & (b >= threshold))
                    counts[p, 2, k, t] += np.sum((a >= threshold) & (b < threshold))
                    counts[p, 3, k, t] += np.sum((a < threshold) & (b < threshold))
    return counts, errors.mean(axis=0)


def binary_counts(forecast: np.ndarray, target: np.ndarray, threshold: float) -> tuple:
    """Hits, misses, false alarms and correct negatives of one frame."""
    forecast = np.where(forecast >= threshold, 1, 0)
    target = np.where(target >= threshold, 1, 0)
    return (
        np.sum(forecast * target),
        np.sum((1 - forecast) * target),
        np.sum(forecast * (1 - target)),
        np.sum((1 - forecast) * (1 - target)),
    )


def frame_errors(forecast: np.ndarray, target: np.ndarray, similarity: bool) -> tuple:
    """MSE, MAE, RMSE, PSNR and SSIM of one frame."""
    mse = mean_squared_error(target, forecast)
    psnr = peak_signal_noise_ratio(target, forecast, data_range=255)
    ssim = frame_similarity(forecast, target) if similarity else 0
    return mse, np.mean(np.abs(target - forecast)), np.sqrt(mse), psnr, ssim


def usual_script(forecast: np.ndarray, target: np.ndarray, pools: tuple[int, ...], similarity: bool):
    """The same as `lean_loop`, as scripts of the field usually do it: a function call per frame and threshold."""
    counts = np.zeros((len(pools), 4, len(THRESHOLDS), LEADS), dtype=np.int64)
    errors = np.zeros((len(forecast), 5, LEADS))
    for n in range(len(forecast)):
        for t in range(LEADS):
            x = 255 * np.clip(forecast[n, t], 0, 1)
            y = 255 * np.clip(target[n, t], 0, 1)
            errors[n, :, t] = frame_errors(x, y, similarity)
            for p, pool in enumerate(pools):
                for k, threshold in enumerate(THRESHOLDS):
                    a, b = (x, y) if pool == 1 else (block_reduce(field, (pool, pool), np.max) for field in (x, y))
                    counts[p, :, k, t] += binary_counts(a, b, threshold)
    return counts, errors.mean(axis=0)


REFERENCES = {"lean_loop": lean_loop, "usual_script": usual_script}


def ours(forecast: Tensor, target: Tensor, pools: tuple[int, ...], similarity: bool):
    """The same numbers with the project's objects."""
    parts = {"counts": CategoricalScores(255, THRESHOLDS, LEADS, pools[1:]), "errors": FrameErrors(255, LEADS)}
    if similarity:
        parts["similarity"] = StructuralSimilarity(LEADS)
    scores = ScoreGroup(LEADS, parts)
    scores.update(forecast, target)
    state = scores.state()
    counts = [state["counts/counts" if pool == 1 else f"counts/counts_pool{pool}"] for pool in pools]
    sums = [state[f"errors/{name}"] for name in ("mse", "mae", "rmse", "psnr")]
    sums.append(state["similarity/ssim"] if similarity else torch.zeros(LEADS))
    return np.stack(counts), np.stack(sums) / len(target)


def compare(sequences: int, turns: int) -> list[dict]:
    """Time all ways on every case, after checking that they agree."""
    forecast, target = rain(sequences, members=1)
    fields = forecast[:, 0, :, 0].numpy(), target[:, :, 0].numpy()
    rows = []
    for name, case in CASES.items():
        ways = {way: partial(reference, *fields, *case) for way, reference in REFERENCES.items()}
        found = ours(forecast, target, *case)
        for reference in ways.values():
            expected = reference()
            assert_array_equal(found[0], expected[0])
            assert_allclose(found[1], expected[1], rtol=2e-6)
        seconds = timed(turns, **ways, ours=partial(ours, forecast, target, *case))
        rows.append({"what": name, **milliseconds(seconds, sequences), **speedups(seconds)})
    return rows


def speedups(seconds: dict[str, list[float]]) -> dict[str, float]:
    """How many times faster ours is than each reference: by the medians, and by the shortest runs."""
    return {
        f"times_faster_than_{way}_{key}": reduce(seconds[way]) / reduce(seconds["ours"])
        for way in REFERENCES
        for key, reduce in (("median", statistics.median), ("shortest", min))
    }


def timed(turns: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    """CPU seconds of each function in each turn: the mean over as many calls as take 0.2 s."""
    seconds = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            calls, total = timeit.Timer(function, timer=time.process_time).autorange()
            seconds[name].append(total / calls)
    return seconds


def milliseconds(seconds: dict[str, list[float]], sequences: int) -> dict[str, float]:
    """Median and shortest run per sequence."""
    return {
        f"{name}_{key}_ms": 1e3 * reduce(times) / sequences
        for name, times in seconds.items()
        for key, reduce in (("median", statistics.median), ("shortest", min))
    }


def time_all(turns: int) -> list[dict]:
    """Time all scores together, for one member and for eight."""
    rows = []
    for members in (1, 8):
        forecast, target = rain(2, members)
        seconds = timed(turns, ours=lambda: Scores(255, THRESHOLDS, LEADS, members).update(forecast, target))  # noqa: B023
        rows.append({"what": f"all scores, {members} member{'s' * (members > 1)}", **milliseconds(seconds, 2)})
    return rows


def peak_memory(sequences: int) -> float:
    """Largest resident memory (MB) of a fresh process that scores so many sequences, two at a time."""
    command = [sys.executable, "-m", "benchmarks.scores", "--evaluate", str(sequences)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def evaluate(sequences: int) -> None:
    """Score so many sequences of one member and print the largest resident memory (MB) after any update.

    Small frames, as they take less time and hide less of what would be kept of each sequence.
    """
    forecast, target = rain(2, members=1, size=32)
    scores = Scores(255, THRESHOLDS, LEADS)
    process, resident = psutil.Process(), []
    for _ in range(sequences // 2):
        scores.update(forecast, target)
        resident.append(process.memory_info().rss)
    print(max(resident) / 2**20)


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--evaluate", type=int, help=argparse.SUPPRESS)  # the child process of `peak_memory`
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.evaluate:
        return evaluate(args.evaluate)

    compared, together = compare(args.sequences, args.turns), time_all(args.turns)
    memory = {f"peak_mb_{sequences}_sequences": peak_memory(sequences) for sequences in (10, 1000)}
    print(f"ms per sequence of {LEADS} x {SIZE} x {SIZE}, {len(THRESHOLDS)} thresholds, one thread: median (shortest)")
    for row in compared:
        print(row["what"])
        print(f"    {'ours':12s} {row['ours_median_ms']:6.2f} ({row['ours_shortest_ms']:6.2f})")
        for way in REFERENCES:
            taken = f"{row[f'{way}_median_ms']:6.2f} ({row[f'{way}_shortest_ms']:6.2f})"
            faster, shortest = (row[f"times_faster_than_{way}_{key}"] for key in ("median", "shortest"))
            print(f"    {way.replace('_', ' '):12s} {taken}   ours is {faster:.1f} ({shortest:.1f}) times faster")
    for row in together:
        print(f"{row['what']:40s} ours {row['ours_median_ms']:6.2f} ({row['ours_shortest_ms']:6.2f})")
    print("   ".join(f"{name} {value:.0f}" for name, value in memory.items()))
    if args.json:
        results = {"compared": compared, "together": together, "memory": memory}
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
