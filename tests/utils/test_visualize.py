from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.ndimage import gaussian_filter

from utils.errors import InputError
from utils.visualize import Coordinates, Style, Styled, draw_animation, draw_strip, render

STYLE = Style(
    scale=255,
    bounds=(0, 16, 74, 160, 219, 255),
    colors=("#f2f2f2", "#9ad1a0", "#0b5d2e", "#f4dc3a", "#8e1f8f"),
    units="VIL byte",
)
PERCENT = Style(scale=100, bounds=(0, 1, 50, 100), colors=("#f2f2f2", "#41b6c4", "#081d58"), units="%")
WHERE = Coordinates(interval=5, pixel_km=4)
COLORS = [tuple(bytes.fromhex(color[1:])) for color in STYLE.colors]
GREY = (0xDC, 0xDC, 0xDC)
PACK = np.array([1 << 16, 1 << 8, 1])  # one number from red, green and blue


def storms(frames, size, seed):
    """Frames (T, H, W) of blobs that reach all colours, as bytes / 255."""
    noise = np.random.default_rng(seed).standard_normal((frames, *size))
    blobs = gaussian_filter(noise, (1, 2.5, 2.5))
    ranks = blobs.argsort(axis=None).argsort().reshape(blobs.shape) / blobs.size
    return np.float32((ranks**6 * 255).round() / 255)


def rgb(image):
    return np.asarray(image.convert("RGB"))


def corners(picture, frame, style=STYLE):
    """Where a frame, enlarged to sides of at least 200 pixels, stands in a picture: a list of (y, x)."""
    zoom = max(1, int(np.ceil(200 / min(frame.shape))))
    panel = render(frame, style).repeat(zoom, 0).repeat(zoom, 1) @ PACK
    picture = picture @ PACK
    strongest = np.unravel_index(frame.repeat(zoom, 0).repeat(zoom, 1).argmax(), panel.shape)
    found = np.argwhere(picture == panel[strongest]) - strongest
    found = found[((found >= 0) & (found + panel.shape <= picture.shape)).all(1)]
    for probe in np.random.default_rng(0).integers(0, panel.shape, (60, 2)):
        y, x = (found + probe).T
        found = found[picture[y, x] == panel[tuple(probe)]]
    windows = sliding_window_view(picture, panel.shape)
    return [(y, x) for y, x in found.tolist() if (windows[y, x] == panel).all()]


def texts(figure):
    """What is written into a picture, in order."""
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("byte", "color"), [(0, 0), (15, 0), (16, 1), (73, 1), (74, 2), (159, 2), (160, 3), (219, 4), (255, 4)]
)
def test_bytes_at_a_bound_take_the_colour_above_it(byte, color):
    assert tuple(render(np.float32(byte) / 255, STYLE)) == COLORS[color]


def test_values_between_bytes_are_not_rounded_up_to_a_bound():
    assert tuple(render(np.float32(15.9 / 255), STYLE)) == COLORS[0]


def test_values_outside_the_range_take_the_outermost_colours():
    assert render([[-0.2, 1.3]], STYLE).tolist() == [[list(COLORS[0]), list(COLORS[-1])]]


def test_bounds_count_from_the_offset():
    style = replace(STYLE, offset=-32.0, bounds=(-32, -16, 42, 128, 187, 223))
    frames = np.arange(256, dtype=np.float32) / 255
    assert np.array_equal(render(frames, style), render(frames, STYLE))


def test_missing_data_are_grey():
    assert render([[np.nan, 0.0]], STYLE).tolist() == [[list(GREY), list(COLORS[0])]]


def test_a_style_needs_a_colour_between_each_two_bounds():
    with pytest.raises(ValueError, match="3 bounds and 3 colours"):
        Style(scale=1, bounds=(0, 1, 2), colors=("#000000",) * 3, units="")


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (201, 210)])
def test_strip_shows_lead_times_in_equal_steps_in_aligned_columns(tmp_path, size):
    inputs, target, trend = storms(5, size, 0), storms(20, size, 1), storms(20, size, 2)
    draw_strip(tmp_path / "strip.png", inputs, {"Target": target, "Trend": trend}, STYLE, WHERE)
    picture = rgb(Image.open(tmp_path / "strip.png"))

    rows = [[corners(picture, frame) for frame in frames] for frames in (inputs, target[3::4], trend[3::4])]
    assert all(len(places) == 1 for row in rows for places in row)
    ys, xs = zip(*[zip(*[places[0] for places in row], strict=True) for row in rows], strict=True)
    assert [len(set(y)) for y in ys] == [1, 1, 1]
    assert ys[0] < ys[1] < ys[2]
    assert xs[1] == xs[2] == tuple(sorted(xs[1]))
    assert xs[0] == xs[1]
    assert not any(corners(picture, target[i]) for i in (0, 2, 18))


