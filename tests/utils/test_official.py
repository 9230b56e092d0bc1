"""Official weights come in and go out unchanged, and what does not fit is refused by name."""

import json
import re
from functools import cache
from math import factorial

import numpy as np
import pytest
import torch
from PIL import Image

import run
import sample_batch
from diffcast import official
from diffcast.convert import main
from diffcast.forecaster import Architecture, load_forecaster, load_forecaster_weights
from diffcast.official import inexpressible
from tests.golden.fill import SCHEDULE_BUFFERS
from tests.golden.reference import arrays, official_weights, shapes
from utils.errors import InputError
from utils.official import read_official
from utils.weights import load_metadata, save_weights

TINY = Architecture("convgru", True, (1, 128, 128), 5, 20, {"dims": (4, 6, 5), "stem_dim": 2}, 8, (1, 1, 2, 2))
EARTHFORMER = {"stem_dims": (4, 8), "stem_factors": (3, 2), "stem_convs": 1, "heads": 2, "global_vectors": 3}
ARCHITECTURES = [
    TINY,
    Architecture(
        "phydnet", True, (1, 32, 32), 4, 20, {"dim": 32, "lstm_dims": (8,), "kernel_size": 5}, 16, (2, 3), timesteps=50
    ),
    Architecture("simvp", False, (2, 32, 32), 3, 6, {"spatial_width": 8, "translator_width": 16}),
    Architecture("earthformer", False, (2, 24, 36), 3, 4, EARTHFORMER),
]


@cache
def prefixed(keys, prefix):
    return {prefix + name: shape for name, shape in shapes(keys).items()}


def diffusion_shapes(width):
    names = shapes(f"keys_diffcast_phydnet_dim{width}")
    return {name: shape for name, shape in names.items() if not name.startswith("backbone_net.")}


def moment_matrices(prefix):
    basis = np.array([[(a - 3) ** i / factorial(i) for a in range(7)] for i in range(7)])
    matrices = {"_M": torch.from_numpy(basis), "_invM": torch.from_numpy(np.linalg.inv(basis))}
    return {f"{prefix}k2m.{name}{axis}": value for name, value in matrices.items() for axis in (0, 1)}


def schedule():
    stored = arrays("schedule") | arrays("schedule_rest")
    return {name: torch.from_numpy(stored[name]) for name in SCHEDULE_BUFFERS}


