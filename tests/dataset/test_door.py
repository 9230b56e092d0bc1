"""One door to the commands of the data sets."""

import pytest

from dataset.__main__ import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "-h"])
    assert stop.value.code == 0
    assert f"python -m dataset {command}" in capsys.readouterr().out


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", "--data_path", str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_command_that_is_none_lists_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["unpack"])
    assert "synthetic" in capsys.readouterr().err
