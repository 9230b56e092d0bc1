import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffcast.commandline.arguments import build_parser
from diffcast.commandline.settings import read
from tests.fuzz.children import INPUTS
from utils.errors import InputError

VALID = ["--backbone simvp  # the smallest", "--use_diff", "--dim_mults 1 2 4", "--lr 1e-4", "--data_path data/sevir"]
lines = st.lists(st.sampled_from(VALID) | st.text(max_size=30), max_size=8)


def parse(path):
    """Parse and check; argparse's own refusal, or its help, counts as the sentence it prints."""
    try:
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            return read(vars(build_parser("test").parse_args([f"@{path}"])))
    except SystemExit as end:
        if end.code in (0, 2):
            raise InputError("printed by the parser.") from None
        raise


@settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=lines)
def test_lines_of_any_text_are_parsed_or_refused(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.args"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        outcome = parse(path)
    except InputError as refusal:
        outcome = str(refusal)
    assert not isinstance(outcome, str) or outcome.endswith(".")
