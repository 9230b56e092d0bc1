"""A checkpoint describes itself: the command line may leave out what it holds, and may not contradict it."""

import json
import re
import sys
from dataclasses import replace

import pytest

import run
from diffcast.commandline.settings import read
from diffcast.forecaster import Architecture
from utils import checkpoint
from utils.checkpoint import save_checkpoint
from utils.errors import InputError
from utils.weights import save_weights

OPTIONS = {"dims": [8, 4], "kernel_sizes": [3, 3], "stem_dim": 4}
DIFF = Architecture("convgru", True, (1, 16, 24), 4, 6, OPTIONS, 16, (1, 3), 3, residual_scale=0.22)
SINGLE = Architecture("simvp", False, (1, 16, 16), 4, 6, {"spatial_width": 8, "translator_width": 16})
COURSE = {
    "seed": 3,
    "mixed_precision": "bf16",
    "lr": 1e-3,
    "split": "benchmark",
    "stride": 2,
    "augment": True,
    "batch_size": 2,
}
ABOUT = {"dataset": "shanghai", "source": {"scale": 80.0, "units": "dBZ"}, "course": COURSE}
MINE = "from models import Persistence\n\nclass Net(Persistence):\n    pass\n"


def write(path, architecture, about=ABOUT):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, architecture.build().state_dict(), {"architecture": architecture.to_metadata(), **about})
    return path


def write_step(folder, step, architecture, about=ABOUT):
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"architecture": architecture.to_metadata(), **about}
    return save_checkpoint(folder, step, architecture.build().state_dict(), metadata, {})


def resolved(*words):
    """The architecture that `run.py` would build, and its settings."""
    settings = read(vars(run.build_parser().parse_args([str(word) for word in words])))
    return settings.architecture, settings


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("weights") / "best.safetensors", DIFF)


def test_an_evaluation_needs_the_path_alone(path):
    architecture, settings = resolved("--eval", "--ckpt_milestone", path)
    assert architecture == DIFF
    data = settings.data
    assert (data.dataset, data.split, data.scale, data.seq_len) == ("shanghai", "benchmark", 80.0, 10)
    assert settings.folder.name == "Diffconvgru_shanghai"
    assert (settings.training.seed, settings.training.lr) == (0, 1e-4)  # of a training, not of its evaluation


def test_weights_are_evaluated_on_their_frames_without_being_described(storm_folder, tmp_path):
    weights = write(tmp_path / "mine.safetensors", replace(DIFF, frame_shape=(1, 16, 16)), {"dataset": "sevir"})
    words = f"--eval --ckpt_milestone {weights} --data_path {storm_folder} --exp_dir {tmp_path} --sampling_steps 1"
    run.main([*words.split(), "--eval_sequences", "1", "--cases", "0", "--num_workers", "0"])
    (report,) = tmp_path.glob("Diffconvgru_sevir/evaluation_*/metrics.json")
    assert json.loads(report.read_text())["source"]["frames_out"] == 6


