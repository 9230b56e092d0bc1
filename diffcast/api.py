"""The functions of `import diffcast`, for notebooks and programs."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dataset import build_dataset
from dataset.sequences import Sequences
from dataset.source import Source
from diffcast.forecaster import Architecture, load_forecaster, place
from diffcast.forecasting import forecasts
from diffcast.forecasting.forecasts import ForecastSettings, check_members, forecast_bar
from diffcast.forecasting.pictures import draw_forecast
from diffcast.loading import generators
from utils.checkpoint import find_weights
from utils.errors import InputError


def load(path: str | Path, device: str | torch.device | None = None, backbone: str | None = None) -> nn.Module:
    """Load a forecaster in evaluation mode.

    Args:
        path: our safetensors, a checkpoint folder, or an official checkpoint of frames of 128 x 128 pixels.
        device: where the forecaster runs. The default is the first GPU, or the processor if there is none.
        backbone: class of the backbone as `package.module:Class`, if the weights belong to your own.

    Returns:
        A `DiffCast` or a `Backbone`, with the attributes `frame_shape`, `frames_in` and `frames_out`. `trained_on` is
        what the checkpoint says about its frames, such as their units, or None.

    Raises:
        InputError: the file does not exist, is damaged, or does not say which network it belongs to.
    """
    model, _ = load_forecaster(find_weights(str(path), Path()), backbone)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return place(model, torch.device(device or default)).eval()


class Nowcasts(Dataset):
    """Pairs of observed and future frames.

    Their shapes are `(T_in, 1, H, W)` and `(T_out, 1, H, W)`.

    Values lie in [0, 1], or are NaN where data are missing. `source` has units, scale and thresholds.
    """

    def __init__(self, sequences: Sequences, frames_in: int):
        self.sequences = sequences
        self.frames_in = frames_in
        self.source = sequences.source

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        observed, future = self.sequences[index].tensor_split([self.frames_in])
        return observed, future


def dataset(name: str, split: str, path: str | Path, like: nn.Module | None = None, **options) -> Nowcasts:
    """Open a split of a data set.

    Args:
        name: a key of `dataset.DATASETS`, such as "sevir", "frames" or "synthetic".
        split: "train", "valid" or "test".
        path: folder or file of the data.
        like: the forecaster whose frame size and lengths the items get. The default is the paper's 5 -> 20 frames of
            128 x 128 pixels.
        options: `stride`, `split_scheme`, `packed_path`, `scale`, `crop` or `crop_by` of `dataset.build_dataset`.

    Raises:
        InputError: the name is unknown, or the data cannot be used.
    """
    like = Architecture() if like is None else like
    length = like.frames_in + like.frames_out
    return Nowcasts(build_dataset(name, split, path, like.frame_shape[1:], length, **options), like.frames_in)


def batches(data: Nowcasts, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Load batches of observed and future frames.

    Both have the shape `(B, T, 1, H, W)`. Sequences keep their order.
    """
    return DataLoader(data, batch_size, num_workers=num_workers)


def forecast(model: nn.Module, observed: Tensor, members: int = 1, seed: int = 0, **options) -> Tensor:
    """Forecast an ensemble, with the defaults of the command line.

    The noise of a sequence depends on the seed and on the position of the sequence in the batch. A progress bar appears
    if the forecast takes longer than a few seconds.

    Args:
        model: what `load` returns.
        observed: frames `(B, T_in, C, H, W)` in [0, 1], NaN where data are missing. They may have any height and
            width. Maps larger than the frames of the model are forecast in overlapping tiles.
        members: members of the ensemble. A backbone alone has one.
        seed: seed of the noise.
        options: other fields of `ForecastSettings`: `sampler` (a name or a function), `sampling_steps`,
            `forecast_batch`, `forecast_precision`, `compile`, `tile`.

    Returns:
        Frames `(B, members, T_out, C, H, W)` in [0, 1] on the device of `observed`.

    Raises:
        InputError: `observed` has another shape or range, or an option is impossible.
    """
    settings = ForecastSettings(members=members, seed=seed, **options)
    _check(model, observed)
    check_members(model, settings)
    device = next(model.parameters(), observed).device
    draws = generators(device, seed, 3, range(len(observed)))
    with forecast_bar(model, len(observed) * members) as bar:
        made = forecasts.forecast(model, observed.to(device).float(), settings, draws, bar.update)
    return made.ensemble.to(observed.device)


def _check(model: nn.Module, observed: Tensor) -> None:
    frames, channels = model.frames_in, model.frame_shape[0]
    if not isinstance(observed, Tensor):
        raise InputError(f"observed must be a tensor, not {type(observed).__name__}; use torch.from_numpy.")
    if observed.ndim != 5 or tuple(observed.shape[1:3]) != (frames, channels) or 0 in observed.shape:
        raise InputError(
            f"observed must have the shape (B, T, C, H, W) = (B, {frames}, {channels}, H, W), not "
            f"{tuple(observed.shape)}."
        )
    valid = observed[~observed.isnan()] if observed.is_floating_point() else observed
    if valid.numel() and not 0 <= valid.min() <= valid.max() <= 1:
        low, high = valid.min().item(), valid.max().item()
        raise InputError(f"observed must lie in [0, 1], not in [{low:g}, {high:g}]; divide bytes by 255.")


def draw(
    path: str | Path,
    observed: Tensor,  # (T_in, C, H, W)
    future: Tensor | None,  # (T_out, C, H, W), if it was observed
    ensemble: Tensor,  # (M, T_out, C, H, W)
    source: Source,
) -> Figure:
    """Draw a forecast to a PNG, PDF or GIF file.

    Frames lie in [0, 1], or are NaN where data are missing. The suffix of the path determines the format, and a GIF is
    an animation. The figure that is returned has the observed frames, the future, up to three members and their mean.

    Raises:
        InputError: the suffix is another one, or the file cannot be written.
    """
    return draw_forecast(Path(path), observed, future, ensemble, source)
