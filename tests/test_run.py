"""The command line: official invocations, and one clear sentence for every mistake."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest

import run
from diffcast.commandline.settings import read
from diffcast.training.settings import describe_length, total_steps
from tests.tiny import arguments, read_losses, run_py, tiny_architecture
from utils.errors import InputError
from utils.preemption import MARKER


def settings_of(words):
    return read(vars(run.build_parser().parse_args(words.split())))


@pytest.fixture(scope="module")
def trained(storm_folder, tmp_path_factory):
    """A finished tiny DiffCast run: its experiment folder and the run's own."""
    exp_dir = tmp_path_factory.mktemp("exps")
    run.main(arguments(storm_folder, exp_dir, "--use_diff", "--members", "2"))
    return exp_dir, exp_dir / "Diffsimvp_sevir"


def test_training_is_followed_by_evaluation(trained):
    folder = trained[1]
    assert [row["step"] for row in read_losses(folder)] == list(
        range(1, 12)
    )  # an epoch of 45 sequences is longer than 6 steps
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"best.safetensors", "ckpt-11"}
    results = folder / "evaluation_best"
    report = json.loads((results / "metrics.json").read_text())
    assert report["sequences"] == 5
    assert set(report["scores"]) == {"diffcast_simvp", "trend", "advection", "persistence"}
    assert "csi" in report["scores"]["diffcast_simvp"]["ensemble_mean"]
    lines = (results / "lead_time.csv").read_text().splitlines()
    assert len(lines) == 1 + 6 * 20  # also for the ensemble mean and the probability-matched mean
    assert {path.suffix for path in results.glob("case_*")} == {".png", ".gif"}


@pytest.mark.slow
def test_evaluation_of_a_checkpoint_repeats_the_scores(trained, storm_folder):
    exp_dir, folder = trained
    scores = {}
    for milestone in ("best", "11", str(folder / "checkpoints" / "best.safetensors")):
        run.main(
            arguments(storm_folder, exp_dir, "--use_diff", "--members", "2", "--eval", "--ckpt_milestone", milestone)
        )
        label = "ckpt-11" if milestone == "11" else "best"
        scores[milestone] = json.loads((folder / f"evaluation_{label}" / "metrics.json").read_text())["scores"]
    first, *others = scores.values()
    assert others == [first, first]


def test_persistence_needs_no_checkpoint(storm_folder, tmp_path):
    run.main(arguments(storm_folder, tmp_path, "--backbone", "persistence", "--backbone_options", "--eval"))
    report = json.loads((tmp_path / "Singlepersistence_sevir/evaluation_persistence/metrics.json").read_text())
    assert 0 < report["scores"]["persistence"]["csi"] < 1


@pytest.mark.slow
def test_backbone_of_its_own_run_starts_a_frozen_diffcast(trained, storm_folder, tmp_path):
    run.main(arguments(storm_folder, tmp_path))
    start = str(tmp_path / "Singlesimvp_sevir/checkpoints/best.safetensors")
    run.main(arguments(storm_folder, tmp_path, "--use_diff", "--backbone_ckpt", start, "--freeze_backbone"))
    both = [
        json.loads((tmp_path / f"{name}/evaluation_best/metrics.json").read_text())["scores"]
        for name in ("Singlesimvp_sevir", "Diffsimvp_sevir")
    ]
    assert both[1]["trend"]["mae"] == pytest.approx(both[0]["simvp"]["mae"], rel=1e-6)


def test_dry_run_tells_the_cost_and_writes_nothing(storm_folder, tmp_path, capsys):
    run.main(arguments(storm_folder, tmp_path, "--use_diff", "--dry_run"))
    printed = capsys.readouterr().out
    assert re.search(r"train split +45 sequences of 9 events", printed)
    assert re.search(r"parameters of LocalResidual +[\d,]+", printed)
    assert re.search(r"training +11 steps, decided by --epochs 1", printed)
    assert re.search(r"GFLOPs per training step and process +[\d.]+", printed)
    assert re.search(r"memory for training, about +[\d.]+ GiB", printed)
    assert list(tmp_path.iterdir()) == []


def test_arguments_come_from_a_file(storm_folder, tmp_path, capsys):
    (tmp_path / "my.args").write_text("# a comment\n--img_size 16  # pixels\n--dim 24\n")
    run.main(arguments(storm_folder, tmp_path, f"@{tmp_path}/my.args", "--dry_run"))
    assert "dim: 24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"\xff\xfe\x00binary", "can't decode"), (b"--use_diff\n@my.args\n@my.args\n", "my.args")],
    ids=["missing", "binary", "includes itself"],
)
def test_a_wrong_argument_file_is_one_sentence(content, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "my.args").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        run.main(["@my.args"])
    error = capsys.readouterr().err
    assert told in error.splitlines()[-1]
    assert "my.args" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "sampler", "steps"),
    [
        ("", "dpm", 10),
        ("--sampler ddim", "ddim", 250),
        ("--sampler ddim --sampling_steps 20", "ddim", 20),
        ("--sampling_steps 8", "dpm", 8),
    ],
)
def test_each_sampler_has_its_own_number_of_steps(words, sampler, steps):
    settings = settings_of(words).evaluation.fitting(tiny_architecture("simvp", use_diff=True).build())
    assert (settings.sampler, settings.sampling_steps) == (sampler, steps)