def test_strip_names_rows_lead_times_units_and_scale(tmp_path):
    rows = {"Target": storms(20, (16, 16), 1), "DiffCast": storms(20, (16, 16), 2)}
    style = replace(STYLE, units="VIL byte\n(kg/m²)", meanings=("(0.15)", "(0.78)", "(7.1)", "(32)"))
    written = texts(draw_strip(tmp_path / "strip.png", storms(5, (16, 16), 0), rows, style, WHERE))
    assert written[:6] == ["Input", "-20 min", "-15 min", "-10 min", "-5 min", "0 min"]
    assert written[6:12] == ["Target", *(f"+{lead} min" for lead in (20, 40, 60, 80, 100))]
    assert written[12:18] == ["DiffCast", "VIL byte\n(kg/m²)", "16 (0.15)", "74 (0.78)", "160 (7.1)", "219 (32)"]
    assert written[18:] == ["20 km", ""]


@pytest.mark.parametrize(
    ("frames", "leads"),
    [(6, [1, 2, 3, 4, 5, 6]), (12, [2, 4, 6, 8, 10, 12]), (17, [3, 6, 9, 12, 15]), (25, [5, 10, 15, 20, 25])],
)
def test_lead_times_of_a_strip_are_multiples_of_one_step(tmp_path, frames, leads):
    row = {"Trend": np.zeros((frames, 9, 9))}
    written = texts(draw_strip(tmp_path / "strip.png", np.zeros((1, 9, 9)), row, STYLE, WHERE))
    assert [text for text in written if text.startswith("+")] == [f"+{5 * lead} min" for lead in leads]


def test_pictures_of_dated_frames_tell_valid_times(tmp_path):
    dated = replace(WHERE, time=datetime(2023, 5, 1, 23, 50))
    frames, rows = storms(2, (9, 9), 0), {"Trend": storms(3, (9, 9), 1)}
    written = texts(draw_strip(tmp_path / "strip.png", frames, rows, STYLE, dated))
    assert written[:3] == ["Input", "23:45 UTC\n-5 min", "23:50 UTC\n0 min"]
    assert written[4:7] == ["23:55 UTC\n+5 min", "00:00 UTC\n+10 min", "00:05 UTC\n+15 min"]
    assert written[-1] == "last input: 2023-05-01 23:50 UTC"
    written = texts(draw_animation(tmp_path / "play.gif", frames, rows, STYLE, dated))
    assert written[-1] == "2023-05-02 00:05 UTC, +15 min, forecast"


@pytest.mark.parametrize(("pixel_km", "text"), [(0.5, "2 km"), (4, "20 km"), (16, "50 km"), (27, "100 km")])
def test_scale_bar_is_as_long_as_it_says(tmp_path, pixel_km, text):
    row = {"Trend": np.zeros((1, 10, 10))}
    where = replace(WHERE, pixel_km=pixel_km)
    figure = draw_strip(tmp_path / "strip.png", np.zeros((1, 10, 10)), row, STYLE, where)
    assert text in texts(figure)
    black = (rgb(Image.open(tmp_path / "strip.png"))[-60:] == 0).all(-1)
    pixels = max(len(run) for line in black for run in "".join(".#"[pixel] for pixel in line.astype(int)).split("."))
    assert pixels == round(20 * float(text.split()[0]) / pixel_km)


def test_legends_stand_beside_the_rows_in_their_style(tmp_path):
    mean, chance = storms(3, (16, 16), 1), storms(3, (16, 16), 2)
    rows = {"Mean": mean, "P(VIL ≥ 74)": Styled(chance, PERCENT), "P(VIL ≥ 133)": Styled(chance, PERCENT)}
    figure = draw_strip(tmp_path / "strip.png", storms(2, (16, 16), 0), rows, STYLE, WHERE)
    picture = rgb(Image.open(tmp_path / "strip.png"))

    [(mean_top, _)] = corners(picture, mean[2])
    (first_top, x), (second_top, _) = corners(picture, chance[2], PERCENT)
    legends = (picture @ PACK)[:, x + 208 :]
    vil = np.argwhere(legends == int(STYLE.colors[-1][1:], 16))[:, 0]
    percent = np.argwhere(legends == int(PERCENT.colors[-1][1:], 16))[:, 0]
    assert vil.max() < mean_top + 208 < first_top <= percent.min() < percent.max() < second_top
    assert [text for text in texts(figure) if text in ("VIL byte", "%")] == ["VIL byte", "%"]
    assert texts(figure).count("+15 min") == 2