def distances(names):
    """Query minus key, counted from 0, for each table of biases."""
    entries = {}
    for name, (rows, *_) in names.items():
        if name.endswith("bias_table"):
            index = np.subtract.outer(np.arange(rows // 2 + 1), np.arange(rows // 2 + 1)) + rows // 2
            entries[name.replace("bias_table", "index")] = torch.from_numpy(index)
    return entries


def state(case):
    """A complete official state dict."""
    name, _, backbone = case.rpartition("-")
    keys = {"convgru": "convgru_keys_small", "earthformer": "earthformer_keys_small"}.get(backbone, f"keys_{backbone}")
    prefix = "backbone_net." if name else ""
    names = prefixed(keys, prefix) | (diffusion_shapes(16) if name else {})
    made = official_weights(names, seed=7) | (schedule() if name else {})
    made |= moment_matrices(prefix) if backbone == "phydnet" else {}
    return made | (distances(names) if backbone == "earthformer" else {})


@pytest.fixture(scope="module")
def tiny_state():
    torch.manual_seed(0)
    return official.official_state(TINY.build())


def saved(folder, content):
    path = folder / "official.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("case", ["diffcast-phydnet", "diffcast-simvp", "phydnet", "simvp", "convgru", "earthformer"])
def test_to_our_format_and_back_changes_nothing(case, tmp_path):
    original = state(case)
    source, ours, back = saved(tmp_path, {"model": original}), tmp_path / "ours.safetensors", tmp_path / "back.pt"
    main(["import", str(source), str(ours)])
    main(["export", str(ours), str(back)])
    returned = torch.load(back, weights_only=True)["model"]
    assert returned.keys() == original.keys()
    for name, value in original.items():
        recomputed = name in SCHEDULE_BUFFERS or "k2m." in name  # their last bits depend on the machine
        tolerance = 1e-6 if recomputed else 0
        torch.testing.assert_close(returned[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_the_published_size_loads_and_is_evaluated(storm_folder, tmp_path):
    names = shapes("keys_diffcast_phydnet_dim64")
    weights = official_weights(names, seed=7) | schedule() | moment_matrices("backbone_net.")
    assert weights.keys() == names.keys()
    model = Architecture("phydnet", use_diff=True).build()
    official.load(model, weights)
    assert torch.equal(model.residual.head.weight, weights["model.final_conv.weight"])
    assert torch.equal(
        model.backbone.residual_cells[2].gates.bias, weights["backbone_net.convcell.cell_list.2.conv.bias"]
    )
    path = saved(tmp_path, {"model": weights, "ema": {}, "opt": {}, "scheduler": {}, "step": 200_000, "epoch": 20})
    words = f"--backbone phydnet --use_diff --eval --ckpt_milestone {path} --data_path {storm_folder}"
    more = f"--sampling_steps 1 --eval_sequences 1 --cases 0 --num_workers 0 --exp_dir {tmp_path}"
    run.main([*words.split(), *more.split()])
    report = json.loads((tmp_path / f"Diffphydnet_sevir/evaluation_{path.stem}/metrics.json").read_text())
    assert report["scores"]["diffcast_phydnet"]["crps"] > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.backbone)
def test_the_architecture_is_read_off_the_weights(architecture, tmp_path):
    path = saved(tmp_path, official.official_state(architecture.build()))
    earthformer = architecture.backbone == "earthformer"
    told = {} if earthformer else {"img_size": architecture.frame_shape[1], "frames_out": architecture.frames_out}
    assert load_forecaster(path, **told)[1] == architecture


def wrap(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


WRAPPINGS = {
    "bare": lambda w, _: w,
    "official trainer": lambda w, other: {
        "model": w,
        "ema": wrap("ema_model.", other),
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "scheduler": None,
        "step": 3,
        "epoch": 1,
    },
    "distributed": lambda w, _: {"model": wrap("module.", w)},
    "averaged only": lambda w, other: {
        "ema": {"initted": torch.tensor(True), "step": torch.tensor(3)}
        | wrap("online_model.", other)
        | wrap("ema_model.module.", w)
    },
    "lightning": lambda w, _: {"state_dict": wrap("torch_nn_module.", w), "pytorch-lightning_version": "2.0"},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_whatever_holds_them(wrapping, tmp_path, tiny_state):
    other = {name: value + 1 for name, value in tiny_state.items()}
    found, _ = read_official(saved(tmp_path, WRAPPINGS[wrapping](tiny_state, other)))
    assert found.keys() == tiny_state.keys()
    assert all(torch.equal(found[name], value) for name, value in tiny_state.items())


@pytest.mark.parametrize("spelling", ["encoder.", ""])
def test_one_spelling_of_phydnets_cells_is_enough(spelling):
    other = {"encoder.": r"^(phy|conv)cell", "": r"^encoder\.(phy|conv)cell"}[spelling]
    weights = {name: value for name, value in state("phydnet").items() if not re.match(other, name)}
    model = Architecture("phydnet", frame_shape=(1, 32, 32)).build()
    official.load(model, weights)
    assert torch.equal(model.physical_cell.gain.bias, weights[f"{spelling}phycell.cell_list.0.convgate.bias"])


def without(name):
    return lambda weights: weights.pop(name)


def changed(name, change):
    return lambda weights: weights.update({name: change(weights.get(name))})


MISTAKES = {
    "missing": (without("encoder.encoder_Ep.c2.main.0.bias"), "missing encoder.encoder_Ep.c2.main.0.bias."),
    "unexpected": (changed("encoder.extra", lambda _: torch.zeros(1)), "unexpected encoder.extra."),
    "unknown matrix": (changed("k2m._M2", lambda _: torch.zeros(1)), "unexpected k2m._M2."),
    "misshapen": (
        changed("encoder.encoder_E.c1.main.1.bias", lambda _: torch.zeros(5)),
        "wrong shape of encoder.encoder_E.c1.main.1.bias (5,) for (32,).",
    ),
    "contradicting duplicate": (
        changed("encoder.phycell.cell_list.0.F.bn1.bias", lambda x: x + 1e-3),
        "encoder.phycell.cell_list.0.F.bn1.bias is there twice",
    ),
    "other moments": (changed("k2m._M1", lambda x: x * (1 + 1e-5)), "k2m._M1 would be computed otherwise"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_named(mistake, tmp_path):
    break_it, message = MISTAKES[mistake]
    weights = state("phydnet")
    break_it(weights)
    architecture = Architecture("phydnet", frame_shape=(1, 32, 32))
    with pytest.raises(InputError, match=re.escape(message)):
        load_forecaster_weights(architecture.build(), architecture, saved(tmp_path, weights))


def test_another_noise_schedule_is_refused(tmp_path, tiny_state):
    linear = tiny_state | {"alphas_cumprod": torch.linspace(1, 0, 1000)}
    with pytest.raises(InputError, match="alphas_cumprod would be computed otherwise"):
        load_forecaster(saved(tmp_path, linear))
    model = Architecture(**{**vars(TINY), "timesteps": 500}).build()
    with pytest.raises(InputError, match="betas"):
        official.load(model, tiny_state)


@pytest.mark.parametrize("content", [{"step": 3}, {"model": {"step": 3}}, {"some.weight": torch.zeros(2)}])
def test_a_file_of_something_else_is_refused(content, tmp_path):
    with pytest.raises(InputError, match="official weights"):
        load_forecaster(saved(tmp_path, content))


def test_a_truncated_state_dict_is_refused(tmp_path, tiny_state):
    without_head = {name: value for name, value in tiny_state.items() if "head" not in name}
    with pytest.raises(InputError, match=r"head\.0\.weight is missing"):
        load_forecaster(saved(tmp_path, without_head))


class Canary:
    """An object whose loading would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("command", "arguments"), [(main, "import {} ours.safetensors"), (sample_batch.main, "--ckpt_milestone {}")]
)
def test_a_pickled_object_is_refused_without_running_it(command, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = saved(tmp_path, {"model": Canary("ran")})
    with pytest.raises(SystemExit) as stopped:
        command(arguments.format(source).split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: checkpoint .* is refused: .*\n", error)
    assert list(tmp_path.iterdir()) == [source]


def test_our_format_must_be_named_so(tmp_path, capsys, tiny_state):
    with pytest.raises(SystemExit):
        main(["import", str(saved(tmp_path, tiny_state)), str(tmp_path / "ours.pt")])
    assert "must end in .safetensors" in capsys.readouterr().err


SMALL = {"backbone": "phydnet", "use_diff": True, "frame_shape": (1, 32, 32), "dim": 8, "dim_mults": (1, 2)}
EXPORTS = [
    SMALL | {"segment_length": 5},
    SMALL | {"residual_scale": 0.22},
    {"backbone": "simvp", "frame_shape": (1, 16, 16), "frames_in": 2, "frames_out": 4},
    {"backbone": "convgru", "frame_shape": (2, 16, 24), "frames_in": 3, "backbone_options": {"dims": [8, 4, 4]}},
    {
        "backbone": "earthformer",
        "frame_shape": (1, 23, 35),
        "backbone_options": {"stem_dims": [4, 8], "stem_factors": [3, 2], "heads": 2, "dropout": 0.0},
    },
    {"backbone": "persistence", "frame_shape": (1, 16, 16)},
]


@pytest.mark.parametrize("fields", EXPORTS, ids=str)
def test_an_export_is_read_back_as_it_was_or_refused(fields, tmp_path, capsys):
    torch.manual_seed(0)
    architecture, source = Architecture(**fields), tmp_path / "ours.safetensors"
    metadata = {"source": {"units": "dBZ"}, "dataset": "frames", "architecture": architecture.to_metadata()}
    save_weights(source, architecture.build().state_dict(), metadata)
    try:
        main(["export", str(source), str(tmp_path / "official.pt")])
    except SystemExit:
        assert "cannot be exported, since the official code would compute something else" in capsys.readouterr().err
        return
    size = " ".join(map(str, dict.fromkeys(architecture.frame_shape[1:])))
    assert f"--img_size {size} --frames_in {architecture.frames_in}" in capsys.readouterr().out
    main(["import", str(tmp_path / "official.pt"), str(tmp_path / "back.safetensors")])
    assert load_metadata(tmp_path / "back.safetensors") == load_metadata(source)
    observed = torch.rand(1, architecture.frames_in, *architecture.frame_shape)
    sampling = {"sampling_steps": 1} if architecture.use_diff else {}
    forecasts = []
    for path in (source, tmp_path / "official.pt"):
        model, found = load_forecaster(path)
        assert found == load_forecaster(source)[1]
        forecasts.append(model.eval().forecast(observed, 1, torch.Generator().manual_seed(1), **sampling))
    assert torch.equal(*forecasts)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"residual_scale": 0.22}, "--residual_scale 0.22 / 1"),
        ({"segment_length": 4}, "--segment_length 4 / as many as --frames_in"),
        ({"timesteps": 50}, "--timesteps 50 / 1000"),
        ({"frames_in": 4}, "--frames_in 4 / 5"),
        ({"frames_out": 12}, "--frames_out 12 / a multiple of --frames_in 5"),
        ({"frame_shape": (1, 32, 16)}, "--img_size 32 16 / one number"),
        ({"frame_shape": (2, 32, 32)}, "--img_channel 2 / 1"),
        ({"backbone_options": {"kernel_size": 5}}, "--backbone_options kernel_size=5 / 7"),
        ({"backbone": "convgru"}, "--backbone convgru / one of phydnet, simvp"),
        (
            {"backbone": "mine:Net", "use_diff": False},
            "--backbone mine:Net / one of phydnet, simvp, convgru, earthformer",
        ),
    ],
    ids=str,
)
def test_what_the_official_code_would_compute_otherwise_is_named(changes, told):
    assert inexpressible(Architecture(**SMALL | changes).options()) == [told]


def test_constants_of_the_official_code_may_be_said():
    options = {"lstm_dims": [128, 128], "kernel_size": 7}
    assert inexpressible(Architecture(**SMALL, backbone_options=options).options()) == []


def noted(architecture, state):
    return {"model": state, "diffcast": json.dumps({"architecture": architecture.to_metadata()})}


def test_what_export_noted_must_fit_the_weights(tmp_path):
    architecture = Architecture(**SMALL)
    state = official.official_state(architecture.build())
    assert load_forecaster(saved(tmp_path, noted(architecture, state)))[1] == architecture
    for changes in ({"dim": 16}, {"residual_scale": 0.5}, {"backbone": "simvp"}, {"segment_length": 2}):
        with pytest.raises(InputError, match="official"):
            load_forecaster(saved(tmp_path, noted(Architecture(**SMALL | changes), state)))
    with pytest.raises(InputError, match="not what `export` writes"):
        load_forecaster(saved(tmp_path, {"model": state, "diffcast": "["}))


def test_sizes_that_the_file_tells_otherwise_are_refused(tmp_path, capsys):
    source = saved(tmp_path, official.official_state(Architecture("simvp", frames_in=4).build()))
    with pytest.raises(SystemExit):
        main(["import", str(source), str(tmp_path / "ours.safetensors"), "--frames_in", "5"])
    assert "--frames_in 4 / 5" in capsys.readouterr().err


def test_the_demo_takes_an_official_checkpoint(tmp_path, tiny_state, monkeypatch):
    inputs = tmp_path / "sequences" / "one" / "inputs"
    inputs.mkdir(parents=True)
    for t in range(5):
        Image.fromarray(np.full((128, 128), 40 * t, np.uint8)).save(inputs / f"{t}.png")
    drawn = {}
    monkeypatch.setattr(sample_batch, "draw", lambda folder, sequence, forecasts, source: drawn.update(forecasts))
    path = saved(tmp_path, {"model": tiny_state})
    options = f"--seqs {inputs.parents[1]} --ckpt_milestone {path} --out {tmp_path / 'out'} --sampling_steps 1"
    sample_batch.main(options.split())
    assert drawn["diffcast_convgru"].shape == (1, 1, 20, 1, 128, 128)
    observed = (torch.arange(5) * 40 / 255).view(1, 5, 1, 1, 1).expand(-1, -1, -1, 128, 128)
    trend = load_forecaster(path)[0].backbone.forecast(observed)
    torch.testing.assert_close(drawn["trend"], trend, rtol=0, atol=1e-5)