@pytest.mark.parametrize(
    ("words", "steps", "decisive"),
    [
        ("", 200_000, "--training_steps"),
        ("--training_steps 5", 5, "--training_steps"),
        ("--epochs 2", 200_000, "--training_steps"),
        ("--epochs 30000", 210_000, "--epochs 30000"),
        ("--epochs 2 --training_steps 5", 14, "--epochs 2"),
        ("--epochs 2 --training_steps 15", 15, "--training_steps"),
    ],
)
def test_steps_alone_count_alone_and_otherwise_the_longer(words, steps, decisive):
    settings = settings_of(words).training
    assert total_steps(45, settings, processes=1) == steps
    assert describe_length(steps, settings) == f"{steps:,} steps, decided by {decisive}"


def test_steps_alone_are_trained_and_not_evaluated_if_so_asked(storm_folder, tmp_path):
    words = arguments(storm_folder, tmp_path, "--training_steps", "2", "--valid_every", "2", "--no_eval")
    at = words.index("--epochs")
    run.main(words[:at] + words[at + 2 :])
    folder = tmp_path / "Singlesimvp_sevir"
    assert len(read_losses(folder)) == 2
    assert "for 2 steps, decided by --training_steps" in (folder / "run.log").read_text()
    assert (folder / "checkpoints" / "best.safetensors").is_file()
    assert list(folder.glob("evaluation*")) == []


def test_help_names_every_option():
    helped = run_py("-h").stdout
    options = {option for action in run.build_parser()._actions for option in action.option_strings}
    assert {option for option in options if option not in helped} == set()


def test_a_run_without_data_says_how_to_get_some(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run.main(["--dry_run"])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    for advice in ("--data_path", "python -m dataset download sevir --out data/sevir", "--dataset synthetic"):
        assert advice in told


def test_synthetic_data_are_generated_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.synthetic.writer.DEFAULT", {"events": 3, "size": 16, "resolution": 16, "seed": 0})
    run.main(arguments(tmp_path / "storms", tmp_path, "--dataset", "synthetic", "--dry_run"))
    assert (tmp_path / "storms" / "CATALOG.csv").is_file()


BAD_ARGUMENTS = {
    "unknown backbone": ("--backbone unet", "unknown backbone 'unet'"),
    "unknown backbone option": ("--backbone_options width=3", "width"),
    "malformed backbone option": ("--backbone_options width", "NAME=VALUE"),
    "lengths that do not add up": ("--frames_in 6", "--frames_in 6 + --frames_out 20 is not --seq_len 25"),
    "size that cannot be halved": ("--use_diff --img_size 18 --dim_mults 1 2 4", "frames of 18 x 18 pixels"),
    "missing data folder": ("--data_path /nowhere/at/all", "/nowhere/at/all"),
    "evaluation without a checkpoint": ("--eval", "--ckpt_milestone"),
    "missing checkpoint": ("--eval --ckpt_milestone 77", "77"),
    "nothing to train": ("--backbone persistence --backbone_options", "no weights to train"),
    "batch larger than the data": ("--batch_size 100", "45 sequences"),
    "tracker that is not installed": ("--log_with wandb", "pip install wandb"),
    "too many members": ("--use_diff --members 20000", "members must be at most 500, not 20000"),
    "members of one forecast": (
        "--members 4",
        "--members 4: simvp alone makes one forecast; add --use_diff, --dress or --baselines steps",
    ),
    "no sequences to score": ("--eval_sequences 0", "eval_sequences must be at least 1"),
    "learning rate that is no number": ("--lr nan", "lr must be a number, not nan"),
    "more memory than there is": ("--use_diff --dim 1000000", "this needs more memory than there is"),
    "empty level": ("--use_diff --dim_mults 0 1", "dim_mults must be positive"),
    "option that is no number": ("--backbone_options spatial_width=wide", "spatial_width"),
    "option that is no value": ("--backbone_options spatial_width=[1,", "spatial_width"),
    "option that follows from others": ("--backbone_options frames_in=3", "frames_in"),
    "module without a name": ("--backbone :Net", ":Net"),
    "evaluation and none": ("--eval --ckpt_milestone best --no_eval", "--no_eval"),
    "half precision on a processor": ("--mixed_precision fp16", "--mixed_precision fp16 needs a GPU"),
    "milestone without evaluation": ("--ckpt_milestone best", "--eval"),
    "nothing to resume for a frozen backbone": ("--use_diff --freeze_backbone --resume", "--backbone_ckpt"),
}


@pytest.mark.parametrize(("words", "told"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_mistakes_get_one_sentence_and_leave_nothing(words, told, storm_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(storm_folder, tmp_path, *words.split()))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_whole_number_has_a_largest_value():
    options = {action.option_strings[0] for action in run.build_parser()._actions if action.type is int}
    for option in options:
        name = option.strip("-").replace("-", "_")
        with pytest.raises(InputError, match=f"{name} .*not {10**20}"):
            settings_of(f"--use_diff {option} {10**20}")
    assert len(options) > 20


@pytest.mark.parametrize("words", ["--scheduler step", "--batch_size many", "--no_such_flag"])
def test_argparse_refuses(words, storm_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(storm_folder, tmp_path, *words.split()))
    assert stop.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


def test_a_training_is_not_overwritten(trained, storm_folder, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments(storm_folder, trained[0], "--use_diff"))
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "told"), [("--lr 5e-4", "lr 0.001 / 0.0005"), ("--dim 16", "dim 8 / 16")])
def test_another_training_is_not_resumed(words, told, trained, storm_folder, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments(storm_folder, trained[0], "--use_diff", "--resume", *words.split()))
    assert told in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_resumed_by_its_name(trained, storm_folder, tmp_path, capsys):
    shutil.copytree(trained[1], tmp_path / "Diffsimvp_sevir")
    path = tmp_path / "Diffsimvp_sevir" / "checkpoints" / "ckpt-9"
    (path / "training.pt").write_bytes((path / "training.pt").read_bytes()[:-1])
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(storm_folder, tmp_path, "--use_diff", "--resume", str(path)))
    assert stop.value.code == 2
    assert "ckpt-9 is damaged: the bytes of training.pt differ" in capsys.readouterr().err


