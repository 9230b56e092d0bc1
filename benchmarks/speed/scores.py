"""Time the scores against scripts in NumPy and scikit-image.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scores [--sequences 4] [--turns 5] [--json result.json]

There are two references, both with scikit-image's SSIM and block_reduce. The lean loop does nothing twice. The usual
script is written as scripts of the field are: for each frame and threshold it pools both frames (for CSI-pool4 and
CSI-pool16) and calls a function that makes them binary and multiplies them; the errors come from scikit-image.
All get the same fields on one thread, are timed in turn (CPU time, as machines are shared), and must agree. Then follow
the time of all scores together and the memory after 10 and after 1,000 sequences.
"""

import time
import timeit
from collections.abc import Callable
from functools import partial

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal
from skimage.measure import block_reduce
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from benchmarks.speed.measuring import Form, arguments, summary, table, write_numbers
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
    """Make forecasts `(B, M, T, 1, H, W)` and targets `(B, T, 1, H, W)` in [0, 1].

    They are smooth moving fields, two thirds of them dry.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(sequences * (members + 1), 1, 4, 12, 12, generator=generator)
    fields = F.interpolate(noise, (LEADS, size, size), mode="trilinear").view(
        sequences, members + 1, LEADS, 1, size, size
    )
    target = fields[:, 0]
    forecast = 0.7 * target[:, None] + 0.5 * fields[:, 1:]
    return (0.5 * forecast - 0.1).clamp(0, 1), (255 * (0.5 * target - 0.1).clamp(0, 1)).floor() / 255


def frame_similarity(forecast: np.ndarray, target: np.ndarray) -> float:
    """SSIM of one frame by scikit-image with the settings of Wang et al. 2004."""
    return structural_similarity(
        target.astype(np.float64),
        forecast.astype(np.float64),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def lean_frame(x: np.ndarray, y: np.ndarray, pools: tuple[int, ...], similarity: bool):
    """Counts `(P, 4, K)` and errors `(5,)` of a frame, without waste."""
    mse = np.mean((x - y) ** 2)
    rmse = np.sqrt(mse)
    ssim = frame_similarity(x, y) if similarity else 0
    counts = np.zeros((len(pools), 4, len(THRESHOLDS)), dtype=np.int64)
    for p, pool in enumerate(pools):
        a, b = pooled(x, y, pool)
        for k, threshold in enumerate(THRESHOLDS):
            counts[p, 0, k] = np.sum((a >= threshold) & (b >= threshold))
            counts[p, 1, k] = np.sum((a < threshold) & (b >= threshold))
            counts[p, 2, k] = np.sum((a >= threshold) & (b < threshold))
            counts[p, 3, k] = np.sum((a < threshold) & (b < threshold))
    return counts, (mse, np.mean(np.abs(x - y)), rmse, 20 * np.log10(255 / rmse), ssim)


def usual_frame(x: np.ndarray, y: np.ndarray, pools: tuple[int, ...], similarity: bool):
    """The result of `lean_frame` with a function call per threshold, as in scripts of the field."""
    counts = np.zeros((len(pools), 4, len(THRESHOLDS)), dtype=np.int64)
    for p, pool in enumerate(pools):
        for k, threshold in enumerate(THRESHOLDS):
            counts[p, :, k] = binary_counts(*pooled(x, y, pool), threshold)
    return counts, frame_errors(x, y, similarity)


def pooled(x: np.ndarray, y: np.ndarray, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of two frames in blocks of `pool x pool` pixels."""
    return (x, y) if pool == 1 else tuple(block_reduce(field, (pool, pool), np.max) for field in (x, y))


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


def loop(frame: Callable, forecast: np.ndarray, target: np.ndarray, pools: tuple[int, ...], similarity: bool):
    """Counts `(P, 4, K, T)` and mean errors `(5, T)` of fields `(N, T, H, W)`, frame by frame."""
    counts = np.zeros((len(pools), 4, len(THRESHOLDS), LEADS), dtype=np.int64)
    errors = np.zeros((len(forecast), 5, LEADS))
    for n in range(len(forecast)):
        for t in range(LEADS):
            fields = (255 * np.clip(field[n, t], 0, 1) for field in (forecast, target))
            added, errors[n, :, t] = frame(*fields, pools, similarity)
            counts[..., t] += added
    return counts, errors.mean(axis=0)


REFERENCES = {"lean loop": lean_frame, "usual script": usual_frame}


def ours(forecast: Tensor, target: Tensor, pools: tuple[int, ...], similarity: bool):
    """The result of `loop` by the scores of this project."""
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
        ways = {way: partial(loop, frame, *fields, *case) for way, frame in REFERENCES.items()}
        found = ours(forecast, target, *case)
        for way in ways.values():
            expected = way()
            assert_array_equal(found[0], expected[0])
            assert_allclose(found[1], expected[1], rtol=2e-6)
        taken = milliseconds(turns, sequences, {"ours": partial(ours, forecast, target, *case), **ways})
        for way, times in taken.items():
            slower = times["median"] / taken["ours"]["median"]
            rows.append({"scores": name, "by": way, **_milliseconds(times), "times slower": slower})
    return rows


def milliseconds(turns: int, sequences: int, forms: dict[str, Form]) -> dict[str, dict[str, float]]:
    """CPU time of each function per sequence, in turn.

    A turn is the mean over as many calls as take 0.2 s.
    """
    times = {name: [] for name in forms}
    for _ in range(turns):
        for name, form in forms.items():
            calls, total = timeit.Timer(form, timer=time.process_time).autorange()
            times[name].append(1e3 * total / calls / sequences)
    return {name: summary(each) for name, each in times.items()}


def _milliseconds(times: dict[str, float]) -> dict[str, float]:
    return {"ms/sequence": times["median"], "shortest ms": times["shortest"]}


def time_all(turns: int) -> list[dict]:
    """Time all scores together, for one member and for eight."""
    rows = []
    for members in (1, 8):
        form = partial(update_all, *rain(2, members), members)
        times = milliseconds(turns, 2, {"": form})[""]
        rows.append({"scores": f"all of {members} member(s)", "by": "ours", **_milliseconds(times)})
    return rows


def update_all(forecast: Tensor, target: Tensor, members: int) -> None:
    """Compute all scores of some sequences."""
    Scores(255, THRESHOLDS, LEADS, members).update(forecast, target)


def peak_memory() -> dict[str, float]:
    """Largest resident memory (MB) while scoring the first 10 sequences, and 1,000.

    Frames are small, because they take less time and hide less memory that would be kept of each sequence.
    """
    forecast, target = rain(2, members=1, size=32)
    scores = Scores(255, THRESHOLDS, LEADS)
    process, resident = psutil.Process(), []
    for _ in range(500):
        scores.update(forecast, target)
        resident.append(process.memory_info().rss / 2**20)
    return {"10 sequences": max(resident[:5]), "1,000 sequences": max(resident)}


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the numbers."""
    parser = arguments(__doc__)
    parser.add_argument("--sequences", type=int, default=4, help="sequences that are scored at once")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each way")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    memory = peak_memory()
    rows = [*compare(args.sequences, args.turns), *time_all(args.turns)]
    print(f"{LEADS} x {SIZE} x {SIZE} pixels, {len(THRESHOLDS)} thresholds, one thread")
    print(table(rows))
    print("largest memory:", ", ".join(f"{name} {value:.0f} MB" for name, value in memory.items()))
    write_numbers(args, rows=rows, memory=memory)


if __name__ == "__main__":
    main()
