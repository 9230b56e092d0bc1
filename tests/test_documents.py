"""What the README shows runs."""

import json
import re
import shlex

import pytest

import run
import sample_batch
from benchmarks import skill_results
from benchmarks.choices import table as choices_table
from dataset import check
from dataset.published import prepare
from dataset.sevir import download, packed
from dataset.synthetic import writer as synthetic
from diffcast import convert
from diffcast.report import __main__ as report
from tests.tiny import ROOT, arguments

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if not language
    for line in block.replace("\\\n", " ").splitlines()
]


def test_own_backbone_trains_in_diffcast(storm_folder, tmp_path, monkeypatch):
    path = tmp_path / PYTHON[0].splitlines()[0].removeprefix("# ")
    path.parent.mkdir()
    path.write_text(PYTHON[0])
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--backbone", "my_package.my_module:Extrapolation", "--backbone_options", "width=8", "--use_diff"]
    run.main(arguments(storm_folder, tmp_path, *words))
    folder = tmp_path / "Diffmy_package.my_module.Extrapolation_sevir"
    assert (folder / "evaluation_best" / "metrics.json").is_file()


def test_python_example_runs():
    names = {}
    exec(PYTHON[1], names)
    assert names["ensemble"].shape == (2, 3, 20, 1, 64, 64)
    assert set(names["losses"]) == {"loss", "deterministic", "diffusion"}


PARSERS = {
    "run.py": run.build_parser,
    "sample_batch.py": sample_batch.build_parser,
    "dataset pack": packed.build_parser,
    "dataset synthetic": synthetic.build_parser,
    "dataset check": check.build_parser,
    "dataset download": download.build_parser,
    "dataset prepare": prepare.build_parser,
    "diffcast.convert": convert.build_parser,
    "diffcast.report": report.build_parser,
}
OURS = [command for command in COMMANDS if command and command[0] in ("python", "accelerate")]


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_commands_have_known_options(command, capsys):
    words = [word for word in command if word not in ("python", "accelerate", "launch", "-m")]
    words[:2] = [" ".join(words[:2])] if words[0] == "dataset" else words[:2]
    if "-h" in words:
        with pytest.raises(SystemExit):
            PARSERS[words[0]]().parse_args(words[1:])
    else:
        assert PARSERS[words[0]]().parse_args(words[1:])


def test_tables_of_results_are_those_of_the_numbers_beside_it():
    stored = ROOT / "resources" / "benchmark"
    results, choices = (json.loads((stored / f"{name}.json").read_text()) for name in ("results", "choices"))
    for table in (skill_results.summary(results["backbones"]), choices_table(choices["rows"])):
        assert set(filter(None, table)) <= set(README.splitlines())


def test_every_file_that_is_named_exists():
    named = re.findall(r"`((?:resources|tests|models|diffcast|dataset|utils)/[\w./]*)`", README)
    named += re.findall(r"\]\((resources/[\w./]+)\)", README)
    shipped = {name for name in named if "diffcast_phydnet_sevir128" not in name}
    assert shipped
    assert {name for name in shipped if not (ROOT / name).exists()} == set()