@pytest.mark.slow
def test_only_a_training_that_goes_on_removes_the_mark_of_a_stopped_one(trained, storm_folder, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / "Diffsimvp_sevir")
    (folder / MARKER).write_text("stopped\n")
    for words in ("--resume --lr 9", "--resume --data_path /not/mounted", "--dim 16", ""):
        with pytest.raises(SystemExit):
            run.main(arguments(storm_folder, tmp_path, "--use_diff", *words.split()))
    run.main(arguments(storm_folder, tmp_path, "--use_diff", "--eval", "--ckpt_milestone", "best"))
    assert (folder / MARKER).exists()
    run.main(arguments(storm_folder, tmp_path, "--use_diff", "--members", "2", "--resume"))
    assert not (folder / MARKER).exists()


def test_a_diverging_training_says_so(storm_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments(storm_folder, tmp_path, "--lr", "1e18"))
    assert "lower --lr" in capsys.readouterr().err


def test_checkpoint_of_another_architecture_is_refused(trained, storm_folder, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments(storm_folder, trained[0], "--use_diff", "--dim", "16", "--eval", "--ckpt_milestone", "best"))
    assert "dim 8 / 16" in capsys.readouterr().err


def test_truncated_data_file_is_named(storm_folder, tmp_path, capsys):
    copy = tmp_path / "sevir"
    for path in storm_folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(storm_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes()[: 3000 if path.suffix == ".h5" else None])
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(copy, tmp_path))
    assert stop.value.code == 2
    assert ".h5" in capsys.readouterr().err


def test_error_in_a_loading_process_is_still_one_sentence(storm_folder, tmp_path, capsys):
    copy = tmp_path / "sevir"
    for path in storm_folder.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(storm_folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(storm_folder)).write_bytes(path.read_bytes())
    for path in copy.rglob("*.h5"):
        spoil_chunks(path)
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(copy, tmp_path, "--num_workers", "1"))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in error[error.index("error: ") :]
    assert ".h5" in error


def spoil_chunks(path):
    """Overwrite the stored frames with garbage that cannot be decompressed; the file's structure stays whole."""
    with h5py.File(path) as file:
        vil = file["vil"]
        chunks = [vil.id.get_chunk_info(i) for i in range(vil.id.get_num_chunks())]
    raw = np.fromfile(path, np.uint8)
    for chunk in chunks:
        raw[chunk.byte_offset : chunk.byte_offset + chunk.size] = 255
    raw.tofile(path)


def test_unwritable_output_is_named(storm_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        run.main(arguments(storm_folder, tmp_path / "file"))
    assert stop.value.code == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