CONTRADICTIONS = {
    "--backbone simvp": "--backbone convgru / simvp",
    "--img_size 16": "--img_size 16 24 / 16 16",
    "--frames_in 5": "--frames_in 4 / 5",
    "--frames_out 20": "--frames_out 6 / 20",
    "--dim 64": "--dim 16 / 64",
    "--dim_mults 1 2 4 8": "--dim_mults 1 3 / 1 2 4 8",
    "--segment_length 4": "--segment_length 3 / 4",
    "--residual_scale 1": "--residual_scale 0.22 / 1.0",
    "--backbone_options stem_dim=8": "--backbone_options stem_dim=4 / 8",
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_what_contradicts_a_checkpoint_is_refused_and_both_are_named(words, path):
    with pytest.raises(InputError, match=re.escape(f"{path} contradicts the command line")) as error:
        resolved("--eval", "--ckpt_milestone", path, *words.split())
    assert f"(checkpoint / command line): {CONTRADICTIONS[words]};" in str(error.value)


def test_other_data_may_be_named(path):
    data = resolved("--eval", "--ckpt_milestone", path, "--dataset", "sevir")[1].data
    assert (data.dataset, data.split, data.scale) == ("sevir", "official", None)


def test_what_agrees_with_a_checkpoint_may_be_said(path, tmp_path):
    (tmp_path / "my.args").write_text("--use_diff --backbone_options kernel_sizes=[3,3]  --backbone convgru\n")
    words = "--img_size 16 24 --dim 16 --dim_mults 1 3 --segment_length 3 --residual_scale 0.22 --split benchmark"
    assert resolved(f"@{tmp_path}/my.args", "--eval", "--ckpt_milestone", path, *words.split())[0] == DIFF


def test_options_from_a_file_of_arguments_count_as_given(path, tmp_path):
    (tmp_path / "my.args").write_text("--dim 64  # another\n")
    with pytest.raises(InputError, match="--dim 16 / 64"):
        resolved(f"@{tmp_path}/my.args", "--eval", "--ckpt_milestone", path)


def test_use_diff_that_is_too_much_or_missing_is_said_so(tmp_path):
    folders = {name: tmp_path / f"{name}convgru_sevir" / "checkpoints" for name in ("Diff", "Single")}
    words = ("--exp_dir", tmp_path, "--eval", "--ckpt_milestone", "best", "--backbone", "convgru")
    weights = write(folders["Diff"] / checkpoint.BEST, DIFF, {})
    with pytest.raises(InputError, match=r"^add --use_diff: .*Diffconvgru_sevir"):
        resolved(*words)
    weights.unlink()
    write(folders["Single"] / checkpoint.BEST, replace(DIFF, use_diff=False), {})
    with pytest.raises(InputError, match=r"^leave out --use_diff: .*Singleconvgru_sevir"):
        resolved(*words, "--use_diff")
    with pytest.raises(InputError, match=r"^leave out --use_diff: .*best.safetensors holds a backbone alone"):
        resolved("--eval", "--ckpt_milestone", folders["Single"] / checkpoint.BEST, "--use_diff")


def test_a_missing_step_lists_the_steps(tmp_path):
    folder = tmp_path / "Diffconvgru_sevir" / "checkpoints"
    for step in (20, 3):
        write_step(folder, step, DIFF)
    write(folder / checkpoint.BEST, DIFF)
    words = ("--exp_dir", tmp_path, "--backbone", "convgru", "--use_diff")
    for asked in (("--eval", "--ckpt_milestone", "7"), ("--resume", folder / "ckpt-7")):
        with pytest.raises(InputError, match=r"checkpoints has the steps 3, 20 and best\.$"):
            resolved(*words, *asked)


def test_a_training_goes_on_with_the_options_it_began_with(tmp_path):
    folder = tmp_path / "Diffconvgru_shanghai" / "checkpoints"
    step = write_step(folder, 3, DIFF)
    words = ("--exp_dir", tmp_path, "--dataset", "shanghai", "--backbone", "convgru", "--use_diff", "--resume")
    for asked in (words, ("--resume", step)):
        architecture, settings = resolved(*asked)
        assert architecture == DIFF
        assert {name: settings.options()[name] for name in COURSE} == COURSE
    assert (
        resolved(*words, "--mixed_precision", "auto")[1].training.mixed_precision == "auto"
    )  # compared once it is resolved
    with pytest.raises(InputError, match=r"--lr 0.001 / 0.0005"):
        resolved(*words, "--lr", "5e-4")


def test_a_training_goes_on_to_where_it_was_to_end(tmp_path):
    length = {"epochs": 0, "training_steps": 9, "valid_every": 4, "early_stop": 2}
    write_step(tmp_path / "Diffconvgru_shanghai" / "checkpoints", 3, DIFF, ABOUT | {"length": length})
    words = ("--exp_dir", tmp_path, "--dataset", "shanghai", "--backbone", "convgru", "--use_diff", "--resume")
    for more, expected in {
        (): length,
        ("--training_steps", "20", "--early_stop", "0"): {"epochs": 0, "training_steps": 20, "early_stop": 0},
        ("--epochs", "3"): {"epochs": 3, "training_steps": 200_000, "valid_every": 4},
    }.items():
        options = resolved(*words, *more)[1].options()
        assert {name: options[name] for name in expected} == expected


def test_a_start_from_a_backbone_takes_its_network_and_nothing_else(tmp_path):
    weights = write(tmp_path / "best.safetensors", SINGLE)
    architecture, settings = resolved("--use_diff", "--backbone_ckpt", weights, "--dim", "16")
    assert architecture == replace(SINGLE, use_diff=True, dim=16)
    assert (settings.data.dataset, settings.training.lr) == ("sevir", 1e-4)
    with pytest.raises(InputError, match="--backbone simvp / phydnet"):
        resolved("--use_diff", "--backbone_ckpt", weights, "--backbone", "phydnet")


def test_a_whole_diffcast_is_no_backbone_to_start_from(path):
    with pytest.raises(InputError, match=r"--backbone_ckpt .*best.safetensors holds a DiffCast"):
        resolved("--use_diff", "--backbone_ckpt", path)


def test_code_that_a_checkpoint_names_is_imported_if_the_command_line_names_it(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_file.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    architecture = Architecture("nets_of_a_file:Net", frame_shape=(1, 16, 16))
    save_weights(tmp_path / "own.safetensors", {}, {"architecture": architecture.to_metadata()})
    words = ("--eval", "--ckpt_milestone", "own.safetensors")
    with pytest.raises(InputError, match=r"add --backbone nets_of_a_file:Net\.$"):
        resolved(*words)
    assert "nets_of_a_file" not in sys.modules
    assert resolved(*words, "--backbone", "nets_of_a_file:Net")[0] == architecture


def test_weights_of_other_units_are_not_scored(storm_folder, tmp_path, capsys):
    about = {"dataset": "sevir", "source": {"scale": 255.0, "offset": 0.0, "units": "dBZ", "interval": 5.0}}
    weights = write(tmp_path / "mine.safetensors", SINGLE, about)
    with pytest.raises(SystemExit):
        run.main(f"--eval --ckpt_milestone {weights} --data_path {storm_folder} --exp_dir {tmp_path}".split())
    assert "(checkpoint / data): units 'dBZ' / 'VIL byte'" in capsys.readouterr().err


def test_a_backbone_alone_has_no_diffusion_to_contradict(tmp_path):
    weights = write(tmp_path / "best.safetensors", replace(SINGLE, dim=8))
    assert resolved("--eval", "--ckpt_milestone", weights, "--dim", "16")[0] == replace(SINGLE, dim=8)


@pytest.mark.parametrize("about", [{"dataset": "x"}, {"course": {"split": "x"}}], ids=str)
def test_data_that_there_are_not_are_named(about, tmp_path):
    weights = write(tmp_path / "best.safetensors", SINGLE, about)
    with pytest.raises(InputError, match=r"best.safetensors was trained with --(dataset|split) x, which is unknown"):
        resolved("--eval", "--ckpt_milestone", weights)


@pytest.mark.parametrize("about", [{"dataset": ["x"]}, {"course": 3}, {"source": []}], ids=str)
def test_a_description_of_another_form_tells_nothing(about, tmp_path):
    weights = write(tmp_path / "best.safetensors", SINGLE, about)
    assert resolved("--eval", "--ckpt_milestone", weights)[0] == SINGLE
