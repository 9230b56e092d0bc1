"""Commands, examples, links and numbers in the documents."""

import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import run
import sample_batch
from benchmarks.skill import results as skill_results
from benchmarks.skill.choices import table as choices_table
from dataset import check, pack
from dataset.frames.config import read_config
from dataset.published import prepare
from dataset.sevir import download
from dataset.synthetic import writer as synthetic
from diffcast import convert
from diffcast.report import __main__ as report
from tests.tiny import ROOT, arguments

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "resources" / "README.md"]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*FILES, *ROOT.glob("docs/*.md")]}
PARSERS = {
    "run.py": run.build_parser,
    "sample_batch.py": sample_batch.build_parser,
    "dataset pack": pack.build_parser,
    "dataset synthetic": synthetic.build_parser,
    "dataset check": check.build_parser,
    "dataset download": download.build_parser,
    "dataset prepare": prepare.build_parser,
    "diffcast.convert": convert.build_parser,
    "diffcast.report": report.build_parser,
}
FOREIGN = {"pip", "conda", "cp", "git", "tensorboard", "wandb"}


class Block(NamedTuple):
    """A block of code, and the document that it is from."""

    document: str
    language: str
    code: str


BLOCKS = [
    Block(document, language, code)
    for document, text in DOCUMENTS.items()
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
]
OWN_BACKBONES = [block for block in BLOCKS if block.code.startswith("# my_package/my_module.py")]
SNIPPETS = [block for block in BLOCKS if block.language == "python" and block not in OWN_BACKBONES]


def of_language(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def commands() -> list[str]:
    """Commands in blocks, and those of `python` and `make` in the text."""
    lines = [line for block in of_language("bash") for line in block.code.replace("\\\n", " ").splitlines()]
    current = "\n".join(text for name, text in DOCUMENTS.items() if name != "CHANGELOG.md")
    return sorted({*filter(None, lines), *re.findall(r"`((?:python|make) [^`]+)`", current)})


@pytest.mark.parametrize("command", commands())
def test_commands_have_known_options(command, capsys):
    words = [word for word in shlex.split(command, comments=True) if not word.startswith("OMP_NUM_THREADS=")]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[0] not in FOREIGN:
        check_python(words)


def check_python(words: list[str]) -> None:
    """Parse the options of a command, or find its module."""
    program = next(number for number, word in enumerate(words) if word == "-m" or word.endswith(".py"))
    name, *options = words[program + (words[program] == "-m") :]
    if name == "dataset":
        name, *options = f"dataset {options[0]}", *options[1:]
    if name.startswith("benchmarks.") or name == "pytest":
        assert find_spec(name)
    elif "-h" in options:
        with pytest.raises(SystemExit, match=r"^0$"):
            PARSERS[name]().parse_args(options)
    else:
        assert PARSERS[name]().parse_args(options)


@pytest.mark.parametrize("block", OWN_BACKBONES, ids=lambda block: block.document)
@pytest.mark.slow
def test_own_backbone_trains_in_diffcast(block, storm_folder, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(block.code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_package", "my_package.my_module"):  # of another document
        monkeypatch.delitem(sys.modules, name, raising=False)
    words = ["--backbone", "my_package.my_module:Extrapolation", "--backbone_options", "--use_diff"]
    run.main(arguments(storm_folder, tmp_path, *words))
    folder = tmp_path / "Diffmy_package.my_module.Extrapolation_sevir"
    assert (folder / "evaluation_best" / "metrics.json").is_file()


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=pytest.mark.slow if "from pysteps" in block.code else ()) for block in SNIPPETS],
    ids=lambda block: block.document,
)
def test_python_examples_run(block, storm_folder, tmp_path, monkeypatch):
    if "from pysteps" in block.code:
        pytest.importorskip("pysteps")
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.code.replace("/tmp/storms", str(storm_folder)).replace("members=8", "members=2"), names)
    if "assert" not in block.code:  # it does not check itself
        ensemble = names["ensemble"]
        assert ensemble.ndim == 6
        assert 0 <= ensemble.min() < ensemble.max() <= 1


@pytest.mark.parametrize("block", of_language("yaml"), ids=lambda block: block.document)
def test_descriptions_of_frames_are_complete(block, tmp_path):
    (tmp_path / "frames.yaml").write_text(block.code)
    assert read_config(tmp_path).split


def test_tables_of_results_are_those_of_the_stored_numbers():
    stored = ROOT / "resources" / "benchmark"
    results, choices = (json.loads((stored / f"{name}.json").read_text()) for name in ("results", "choices"))
    tables = skill_results.summary(results["backbones"]), choices_table(choices["rows"])
    rows = {row for table in tables for row in table if row}
    assert rows <= set(DOCUMENTS["docs/results.md"].splitlines())
    shown = [line for line in DOCUMENTS["README.md"].splitlines() if line.startswith("|")]
    assert set(shown) <= rows
    assert len(shown) == 7


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", DOCUMENTS[document]):
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), path
        assert not heading or heading in headings(target), heading


def headings(path: Path) -> set[str]:
    """Names that a link may give the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_exists(document):
    rooms = "resources|tests|models|diffcast|dataset|utils|benchmarks|docs"
    named = re.findall(rf"`((?:{rooms})/[\w./]*)`", DOCUMENTS[document])
    invented = re.compile(r"my(net|data|score)|diffcast_phydnet_sevir128")
    assert [name for name in named if not (ROOT / name).exists() and not invented.search(name)] == []


def test_the_readme_is_short():
    assert len(DOCUMENTS["README.md"].splitlines()) <= 150
    assert len(DOCUMENTS["README.md"].split()) <= 1500
