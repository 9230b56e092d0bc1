"""What LocalResidual is trained for, against an independent library and closed forms."""

import json

import numpy as np
import pytest
import scoringrules
import torch
from safetensors.torch import load_file

import run
from diffcast import convert
from diffcast.objectives import OBJECTIVES, Segments, crps, crps_loss, hybrid_loss, pooled_crps
from diffcast.process import Schedule, diffuse, v_target
from tests.tiny import arguments, tiny_architecture
from utils.errors import InputError
from utils.weights import load_metadata

EVERYWHERE = torch.ones(3, 2, 1, 6, 4, dtype=torch.bool)


def errors(particles=4):
    return torch.randn(3, particles, 2, 1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class TestCRPS:
    @pytest.mark.parametrize(("fairness", "estimator"), [(1.0, "fair"), (0.0, "nrg")])
    @pytest.mark.parametrize("particles", [2, 3, 8])
    def test_it_is_that_of_scoringrules(self, fairness, estimator, particles):
        target, members = torch.randn(5), torch.randn(5, particles)
        expected = scoringrules.crps_ensemble(target.numpy(), members.numpy(), estimator=estimator)
        found = crps(members - target[:, None], fairness)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)

    def test_the_almost_fair_one_lies_between(self):
        fair, almost, plain = (crps(errors(), fairness) for fairness in (1.0, 0.95, 0.0))
        torch.testing.assert_close(almost, 0.95 * fair + 0.05 * plain)

    def test_scales_compare_means_over_squares(self):
        whole = errors()
        squares = whole.unfold(-2, 2, 2).unfold(-2, 2, 2).mean(dim=(-2, -1))
        expected = (crps(whole).flatten(1).mean(1) + crps(squares).flatten(1).mean(1)) / 2
        torch.testing.assert_close(pooled_crps(whole, EVERYWHERE, 1.0, (1, 2)), expected)

    def test_squares_at_the_edge_count_by_their_pixels(self):
        constant = errors()[..., :1, :1].expand(3, 4, 2, 1, 6, 4)
        expected = crps(constant).flatten(1).mean(1)
        torch.testing.assert_close(pooled_crps(constant, EVERYWHERE, 1.0, (4,)), expected)

    def test_missing_pixels_count_nowhere(self):
        valid = EVERYWHERE.clone()
        valid[..., :3, :] = False
        garbage = errors().masked_fill(~valid[:, None], 1e6)
        found = pooled_crps(garbage, valid, 1.0, (1, 3))
        torch.testing.assert_close(found, pooled_crps(errors()[..., 3:, :], valid[..., 3:, :], 1.0, (1, 3)))
        assert pooled_crps(garbage, torch.zeros_like(valid), 1.0, (1, 3)).tolist() == [0, 0, 0]

    def test_equal_particles_have_finite_gradients(self):
        same = torch.zeros(1, 3, 1, 1, 4, 4, requires_grad=True)
        pooled_crps(same, torch.ones(1, 1, 1, 4, 4, dtype=torch.bool), 1.0, (1, 2)).sum().backward()
        assert torch.isfinite(same.grad).all()


