import contextlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffcast import arguments
from tests.fuzz.children import ACCEPTED, INPUTS, REFUSED, fuzz, mutate
from utils.errors import InputError

VALID = b"--backbone simvp  # the smallest\n--use_diff\n--dim_mults 1 2 4\n--lr 1e-4\n--data_path data/sevir\n"
lines = st.lists(st.sampled_from(VALID.decode().splitlines()) | st.text(max_size=30), max_size=8)


def parse(path):
    """Parse and check; argparse's own refusal counts as the sentence it prints."""
    try:
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            arguments.check(arguments.build_parser("test").parse_args([f"@{path}"]))
    except SystemExit as end:
        if end.code == 2:
            raise InputError("refused by the parser") from None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("arguments") / "a.args"


@settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=lines)
def test_lines_of_any_text_are_parsed_or_refused(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        outcome = parse(path)
    except InputError as refusal:
        outcome = str(refusal)
    assert outcome is None or outcome.endswith((".", "parser"))


def test_mutated_files_are_parsed_or_refused(path):
    def write(rng):
        path.write_bytes(mutate([VALID], rng))

    outcomes = fuzz("arguments", write, lambda: parse(path), megabytes=100)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 5


def test_a_file_that_includes_itself_is_refused(path):
    path.write_text(f"--use_diff\n@{path}\n")
    with pytest.raises(InputError):
        parse(path)


def test_a_file_that_includes_itself_twice_is_refused_at_once(path):
    path.write_text(f"@{path}\n@{path}\n")
    with pytest.raises(InputError):
        parse(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"--lr\x00 1", b"\x7fELF\x02\x01"])
def test_a_binary_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError):
        parse(path)


def test_a_huge_file_is_refused_unread(path):
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(InputError):
        parse(path)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError):
            parse(special)
