"""Folders of results: each set of settings finds its own again, and none gets another's."""

import multiprocessing

import pytest

from utils.claims import IDENTITY, own_folder
from utils.errors import InputError


@pytest.fixture
def wanted(tmp_path):
    return tmp_path / "run" / "evaluation_best"


def of(sampler):
    return {"settings": {"sampler": sampler, "sizes": (1, 2)}, "evaluation": {"sampler": sampler}}


def test_each_identity_keeps_a_folder_of_its_own(wanted, caplog):
    caplog.set_level("INFO")
    names = [own_folder(wanted, of(sampler)).name for sampler in ("dpm", "ddim", "heun", "ddim", "dpm")]
    assert names == [f"evaluation_best{number}" for number in ("", "_2", "_3", "_2", "")]
    assert "evaluation_best holds other results (sampler dpm / ddim); these go to evaluation_best_2" in caplog.text
    assert sorted(path.name for path in wanted.parent.iterdir()) == sorted(set(names))


def test_a_folder_is_found_when_those_before_it_are_gone(wanted):
    first, second = (own_folder(wanted, of(sampler)) for sampler in ("dpm", "ddim"))
    first.rename(wanted.with_name("kept"))
    assert own_folder(wanted, of("ddim")) == second
    assert own_folder(wanted, of("heun")) == first


@pytest.mark.parametrize("content", [{}, {"metrics.json": "{}"}, {IDENTITY: "{"}, None], ids=str)
def test_what_is_there_already_is_left_alone_unless_it_is_empty(wanted, content):
    wanted.parent.mkdir()
    if content is None:
        wanted.write_text("a file")
    else:
        wanted.mkdir()
    for name, text in (content or {}).items():
        (wanted / name).write_text(text)
    folder = own_folder(wanted, of("dpm"))
    assert folder.name == ("evaluation_best" if content == {} else "evaluation_best_2")
    assert all((wanted / name).read_text() == text for name, text in (content or {}).items())
    assert own_folder(wanted, of("dpm")) == folder


def test_many_at_once_get_a_folder_for_each_identity(wanted):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        identities = [of(f"sampler {number % 5}") for number in range(20)]
        folders = pool.starmap(own_folder, [(wanted, identity) for identity in identities], chunksize=1)
    assert len(set(folders)) == 5
    assert folders == [own_folder(wanted, identity) for identity in identities]
    assert len(list(wanted.parent.iterdir())) == 5


def test_a_place_that_cannot_be_written_is_named(wanted):
    wanted.parent.touch()
    with pytest.raises(InputError, match=r"cannot create .*run/evaluation_best for the results: "):
        own_folder(wanted, of("dpm"))