def test_legend_stacks_the_colours_evenly_from_low_to_high(tmp_path):
    draw_strip(tmp_path / "strip.png", np.zeros((2, 9, 9)), {"Trend": np.zeros((2, 9, 9))}, STYLE, WHERE)
    picture = rgb(Image.open(tmp_path / "strip.png"))
    column = picture[:, np.argwhere((picture == COLORS[-1]).all(-1))[0, 1]]
    stripes = [color for color in map(tuple, column.tolist()) if color in COLORS]
    assert list(dict.fromkeys(stripes)) == COLORS[::-1]
    assert np.ptp([stripes.count(color) for color in COLORS]) <= 1


def test_the_legend_of_a_tall_strip_is_four_panels_high(tmp_path):
    frames = np.zeros((1, 20, 20))
    draw_strip(tmp_path / "strip.png", frames, {f"Member {number}": frames for number in range(8)}, STYLE, WHERE)
    picture = rgb(Image.open(tmp_path / "strip.png"))
    top = np.argwhere((picture == COLORS[-1]).all(-1))[0]
    stripes = (picture[:, top[1]] @ PACK).tolist()
    assert sum(stripes.count(int(color[1:], 16)) for color in STYLE.colors) == 4 * 200


def test_strip_of_a_single_lead_time(tmp_path):
    target = storms(1, (16, 16), 1)
    draw_strip(tmp_path / "strip.png", storms(2, (16, 16), 0), {"Target": target}, STYLE, WHERE)
    assert len(corners(rgb(Image.open(tmp_path / "strip.png")), target[0])) == 1


def test_missing_data_are_hatched_and_explained(tmp_path):
    inputs = storms(2, (16, 16), 0)
    target = np.full((3, 16, 16), np.nan)
    figure = draw_strip(tmp_path / "strip.png", inputs, {"Target": target}, STYLE, WHERE)
    picture = rgb(Image.open(tmp_path / "strip.png"))
    assert "no data" in texts(figure)
    assert {GREY, (0x7D, 0x7D, 0x7D)} <= set(map(tuple, picture.reshape(-1, 3).tolist()))


def test_animation_plays_inputs_then_forecasts_and_rests_on_both_ends(tmp_path):
    inputs, target, trend = (storms(*key) for key in [(3, (20, 31), 0), (4, (20, 31), 1), (4, (20, 31), 2)])
    draw_animation(tmp_path / "play.gif", inputs, {"Target": target, "Trend": trend}, STYLE, WHERE)

    with Image.open(tmp_path / "play.gif") as movie:
        assert movie.n_frames == 7
        assert movie.info["loop"] == 0
        pictures, durations = [], []
        for time in range(7):
            movie.seek(time)
            pictures.append(rgb(movie))
            durations.append(movie.info["duration"])
    assert durations == [200, 200, 1000, 200, 200, 200, 1000]
    assert all(len(corners(picture, frame)) == 2 for picture, frame in zip(pictures, inputs, strict=False))
    left = [corners(picture, frame) for picture, frame in zip(pictures[3:], target, strict=True)]
    right = [corners(picture, frame) for picture, frame in zip(pictures[3:], trend, strict=True)]
    assert left == [left[0]] * 4
    assert right == [right[0]] * 4
    assert left[0][0][0] == right[0][0][0]
    assert left[0][0][1] < right[0][0][1]


def test_animation_tells_the_time(tmp_path, monkeypatch):
    written, set_text = [], Text.set_text
    monkeypatch.setattr(Text, "set_text", lambda self, text: (written.append(text), set_text(self, text)))
    draw_animation(tmp_path / "play.gif", storms(2, (9, 9), 0), {"Trend": storms(20, (9, 9), 1)}, STYLE, WHERE)
    assert "Trend" in written
    assert written[-22:-19] == ["-5 min, observed", "0 min, observed", "+5 min, forecast"]
    assert written[-1] == "+100 min, forecast"


def test_animation_wraps_more_than_four_panels_into_even_lines(tmp_path):
    rows = {f"Member {seed}": storms(1, (50, 50), seed) for seed in range(1, 6)}
    draw_animation(tmp_path / "play.gif", storms(1, (50, 50), 0), rows, STYLE, WHERE)
    with Image.open(tmp_path / "play.gif") as movie:
        movie.seek(1)
        places = [corners(rgb(movie), frames[0]) for frames in rows.values()]
    ys, xs = zip(*[place[0] for place in places], strict=True)
    assert len(set(ys[:3])) == len(set(ys[3:])) == 1
    assert ys[3] > ys[0] + 200
    assert xs[3:] == xs[:2]
    assert xs[:3] == tuple(sorted(xs[:3]))


