"""The notebook of the documents runs."""

import json

import pytest

from tests.tiny import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"events": 4, "size": 24, "resolution": 24, "seed": 0}
    monkeypatch.setattr("dataset.synthetic.writer.DEFAULT", small)
    names = {}
    for cell in CELLS:
        exec(cell.replace("%matplotlib inline\n", "").replace("members=8", "members=2"), names)
    assert {path.name for path in tmp_path.glob("storm.*")} == {"storm.gif", "storm.png"}
    crps = {name: scores.compute()["crps"] for name, scores in names["scores"].items()}
    assert 0 < crps["DiffCast"] < crps["trend"]


def test_the_notebook_shows_its_outputs_and_is_small():
    assert all(cell["outputs"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    assert (ROOT / "docs" / "quickstart.ipynb").stat().st_size < 2e6
