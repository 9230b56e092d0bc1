"""The tables of a report."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from diffcast.evaluation.results import fields_of
from diffcast.report.bootstrap import COMPARED, LEVEL, Difference
from diffcast.report.charts import threshold_titles
from diffcast.report.definitions import DEFINITIONS, DIAGRAMS, UNDEFINED, Definition
from diffcast.report.evaluation import Entry
from diffcast.report.markup import Html, escape, table, tag
from diffcast.report.published import CAUTION, Published
from diffcast.report.svg import GLYPHS, SERIES

GROUPS = {
    "Events": ("csi", "csi_total", "csi_pool4", "csi_pool16", "hss", "ets", "pod", "far", "bias"),
    "Fields": ("mse", "mae", "rmse", "psnr", "ssim", "spectrum_ratio_high"),
    "Ensemble": (
        *("crps", "crps_fair", "csi_warning", "skill", "spread", "spread_skill_ratio"),
        *("rank_deviation", "rank_deviation_wet"),
    ),
}
BY_THRESHOLD = {
    "csi": "csi_per_threshold",
    "bias": "bias_per_threshold",
    "twcrps": "twcrps",
    "brier": "brier",
    "roc_area": "roc_area",
    "csi_warning": "csi_warning_per_threshold",
    "warning_probability": "warning_probability",
}


def swatch(series: int) -> Html:
    """The colour and marker of an entry."""
    glyph = GLYPHS[series % len(GLYPHS)]
    return tag("span", glyph, style=f"color:var(--series-{series % len(SERIES)})", aria_hidden="true")


def name_cell(entries: Sequence[Entry], series: int) -> Html:
    """The name of an entry behind its swatch."""
    return tag("span", swatch(series), "\N{NO-BREAK SPACE}", entries[series].label, class_="entry")


def summary(entries: Sequence[Entry]) -> list[Html]:
    """All scalar scores in three tables with a row per forecast."""
    rows = list(_rows(entries))
    return [_score_table(title, keys, rows) for title, keys in GROUPS.items()]


def _rows(entries: Sequence[Entry]) -> Iterator[tuple[Html, dict]]:
    for i, entry in enumerate(entries):
        yield name_cell(entries, i), entry.scores
        for label, scores in fields_of(entry.scores):
            yield tag("span", label, class_="variant"), scores


def _score_table(title: str, keys: Sequence[str], rows: list[tuple[Html, dict]]) -> Html:
    columns = {key: [_score(scores, key) for _, scores in rows] for key in keys}
    columns = {key: values for key, values in columns.items() if not np.isnan(values).all()}
    cells = {key: _marked(DEFINITIONS[key], values) for key, values in columns.items()}
    if "psnr" in cells:
        perfect = [scores.get("perfect_frames") or 0 for _, scores in rows]
        cells["psnr"] = [
            _infinite(number) if number else cell for number, cell in zip(perfect, cells["psnr"], strict=True)
        ]
    shown = [i for i in range(len(rows)) if not all(np.isnan(values[i]) for values in columns.values())]
    header = ["", *(DEFINITIONS[key].heading for key in columns)]
    return table(header, [[rows[i][0], *(column[i] for column in cells.values())] for i in shown], title)


def _score(scores: dict, key: str) -> float:
    """A scalar score. The PSNR is infinite if a frame is perfect."""
    return np.inf if key == "psnr" and scores.get("perfect_frames") else _number(scores.get(key))


def _infinite(frames: int) -> str:
    return f"∞ ({frames:,} perfect {'frame' if frames == 1 else 'frames'})"


def _marked(definition: Definition, values: Sequence[float]) -> list[Html]:
    """The cells of a column. The best is marked unless all are equal."""
    best = definition.best(values)
    is_best = [round(value, definition.digits) == best for value in values]
    texts = [definition.format(value) for value in values]
    differ = len(set(texts) - {UNDEFINED}) > 1
    return [
        tag("strong", text, title="best") if differ and wins else escape(text)
        for text, wins in zip(texts, is_best, strict=True)
    ]


def by_threshold(entries: Sequence[Entry]) -> list[Html]:
    """The most important scores of each threshold, a table per score."""
    found = [of_one for score, key in BY_THRESHOLD.items() for of_one in _threshold_table(entries, score, key)]
    return [*found, *_empty_cells(entries)]


def _threshold_table(entries: Sequence[Entry], score: str, key: str) -> list[Html]:
    values = {i: found for i, entry in enumerate(entries) if (found := entry.array(key)) is not None}
    if score in ("csi", "csi_warning"):
        values = {i: np.where(_is_empty(entries[i]), np.nan, found) for i, found in values.items()}
    if not values:
        return []
    columns = [_marked(DEFINITIONS[score], column) for column in np.transpose(list(values.values()))]
    rows = [[name_cell(entries, i), *(column[n] for column in columns)] for n, i in enumerate(values)]
    caption = f"{DEFINITIONS[score].heading} by threshold in {entries[0].evaluation.source['units']}"
    return [table(["", *threshold_titles(entries[0], with_units=False)], rows, caption)]


def _is_empty(entry: Entry) -> np.ndarray | bool:
    """Thresholds that neither forecast nor observation reaches."""
    counts = [entry.array("counts", name) for name in ("hits", "misses", "false_alarms")]
    return False if any(count is None for count in counts) else sum(counts).sum(axis=1) == 0


def _empty_cells(entries: Sequence[Entry]) -> list[Html]:
    """A note on the cells that count as CSI 0."""
    source = entries[0].evaluation.source
    cells = len(source["thresholds"]) * source["frames_out"]
    empty = {entry.label: entry.scores.get("csi_empty_cells") or 0 for entry in entries}
    numbers = ", ".join(f"{label} {number}" for label, number in empty.items() if number)
    note = (
        f"The mean CSI is over {cells} cells, one per threshold and lead time. A cell counts as 0 if the event was "
        f"neither forecast nor observed. Number of such cells: {numbers}."
    )
    return [tag("p", note, class_="note")] if numbers else []


def published(entries: Sequence[Entry], literature: Published) -> list[Html]:
    """Our scores above those of the literature, reduced in the same way."""
    keys = list(literature.columns.values())
    rows = [
        [name, *(DEFINITIONS[key].format(_number(scores.get(key))) for key in keys)] for name, scores in _rows(entries)
    ]
    for name, *values in literature.rows:
        cells = [DEFINITIONS[key].format(value) for key, value in zip(keys, values, strict=True)]
        rows.append([tag("span", name, class_="cited"), *cells])
    notes = tag("p", literature.note, " ", tag("strong", CAUTION), class_="note")
    return [table(["", *literature.columns], rows, literature.title), notes]


def differences(entries: Sequence[Entry], found: Sequence[dict[str, Difference]], reference: dict) -> Html:
    """Each further entry minus the first: value, interval and verdict."""
    header = ["", name_cell(entries, 0), *(name_cell(entries, i) for i in range(1, len(entries)))]
    rows = []
    for key in _compared_order(reference):
        definition = definition_of(key)
        if np.isfinite(reference[key]):
            cells = [_difference_cell(definition, of_one[key]) for of_one in found]
            rows.append([definition.heading, definition.format(reference[key]), *cells])
    return table(header, rows, f"Difference to {entries[0].label}, {LEVEL:.0%} interval", class_="differences")


def definition_of(key: str) -> Definition:
    """The definition of a compared score."""
    if key in DEFINITIONS:
        return DEFINITIONS[key]
    return Definition(f"CSI ≥ {key.removeprefix('csi_')}", "higher", 4, "")


def _compared_order(keys) -> list[str]:
    """CSI first, then that of the highest thresholds, then the others."""
    rare = [key for key in keys if key not in COMPARED]
    return [COMPARED[0], *rare, *COMPARED[1:]]


def _difference_cell(definition: Definition, found: Difference) -> Html:
    if not np.isfinite(found.value):
        return escape(UNDEFINED)
    value = definition.format(found.value, "+")
    if not np.isfinite(found.low):
        return tag("span", value, tag("small", "no interval"))
    interval = f"[{definition.format(found.low, '+')}, {definition.format(found.high, '+')}]"
    verdict = "unclear"
    if found.low > 0 or found.high < 0:
        verdict = "better" if definition.gain(found.value, 0.0) > 0 else "worse"
    return tag("span", tag("b", value), tag("small", interval), tag("span", verdict, class_=f"verdict {verdict}"))


def definitions(entries: Sequence[Entry]) -> Html:
    """One sentence per score and diagram shown."""
    keys = {key for entry in entries for key in entry.scores}
    items = [(found.label, found.meaning) for key, found in DEFINITIONS.items() if key in keys]
    items += [found for key, found in DIAGRAMS.items() if key in keys]
    pairs = [(tag("dt", label), tag("dd", meaning)) for label, meaning in items]
    return tag("dl", *(part for pair in pairs for part in pair), class_="definitions")


def facts(entries: Sequence[Entry]) -> Html:
    """What was evaluated, on what, when and how, in one cell where all entries agree."""
    columns = [_facts(entry) for entry in entries]
    texts = {key: [UNDEFINED if column[key] is None else column[key] for column in columns] for key in columns[0]}
    rows = [[label, *_merged(cells)] for label, cells in texts.items() if set(cells) != {UNDEFINED}]
    return table(["", *(name_cell(entries, i) for i in range(len(entries)))], rows, "Runs", class_="texts")


def _merged(cells: list) -> list:
    """One cell for all if they are equal."""
    return cells[:1] if all(cell == cells[0] for cell in cells) else cells


def _facts(entry: Entry) -> dict[str, object]:
    evaluation = entry.evaluation
    about, how = evaluation.section("about"), entry.settings
    source, checkpoint = evaluation.source, entry.checkpoint
    height_width = " by ".join(map(str, source["frame_shape"][1:]))
    hash_ = str(checkpoint.get("sha256") or "")
    step = f", step {checkpoint['step']}" if checkpoint.get("step") is not None else ""
    steps = f", {how['sampling_steps']} network evaluations per segment" if how.get("sampling_steps") else ""
    chosen_on = entry.members > 1 and evaluation.metrics.get("validation_sequences")
    return {
        "Data": source["name"] if source["synthetic"] else f"{how.get('dataset', '')} {source['name']}".strip(),
        "Sequences": evaluation.metrics["sequences"],
        "Frames": f"{source['frames_in']} → {source['frames_out']}, every {source['interval']:g} min",
        "Frame": f"{height_width} pixels of {source['pixel_km']:g} km",
        "Members": entry.members,
        "Warnings": f"chosen on {chosen_on} validation sequences" if chosen_on else None,
        "Sampler": f"{how['sampler']}{steps}" if how.get("sampler") else None,
        "Seed": how.get("seed"),
        "Checkpoint": f"{checkpoint['label']}{step}" if checkpoint.get("label") else None,
        "SHA-256": tag("code", hash_[:16], title=hash_) if hash_ else None,
        "Commit": tag("code", str(about["commit"])[:12], title=about["commit"]) if about.get("commit") else None,
        "Date": about.get("date"),
        "Version": about.get("version"),
        "Command": tag("code", about["command"]) if about.get("command") else None,
    }


def settings(entries: Sequence[Entry]) -> Html:
    """All settings. Those that differ between runs come first, in bold."""
    columns = [entry.settings for entry in entries]
    keys = dict.fromkeys(key for column in columns for key in column)
    texts = {key: [_setting(column[key]) if key in column else UNDEFINED for column in columns] for key in keys}
    differs = {key: len(set(values) - {UNDEFINED}) > 1 for key, values in texts.items()}
    rows = [
        [tag("b", key) if differs[key] else key, *_merged(values)]
        for key, values in sorted(texts.items(), key=lambda item: not differs[item[0]])
    ]
    return table(["", *(name_cell(entries, i) for i in range(len(entries)))], rows, "Settings", class_="texts")


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else np.nan