def test_panels_in_another_style_are_empty_while_the_inputs_play(tmp_path):
    inputs, mean, chance = storms(1, (20, 20), 0), storms(1, (20, 20), 1), storms(1, (20, 20), 2)
    rows = {"Mean": mean, "P(VIL ≥ 74)": Styled(chance, PERCENT)}
    draw_animation(tmp_path / "play.gif", inputs, rows, STYLE, WHERE)
    with Image.open(tmp_path / "play.gif") as movie:
        observed = rgb(movie)
        movie.seek(1)
        forecast = rgb(movie)
    [(y, x)] = corners(forecast, chance[0], PERCENT)
    assert (observed[y : y + 200, x : x + 200] == 255).all()
    assert corners(observed, inputs[0]) == corners(forecast, mean[0])


def test_a_long_title_does_not_reach_into_its_neighbour(tmp_path):
    frames = storms(1, (9, 9), 0)
    figure = draw_animation(tmp_path / "play.gif", frames, {"A backbone with a very long name": frames}, STYLE, WHERE)
    title = next(text for text in texts(figure) if text.startswith("A backbone with"))
    assert title.endswith("…")


def test_styles_that_do_not_fit_into_the_palette_of_a_gif_are_refused(tmp_path):
    many = Style(1, tuple(range(257)), tuple(f"#0000{blue:02x}" for blue in range(256)), "")
    with pytest.raises(ValueError, match="at most"):
        draw_animation(tmp_path / "a.gif", np.zeros((2, 9, 9)), {"A": Styled(np.zeros((2, 9, 9)), many)}, STYLE, WHERE)


def test_animation_of_a_full_sequence_is_a_small_file(tmp_path):
    rows = {label: storms(20, (128, 128), seed) for seed, label in enumerate(["Target", "Trend", "DiffCast"])}
    draw_animation(tmp_path / "play.gif", storms(5, (128, 128), 9), rows, STYLE, WHERE)
    assert (tmp_path / "play.gif").stat().st_size < 600_000


@pytest.mark.parametrize("draw", [draw_strip, draw_animation])
def test_pictures_contain_only_the_legend_and_grey_text(tmp_path, draw):
    path = tmp_path / ("strip.png" if draw is draw_strip else "play.gif")
    draw(path, storms(2, (16, 16), 0), {"Trend": storms(3, (16, 16), 1)}, STYLE, WHERE)
    image = Image.open(path)
    image.seek(image.n_frames - 1 if draw is draw_animation else 0)
    colors = {tuple(color) for color in np.unique(rgb(image).reshape(-1, 3), axis=0).tolist()}
    assert all(r == g == b for r, g, b in colors - set(COLORS))
    assert set(COLORS) <= colors


@pytest.mark.parametrize("draw", [draw_strip, draw_animation])
def test_a_missing_folder_is_the_users_error(tmp_path, draw):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere" / "picture.png", tmp_path / "file" / "picture.png"):
        with pytest.raises(InputError, match=str(path)):
            draw(path, storms(2, (9, 9), 0), {"Trend": storms(2, (9, 9), 1)}, STYLE, WHERE)


def test_a_failed_write_keeps_the_old_picture_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def disk_full(figure, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "strip.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", disk_full)
    with pytest.raises(InputError, match="No space left on device"):
        draw_strip(tmp_path / "strip.png", storms(2, (9, 9), 0), {"Trend": storms(2, (9, 9), 1)}, STYLE, WHERE)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("strip.png", b"old")]


def test_frames_of_different_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one size"):
        draw_strip(tmp_path / "strip.png", storms(2, (9, 9), 0), {"Trend": storms(2, (9, 8), 1)}, STYLE, WHERE)


@pytest.mark.parametrize(("draw", "suffix", "panels"), [(draw_strip, "png", 4), (draw_animation, "gif", 1)])
def test_a_map_lies_over_every_panel_and_over_missing_data(tmp_path, draw, suffix, panels):
    over = np.ma.masked_all((200, 400), np.uint8)
    over[100:103, 4] = 0x33, 0x55, 0xEE  # shades that a GIF keeps, where missing data are hatched
    frames = np.full((2, 50, 100), np.nan)
    path = tmp_path / f"map.{suffix}"
    draw(path, frames, {"Trend": frames}, STYLE, replace(WHERE, map=over))
    above, middle, below = ((rgb(Image.open(path)) == shade).all(-1) for shade in (0x33, 0x55, 0xEE))
    assert (above[:-2] & middle[1:-1] & below[2:]).sum() == panels


def test_lines_stand_a_round_number_of_kilometres_apart():
    coordinates = Coordinates(5, pixel_km=2, grid=True)
    lines = coordinates.lines((120, 100))  # 240 x 200 km
    assert coordinates.spacing(100) == 50
    assert np.flatnonzero(lines[-1]).tolist() == [25, 50, 75]  # from the left
    assert np.flatnonzero(lines[::-1, 0]).tolist() == [25, 50, 75, 100]  # from below
    assert not Coordinates(5, 2).lines((120, 100)).any()
