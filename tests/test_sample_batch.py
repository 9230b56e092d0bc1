"""The demo: PNG folders in, pictures and scores out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import run
import sample_batch
from dataset.demo_sequences import read_sequences
from dataset.synthetic.storms import storms
from diffcast.forecaster import Architecture
from tests.tiny import arguments, tiny_architecture
from utils.claims import IDENTITY
from utils.errors import InputError
from utils.weights import save_weights


@pytest.fixture(scope="module")
def weights(storm_folder, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exps")
    run.main(arguments(storm_folder, exp_dir, "--use_diff", "--training_steps", "2", "--eval_sequences", "1"))
    return str(exp_dir / "Diffsimvp_sevir/checkpoints/best.safetensors")


def write_sequence(folder, inputs, targets):
    for name, frames in (("inputs", inputs), ("targets", targets)):
        (folder / name).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / name / f"{number:02d}.png")


@pytest.fixture
def sequences(tmp_path):
    frames = storms(2, 25, 32)
    for number, of_one in enumerate(frames.numpy()):
        write_sequence(tmp_path / "seqs" / f"storm_{number}", of_one[:5], of_one[5:])
    return tmp_path / "seqs"


@pytest.mark.slow
def test_shipped_weights_forecast_the_shipped_sequences(tmp_path, capsys):
    sample_batch.main(["--out", str(tmp_path), "--sampling_steps", "2"])
    printed = capsys.readouterr().out
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {IDENTITY} | {f"storm_{number}.{suffix}" for number in range(3) for suffix in ("png", "gif")}
    assert "pictures of 3 sequences, read as synthetic storms" in printed
    assert "persistence" in printed


@pytest.mark.slow
def test_an_ensemble_without_known_future_is_drawn(weights, sequences, tmp_path, capsys):
    for target in sequences.glob("*/targets/*"):
        target.unlink()
    for folder in sequences.glob("*/targets"):
        folder.rmdir()
    words = ["--seqs", sequences, "--ckpt_milestone", weights, "--out", tmp_path / "out"]
    sample_batch.main([str(word) for word in (*words, "--sampling_steps", 2, "--members", 2)])
    stems = ("storm_0", "storm_0_ensemble", "storm_1", "storm_1_ensemble")
    drawn = {IDENTITY} | {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "gif")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == drawn
    assert "csi" not in capsys.readouterr().out
    sample_batch.main([str(word) for word in (*words, "--sampling_steps", 2)])
    assert {path.stem for path in (tmp_path / "out_2").glob("*.png")} == {"storm_0", "storm_1"}
    assert "out holds other results (members 2 / 1); these go to out_2" in capsys.readouterr().out


def test_png_frames_keep_their_bytes(sequences):
    first = read_sequences(sequences, 5, 20, 32)[0]
    np.testing.assert_array_equal(
        (first.inputs[:, 0] * 255).numpy(), storms(1, 25, 32)[0, :5].numpy().astype(np.float32)
    )
    assert first.targets.shape == (20, 1, 32, 32)
    assert read_sequences(sequences, 5, 20, 16)[0].inputs.shape == (5, 1, 16, 16)


def test_a_single_sequence_is_read_like_a_folder_of_it(sequences, monkeypatch):
    expected = read_sequences(sequences, 5, 20, 32)[0]
    monkeypatch.chdir(sequences / "storm_0")
    for folder in (sequences / "storm_0", "."):
        (single,) = read_sequences(folder, 5, 20, 32)
        assert single.name == "storm_0"
        assert torch.equal(single.inputs, expected.inputs)
        assert torch.equal(single.targets, expected.targets)


def test_a_folder_of_sequences_that_is_missing_is_said_to_be(tmp_path):
    with pytest.raises(InputError, match=r"gone does not exist; pass a folder of sequences"):
        read_sequences(tmp_path / "gone", 5, 20, 32)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is no folder; pass a folder of sequences"):
        read_sequences(tmp_path / "file", 5, 20, 32)


def spoil(kind, sequences):
    frame = sequences / "storm_0" / "inputs" / "02.png"
    if kind == "no sequences":
        for path in sequences.rglob("*.png"):
            path.unlink()
        for path in [*sequences.glob("*/*"), *sequences.glob("*")]:
            path.rmdir()
    elif kind == "too few frames":
        frame.unlink()
    elif kind == "garbage":
        frame.write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    elif kind == "another size":
        Image.new("L", (8, 8)).save(frame)
    elif kind == "coloured":
        Image.new("RGB", (32, 32), (1, 2, 3)).save(frame)
    elif kind == "16 bit":
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(frame)


@pytest.mark.parametrize("kind", ["no sequences", "too few frames", "garbage", "another size", "coloured", "16 bit"])
def test_bad_frames_get_one_sentence(kind, weights, sequences, tmp_path, capsys):
    spoil(kind, sequences)
    with pytest.raises(SystemExit) as stop:
        sample_batch.main(["--seqs", str(sequences), "--ckpt_milestone", weights, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert str(sequences) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--members 4", "is a backbone alone, which makes one forecast; leave out members"),
        (f"--seed {10**20}", f"seed must be at most {2**63 - 1}, not {10**20}"),
        ("--latest /radar --watch 1e300", "--watch must lie between 0 and a million"),
        ("--latest {frames} --now 9999-12-31T23:59", "--now must be a time such as"),
    ],
)
def test_numbers_without_a_meaning_get_one_sentence(words, told, tmp_path, capsys):
    weights, architecture = tmp_path / "simvp.safetensors", tiny_architecture("simvp", use_diff=False)
    metadata = {"architecture": architecture.to_metadata()}
    save_weights(weights, architecture.build().state_dict(), metadata)
    words = words.format(frames=tmp_path).split()
    with pytest.raises(SystemExit, match="2"):
        sample_batch.main([*words, "--ckpt_milestone", str(weights), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_checkpoint_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        sample_batch.main(["--ckpt_milestone", str(tmp_path / "none.safetensors")])
    assert stop.value.code == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_weights_of_a_users_own_class_are_drawn_if_it_is_named(sequences, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_radar_nets.py").write_text("from models import Persistence\n\nclass Net(Persistence):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    name = "my_radar_nets:Net"
    architecture = Architecture(name, True, (1, 32, 32), dim=8, dim_mults=(1, 2))
    # as a training that names it would write them
    model = replace(architecture, backbone="persistence").build()
    save_weights(tmp_path / "own.safetensors", model.state_dict(), {"architecture": architecture.to_metadata()})
    words = ["--seqs", str(sequences), "--ckpt_milestone", "own.safetensors", "--out", "out", "--sampling_steps", "1"]
    with pytest.raises(SystemExit):
        sample_batch.main(words)
    assert f"add --backbone {name}" in capsys.readouterr().err
    sample_batch.main([*words, "--backbone", name])
    assert (tmp_path / "out" / "storm_0.png").is_file()
