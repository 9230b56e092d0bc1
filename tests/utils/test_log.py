"""Messages reach terminal and file; a file that cannot be written stops nothing."""

import logging

import pytest

from utils.log import start_logging


@pytest.fixture(autouse=True)
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_messages_go_to_terminal_and_file(tmp_path, capsys):
    start_logging(tmp_path / "run.log")
    logging.getLogger("run").info("step 1")
    assert capsys.readouterr().out == "step 1\n"
    assert (tmp_path / "run.log").read_text().endswith(" run step 1\n")


@pytest.mark.parametrize("path", ["no/folder/run.log", "/dev/full"], ids=["no folder", "disk full"])
def test_a_log_file_that_cannot_be_written_is_told_once(tmp_path, capfd, path):
    start_logging(tmp_path / path)
    for step in range(3):
        logging.getLogger("run").info("step %d", step)
    out, err = capfd.readouterr()
    assert [line for line in out.splitlines() if line.startswith("step")] == ["step 0", "step 1", "step 2"]
    assert out.count("ends here; the run continues") == 1
    assert "Traceback" not in err
