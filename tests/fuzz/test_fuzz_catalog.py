import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.sequences import SPLITS
from dataset.sevir import catalog
from dataset.sevir.catalog import SCHEMES, Event, read_events
from dataset.sevir.reader import Sevir
from tests.dataset.conftest import COLUMNS, SevirFolder
from tests.fuzz.children import ACCEPTED, INPUTS, REFUSED, fuzz, mutate
from utils.errors import InputError

texts = st.text(max_size=30)
values = {
    "id": st.sampled_from(["A", "B", "../A", "", "A" * 99]) | texts,
    "file_name": st.sampled_from(["vil/2018/SEVIR_VIL_2018.h5", "../x", "C:\\x", "\0", "x" * 5000]) | texts,
    "file_index": st.integers().map(str) | st.sampled_from(["1e3", "9" * 5000, "٣", "-0"]) | texts,
    "img_type": st.sampled_from(["vil", "vil", "vis"]),
    "time_utc": st.datetimes().map(str)
    | st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2018-02-30"])
    | texts,
    "pct_missing": st.floats().map(str) | st.sampled_from(["0", "0.0", "1e999"]) | texts,
}
rows = st.lists(st.fixed_dictionaries(values), max_size=5)
reading = settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def sevir(tmp_path_factory) -> SevirFolder:
    return SevirFolder(tmp_path_factory.mktemp("sevir"))


@reading
@given(rows=rows)
def test_rows_of_any_text_are_used_or_counted(sevir, rows):
    with open(sevir.path / "CATALOG.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    vil = sum(row["img_type"] == "vil" for row in rows)
    for split in SPLITS:
        events, skipped = read_events(sevir.path, split, "official")
        assert len(events) + sum(skipped.values()) <= vil
        assert all("/" not in event.id for event in events)
        try:
            Sevir(sevir.path, split, 16)
        except InputError:
            continue


@pytest.mark.slow
def test_mutated_catalogues_are_read_or_refused(sevir):
    path = sevir.path / "CATALOG.csv"
    sevir.write_catalog()
    wide = io.StringIO()
    csv.writer(wide).writerows([[*COLUMNS, *"abcdef"], *([*row.values(), *'12"\n4,'] for row in sevir.rows)])
    samples = [path.read_bytes(), wide.getvalue().encode("utf-8-sig")]

    def read():
        for scheme in SCHEMES:
            for split in SPLITS:
                read_events(sevir.path, split, scheme)

    outcomes = fuzz("catalogue", lambda rng: path.write_bytes(mutate(samples, rng)), read, megabytes=100)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b",".join(c.encode() for c in COLUMNS) + b'\n"' + b"x\n" * 10**5, "field limit"),
        (b"", "lacks the column"),
    ],
)
def test_absurd_catalogues_are_refused(sevir, content, reason):
    (sevir.path / "CATALOG.csv").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_events(sevir.path, "train", "official")


@pytest.mark.parametrize("event_id", ["../A", "A/B", ".A", "A\nB", "A\tB", "A\\B", "", "A" * 65])
def test_an_id_that_is_no_name_of_a_file_is_unreadable(sevir, event_id):
    row = dict(zip(COLUMNS, (event_id, "vil/x.h5", "0", "vil", "2018-05-01", "0"), strict=True))
    with pytest.raises(ValueError):
        catalog.parse(row)
    event, _ = catalog.parse(row | {"id": "A"})
    assert isinstance(event, Event)
