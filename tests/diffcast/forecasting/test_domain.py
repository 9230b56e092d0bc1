"""The part of a map that radars see."""

import torch

from diffcast.forecasting.domain import observed_part, put_back
from tests.diffcast.forecasting.test_steps import frames_in_dbz, nowcaster


def test_a_part_holds_all_valid_pixels_and_goes_back_to_its_place():
    frames = torch.full((2, 1, 6, 8), torch.nan)
    frames[0, 0, 2, 3], frames[1, 0, 4, 6] = 0.5, 0.25
    part = observed_part(frames)
    assert part == (slice(2, 5), slice(3, 7))
    assert torch.equal(put_back(frames[(..., *part)], part, (6, 8)).nan_to_num(), frames.nan_to_num())
    assert observed_part(torch.full((2, 1, 6, 8), torch.nan)) == (slice(None), slice(None))


def test_padding_does_not_change_nowcasts():
    frames = frames_in_dbz()
    padded = torch.nn.functional.pad(frames, (0, 9, 0, 5), value=torch.nan)
    for name, made in nowcaster().forecast(padded).items():
        height, width = frames.shape[-2:]
        assert not made[..., height:, :].any()
        assert not made[..., width:].any()
        if name != "steps":  # whose seed depends on the frames
            assert torch.equal(made[..., :height, :width], nowcaster().forecast(frames)[name])