class TestLosses:
    schedule, target = Schedule(1000), torch.rand(3, 2, 1, 6, 4) - 0.5

    def test_one_evaluation_of_pure_noise_is_scored(self):
        noise = torch.randn(3, 2, 2, 1, 6, 4)
        perfect = self.target.repeat_interleave(2, dim=0)

        def denoise(noisy, time):
            assert time.tolist() == 6 * [999]
            return v_target(self.schedule, perfect, noisy, time)  # as if the noisy segment were noise alone

        loss = crps_loss(Segments(denoise, self.schedule, self.target, EVERYWHERE), noise, 1.0, (1, 2))
        assert loss.item() == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize(("time", "share"), [(0, 0.0), (500, 0.5)])
    def test_the_mixture_is_weighted_by_the_diffusion_time(self, time, share):
        noise, times, off = torch.randn_like(self.target), torch.full((3,), time), errors(2).float()

        def denoise(noisy, given):
            torch.testing.assert_close(noisy, diffuse(self.schedule, self.target, noise, given))
            return (v_target(self.schedule, self.target, noise, given)[:, None] + off).flatten(0, 1)

        segments = Segments(denoise, self.schedule, self.target, EVERYWHERE)
        expected = share * crps(off).mean() + (1 - share) * off.square().mean()
        torch.testing.assert_close(hybrid_loss(segments, times, noise, 2, 1.0, (1,)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
class TestModel:
    def model(self, objective, **options):
        torch.manual_seed(0)
        return tiny_architecture("convgru", True, objective=objective).build(**options)

    def test_a_step_reaches_all_weights(self, objective):
        model = self.model(objective)
        terms = model(torch.rand(2, 5, 1, 16, 16), torch.rand(2, 20, 1, 16, 16))
        terms["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert (model.residual.head_block.conv1.weight.grad != 0).any(dim=(0, 2, 3)).all()

    def test_a_sequence_has_the_same_draws_in_any_batch(self, objective):
        model, observed, future = self.model(objective), torch.rand(2, 5, 1, 16, 16), torch.rand(2, 20, 1, 16, 16)
        seeded = [[torch.Generator().manual_seed(seed) for seed in seeds] for seeds in ((7, 8), (7,), (8,))]
        both = model(observed, future, seeded[0])["diffusion"]
        alone = [model(observed[i : i + 1], future[i : i + 1], seeded[i + 1])["diffusion"] for i in (0, 1)]
        torch.testing.assert_close(both, sum(alone) / 2, atol=1e-5, rtol=0)

    def test_members_do_not_depend_on_the_forecast_batch(self, objective):
        model, observed = self.model(objective), torch.rand(2, 5, 1, 16, 16)
        usual = OBJECTIVES[objective]
        one, other = (
            model.forecast(
                observed,
                3,
                [torch.Generator().manual_seed(seed) for seed in (1, 2)],
                sampler=usual.sampler,
                sampling_steps=usual.sampling_steps,
                forecast_batch=at_once,
            )
            for at_once in (None, 2)
        )
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert (one[:, 0] - one[:, 1]).abs().max() > 1e-3


def test_particles_share_all_layers_but_the_finest():
    model = tiny_architecture("convgru", True, objective="hybrid").build(particles=3)
    sizes = {}
    for name in ("downs.0.block1.conv2", "middle_block1.conv1", "ups.1.block1.conv1", "head_block.conv2"):
        model.residual.get_submodule(name).register_forward_hook(
            lambda _, args, __, n=name: sizes.update({n: len(args[0])})
        )
    model(torch.rand(2, 5, 1, 16, 16), torch.rand(2, 20, 1, 16, 16))
    assert sizes == {
        "downs.0.block1.conv2": 8,
        "middle_block1.conv1": 8,
        "ups.1.block1.conv1": 24,
        "head_block.conv2": 24,
    }


def test_an_unknown_objective_is_refused():
    with pytest.raises(InputError, match="objective must be one of diffusion, crps, hybrid, not elbo"):
        tiny_architecture("convgru", True, objective="elbo")


class TestCommandLine:
    def evaluated(self, folder):
        return json.loads((folder / "evaluation_best" / "metrics.json").read_text())["evaluation"]

    @pytest.mark.slow
    def test_weights_say_which_sampler_they_are_for(self, storm_folder, tmp_path, capsys):
        words = ["--use_diff", "--objective", "crps", "--sampling_steps", "1", "--no_eval"]
        run.main(arguments(storm_folder, tmp_path, *words))
        weights = str(tmp_path / "Diffsimvp_sevir" / "checkpoints" / "best.safetensors")
        evaluate = [
            "--eval",
            "--ckpt_milestone",
            weights,
            "--exp_dir",
            str(tmp_path),
            "--num_workers",
            "0",
            "--cases",
            "0",
        ]
        run.main([*evaluate, "--data_path", str(storm_folder), "--eval_sequences", "2", "--members", "2"])
        how = self.evaluated(tmp_path / "Diffsimvp_sevir")
        assert (how["sampler"], how["sampling_steps"]) == ("ddim", 1)
        refused = [
            lambda: run.main([*evaluate, "--data_path", str(storm_folder), "--sampler", "dpm"]),
            lambda: convert.main(["export", weights, str(tmp_path / "official.pt")]),
        ]
        for call, reason in zip(
            refused, ("objective crps need ddim with 1", "--objective crps / diffusion"), strict=True
        ):
            with pytest.raises(SystemExit):
                call()
            assert reason in capsys.readouterr().err

    def test_a_training_starts_from_weights_of_another_objective(self, storm_folder, tmp_path):
        words = ["--use_diff", "--no_eval", "--training_steps", "2", "--epochs", "0"]
        run.main(arguments(storm_folder, tmp_path, *words))
        start = tmp_path / "Diffsimvp_sevir" / "checkpoints" / "ckpt-2" / "weights.safetensors"
        words += ["--init_ckpt", str(start), "--objective", "hybrid", "--lr", "0", "--exp_note", "hybrid"]
        words += ["--residual_scale", "0.5"]
        run.main(arguments(storm_folder, tmp_path, *words))
        before, after = (
            load_file(path)
            for path in (start, tmp_path / "Diffsimvp_sevir_hybrid" / "checkpoints" / "ckpt-2" / "weights.safetensors")
        )
        wider = [name for name in before if before[name].shape != after[name].shape]
        assert wider == [name for name in before if name.startswith("residual") and name in wider]
        assert len(wider) == 6  # convolution and shortcut of three blocks
        for name, value in before.items():
            torch.testing.assert_close(after[name][:, : value.shape[1]] if name in wider else after[name], value)
        added = torch.cat([after[name][:, before[name].shape[1] :].flatten() for name in wider])
        assert added.std().item() == pytest.approx(0.05, rel=0.1)
        weights = tmp_path / "Diffsimvp_sevir_hybrid" / "checkpoints" / "best.safetensors"
        assert load_metadata(weights)["architecture"]["residual_scale"] == 0.5

    def test_a_wrong_sampler_is_refused_before_the_training(self, storm_folder, tmp_path, capsys):
        with pytest.raises(SystemExit):
            run.main(arguments(storm_folder, tmp_path, "--use_diff", "--objective", "crps", "--sampling_steps", "4"))
        assert "sampler ddim with 4 sampling_steps is not possible" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
