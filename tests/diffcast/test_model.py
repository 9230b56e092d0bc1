"""DiffCast against its official form, and what training and ensembles rely on."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from diffcast import DiffCast, build_diffcast, process
from diffcast.forecaster import Architecture
from models import Persistence
from models.convgru import ConvGRU
from models.phydnet import PhyDNet
from models.simvp import SimVP
from tests.golden.reference import arrays, assert_close, official_weights, segment_noise, shapes
from utils.errors import InputError
from utils.official import load_official, rename

SMALL = shapes("keys_diffcast_phydnet_dim16")


def official(backbone, shapes, seed):
    model = DiffCast(backbone, dim=16).eval()
    load_official(model, official_weights(shapes, seed))
    return model


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def calls_of(network):
    """Collect the arguments that a network is called with."""
    calls = []
    network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, dict(kwargs))), with_kwargs=True)
    return calls


def bytes_kept(forward):
    """Bytes that a forward pass keeps for the backward pass, and its result."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        result = forward()
    return sum(kept), result


def denoised(monkeypatch, model):
    """Collect, for every segment that is denoised, what it is conditioned on and the samples it passes through."""
    runs = []
    conditioned = model.residual.conditioned

    def recording(condition, context, segment, auxiliary):
        denoise = conditioned(condition, context, segment, auxiliary)
        samples = []
        runs.append((condition, context, segment, samples))
        return lambda noisy, time: samples.append(noisy) or denoise(noisy, time)

    monkeypatch.setattr(model.residual, "conditioned", recording)
    return runs


class TestOfficial:
    def test_names_and_shapes_are_the_official_ones(self):
        with torch.device("meta"):
            model = DiffCast(PhyDNet())
        ours = {name: list(value.shape) for name, value in model.state_dict().items()}
        official = shapes("keys_diffcast_phydnet_dim64")
        assert ours == rename(official, model.official_names, model.official_dropped)
        assert sum(p.numel() for p in model.parameters()) == 49_361_625

    def test_forecast_with_phydnet_is_the_official_one(self, monkeypatch):
        model, golden = official(PhyDNet((1, 32, 32)), SMALL, seed=105), arrays("sample_32")
        runs = denoised(monkeypatch, model)
        made = model.generate(
            torch.from_numpy(golden["frames_in"]), sampling_steps=10, noise=segment_noise(1, 105)[:, None]
        )
        assert_close(made.trend, golden["mu"], 5e-5)
        assert_close(made.residual[:, 0], golden["residuals"], 6e-4)
        assert_close(made.forecast[:, 0], golden["frames_pred"], 3e-4)
        last_x = torch.stack([samples[-1][0, :, 0] for *_, samples in runs])
        assert_close(last_x, golden["last_x"], 4e-4)  # unlike the result not clamped

    def test_forecast_with_simvp_is_the_official_one(self):
        diffusion = {name: shape for name, shape in SMALL.items() if name.startswith(("model.", "ctx_net."))}
        backbone = {f"backbone_net.{name}": shape for name, shape in shapes("keys_simvp").items()}
        model, golden = official(SimVP((1, 32, 32)), diffusion | backbone, seed=108), arrays("sample_simvp_32")
        made = model.generate(
            torch.from_numpy(golden["frames_in"]), sampling_steps=5, noise=segment_noise(1, 108)[:, None]
        )
        assert_close(made.trend, golden["mu"], 5e-5)
        assert_close(made.residual[:, 0], golden["residuals"], 6e-4)
        assert_close(made.forecast[:, 0], golden["frames_pred"], 3e-4)

    def test_losses_and_gradients_are_the_official_ones(self):
        model, golden = official(PhyDNet((1, 32, 32)), SMALL, seed=106), arrays("train_objective_32")
        frames = (torch.from_numpy(golden[name]) for name in ("frames_in", "frames_gt"))
        terms = model.training_loss(*frames, torch.from_numpy(golden["t"]).T, segment_noise(2, 106))
        assert_close(terms["deterministic"], golden["det_loss"], 1e-4)
        assert_close(terms["diffusion"], golden["diff_loss_mean"], 1e-4)
        assert_close(terms["loss"], golden["total"], 1e-4)
        terms["loss"].backward()
        norms = dict(zip(golden["grad_names"], golden["grad_norms"], strict=True))
        expected = rename(norms, model.official_names, model.official_dropped)
        ours = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
        assert ours == pytest.approx(expected, rel=5e-3)


class TestForecast:
    @pytest.mark.parametrize(
        ("frames_in", "frames_out", "segment_length"),
        [(5, 20, None), (13, 12, None), (13, 12, 4), (4, 10, 3), (3, 7, None), (2, 4, 1)],
    )
    def test_any_lengths_are_possible(self, tiny, frames_in, frames_out, segment_length):
        model = tiny((2, 16, 16), frames_in, frames_out, segment_length=segment_length)
        forecast = model.forecast(torch.rand(2, frames_in, 2, 16, 16), members=3, sampling_steps=2)
        assert forecast.shape == (2, 3, frames_out, 2, 16, 16)
        assert forecast.dtype == torch.float32
        assert not forecast.requires_grad
        assert 0 == forecast.min() < forecast.max() == 1

    def test_members_share_one_trend(self, tiny):
        model = tiny()
        motions, trends = calls_of(model.motion), []
        model.backbone.trend = lambda frames: trends.append(frames) or torch.zeros(2, 20, 1, 16, 16)
        made = model.generate(torch.rand(2, 5, 1, 16, 16), members=3, sampling_steps=1)
        assert len(motions) == len(trends) == 1
        assert made.trend.shape == (2, 20, 1, 16, 16)
        expected = (made.trend[:, None] + made.residual / 2).clamp(0, 1)
        torch.testing.assert_close(made.forecast, expected)

    def test_a_member_is_what_its_noise_makes_of_it(self, tiny):
        model, frames = tiny(), torch.rand(2, 5, 1, 16, 16)
        noise = torch.randn(2, 3, 4, 5, 1, 16, 16)
        together = model.forecast(frames, noise=noise, sampling_steps=2)
        for b in range(2):
            for m in range(3):
                alone = model.forecast(frames[b : b + 1], noise=noise[b : b + 1, m : m + 1], sampling_steps=2)
                torch.testing.assert_close(together[b, m], alone[0, 0], atol=1e-5, rtol=0)

    def test_given_noise_replaces_the_drawn(self, tiny):
        model, frames = tiny(), torch.rand(2, 5, 1, 16, 16)
        noise = torch.stack([torch.randn(3, 4, 5, 1, 16, 16, generator=one) for one in seeded(1, 2)])
        drawn = model.forecast(frames, 3, seeded(1, 2), sampling_steps=2)
        given = model.forecast(frames, 3, seeded(3, 4), sampling_steps=2, noise=noise)
        other = model.forecast(frames, 3, seeded(3, 4), sampling_steps=2)
        assert torch.equal(drawn, given)
        assert not torch.allclose(drawn, other, atol=0.1)

    def test_a_sequence_has_the_same_forecast_in_any_batch(self, tiny):
        model, frames = tiny(), torch.rand(3, 5, 1, 16, 16)
        batch = model.forecast(frames, 2, seeded(7, 8, 9), sampling_steps=2)
        alone = model.forecast(frames[1:2], 2, seeded(8), sampling_steps=2)
        torch.testing.assert_close(batch[1:2], alone, atol=1e-5, rtol=0)

    def test_each_segment_is_conditioned_on_the_one_before(self, tiny, monkeypatch):
        model = tiny(frames_in=4, frames_out=10, segment_length=3)
        runs, contexts = denoised(monkeypatch, model), []
        model.motion.register_forward_hook(lambda _, __, output: contexts.append(output))
        made = model.generate(torch.rand(1, 4, 1, 16, 16), sampling_steps=1)
        (local, last), residual = contexts[0], made.residual[:, 0]
        assert len(runs) == 4
        for s, (condition, context, segment, _) in enumerate(runs):
            before = residual[:, 3 * (s - 1) : 3 * s] if s else torch.zeros(1, 3, 1, 16, 16)
            assert torch.equal(condition, before)
            assert torch.equal(context[0], (last if s else local)[0])
            assert segment.tolist() == [s]

    @pytest.mark.parametrize("sampler", ["ddim", "sde-dpm"])
    def test_a_forecast_is_the_same_whatever_is_made_at_the_same_time(self, tiny, sampler):
        model, frames = tiny(frames_out=10), torch.rand(3, 5, 1, 16, 16)
        options = {"sampler": sampler, "sampling_steps": 2}
        together = model.forecast(frames, 4, seeded(1, 2, 3), **options)
        for size in (1, 3):
            chunks = model.forecast(frames, 4, seeded(1, 2, 3), **options, forecast_batch=size)
            torch.testing.assert_close(chunks, together, atol=1e-4, rtol=0)
        alone = model.forecast(frames[1:2], 4, seeded(2), **options)
        torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=0)

    def test_a_function_may_take_the_place_of_a_named_sampler(self, tiny):
        model, frames, asked = tiny(residual_scale=0.5), torch.rand(2, 5, 1, 16, 16), []

        def without_residual(denoise, noise, schedule, steps, clip, draw):
            asked.append((steps, clip, schedule is model.schedule))
            assert denoise(noise, torch.zeros(len(noise), dtype=torch.long)).shape == noise.shape
            assert draw(noise).shape == noise.shape
            return torch.zeros_like(noise)

        made = model.generate(frames, members=3, sampler=without_residual, sampling_steps=7)
        assert asked == [(7, 2.0, True)] * model.segments
        torch.testing.assert_close(made.forecast, made.trend[:, None].clamp(0, 1).expand(-1, 3, -1, -1, -1, -1))

    def test_an_unknown_sampler_is_answered_with_the_names_of_all(self, tiny):
        with pytest.raises(InputError, match=r"unknown sampler 'ddpm': choose one of ddim, dpm, sde-dpm"):
            tiny().forecast(torch.rand(1, 5, 1, 16, 16), sampler="ddpm")

    @pytest.mark.parametrize(
        ("members", "forecast_batch", "sizes"),
        [(4, None, [12]), (4, 8, [8, 4]), (5, 4, [3, 2] * 3), (1, 2, [2, 1]), (2, 1, [1] * 6)],
    )
    def test_forecasts_are_made_in_even_batches(self, tiny, members, forecast_batch, sizes):
        model, found = tiny(frames_in=4, frames_out=4), []

        def recording(denoise, noise, **_):
            found.append(len(noise))
            return torch.zeros_like(noise)

        frames = torch.rand(3, 4, 1, 16, 16)
        model.generate(frames, members, sampler=recording, forecast_batch=forecast_batch)
        assert found == sizes

    @pytest.mark.parametrize(("estimate", "drawn"), [(0.5, 0.125), (-3, -0.75), (9, 1)])
    def test_residuals_are_scaled_back_and_clipped_to_what_frames_can_differ_by(
        self, tiny, monkeypatch, estimate, drawn
    ):
        model = tiny(residual_scale=0.25)

        def certain(condition, context, segment, auxiliary):
            def denoise(noisy, time):
                signal, noise = (
                    values[time].view(-1, 1, 1, 1, 1)
                    for values in (model.schedule.sqrt_alphas_cumprod, model.schedule.sqrt_one_minus_alphas_cumprod)
                )
                return (signal * noisy - estimate) / noise  # what makes every estimate of the data the same

            return denoise

        monkeypatch.setattr(model.residual, "conditioned", certain)
        made = model.generate(torch.rand(1, 5, 1, 16, 16), sampling_steps=3)
        torch.testing.assert_close(made.residual, torch.full_like(made.residual, drawn), atol=1e-4, rtol=0)

    def test_a_stochastic_sampler_gives_each_member_noise_of_its_own(self, tiny):
        model, frames = tiny(), torch.rand(1, 5, 1, 16, 16)
        noise = torch.randn(1, 1, 4, 5, 1, 16, 16).expand(1, 2, -1, -1, -1, -1, -1)
        for sampler, same in {"dpm": True, "sde-dpm": False}.items():
            first, second = model.forecast(frames, sampler=sampler, sampling_steps=3, noise=noise)[0]
            assert torch.allclose(first, second, atol=1e-3) == same

    @pytest.mark.slow
    def test_compiled_forecasts_are_the_same_and_compile_once(self, tiny, monkeypatch):
        model, frames = tiny(), torch.rand(1, 5, 1, 16, 16)
        noise = torch.randn(1, 2, 4, 5, 1, 16, 16)
        backend = CompileCounter()
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        plain, compiled = (
            model.forecast(frames, noise=noise, sampling_steps=3, compiled=compiled) for compiled in (False, True)
        )
        assert torch.equal(plain, compiled)
        assert 1 <= backend.frame_count <= 2  # for four segments

    def test_half_precision_is_close_and_leaves_the_trend_alone(self, tiny):
        model, frames = tiny(), torch.rand(2, 5, 1, 16, 16)
        noise = torch.randn(2, 1, 4, 5, 1, 16, 16)
        full, half = (
            model.generate(frames, noise=noise, sampling_steps=3, precision=precision)
            for precision in (torch.float32, torch.bfloat16)
        )
        assert torch.equal(half.trend, full.trend)
        error = (half.residual - full.residual).norm() / full.residual.norm()
        assert 1e-5 < error < 0.05


class TestTraining:
    @pytest.mark.parametrize("scale", [1, 0.25])
    def test_segments_are_the_true_residual_filled_up_with_zeros(self, tiny, scale):
        model = tiny(frames_in=4, frames_out=10, segment_length=3, residual_scale=scale)
        observed, future = torch.rand(2, 4, 1, 16, 16), torch.rand(2, 10, 1, 16, 16)
        time = torch.randint(900, (2, 4))
        calls = calls_of(model.residual)
        model.training_loss(observed, future, time, torch.zeros(2, 4, 3, 1, 16, 16))
        ((noisy, times), given) = calls[0]
        condition, segment = given["condition"], given["segment"]
        true = torch.zeros(2, 12, 1, 16, 16)
        true[:, :10] = 2 * (future - model.backbone.trend(observed)) / scale
        true = true.view(8, 3, 1, 16, 16)  # sequence by sequence, segment by segment
        torch.testing.assert_close(noisy, process.diffuse(model.schedule, true, torch.zeros_like(true), times))
        assert times.tolist() == time.flatten().tolist()
        assert segment.tolist() == [0, 1, 2, 3] * 2
        for i, given in enumerate(condition):
            torch.testing.assert_close(given, true[i - 1] if i % 4 else torch.zeros(3, 1, 16, 16))

    def test_a_sequence_has_the_same_draws_in_any_batch(self, tiny):
        model, observed, future = tiny(), torch.rand(3, 5, 1, 16, 16), torch.rand(3, 20, 1, 16, 16)
        batch = model(observed, future, seeded(7, 8, 9))
        alone = [model(observed[i : i + 1], future[i : i + 1], seeded(7 + i)) for i in range(3)]
        for name in model.loss_terms:
            mean = torch.stack([terms[name] for terms in alone]).mean()
            torch.testing.assert_close(batch[name], mean, atol=1e-5, rtol=0)

    def test_times_and_noise_are_uniform_and_normal(self, tiny, monkeypatch):
        model, frames = tiny(timesteps=10), torch.rand(32, 5, 1, 16, 16)
        monkeypatch.setattr(model, "training_loss", lambda _, __, time, noise, ___: (time, noise))
        for generator in (torch.Generator().manual_seed(0), seeded(*range(32)), None):
            time, noise = model(frames, frames, generator)
            assert time.shape == (32, 4)
            assert noise.shape == (32, 4, 5, 1, 16, 16)
            assert time.unique().tolist() == list(range(10))
            assert noise.mean().item() == pytest.approx(0, abs=0.02)
            assert noise.std().item() == pytest.approx(1, abs=0.02)

    def test_the_diffusion_loss_alone_shapes_the_backbone(self, tiny):
        model = tiny(diffusion_weight=1)
        terms = model(torch.rand(2, 5, 1, 16, 16), torch.rand(2, 20, 1, 16, 16))
        terms["loss"].backward()
        assert torch.equal(terms["loss"], terms["diffusion"])
        assert (model.backbone.factor.grad != 0).all()

    def test_the_times_of_a_sequence_are_spread(self, tiny, monkeypatch):
        model, frames = tiny(timesteps=1000), torch.rand(64, 5, 1, 16, 16)
        monkeypatch.setattr(model, "training_loss", lambda _, __, time, *___: time)
        time = model(frames, frames, seeded(*range(64)))
        assert (time.sort(dim=1).values // 250).tolist() == 64 * [[0, 1, 2, 3]]
        assert all(len(column.unique()) == 4 for column in (time // 250).T)
        offsets = time % 250
        assert offsets.min() < 10
        assert offsets.max() >= 240

    @pytest.mark.parametrize("weight", [0.25, 1])
    def test_the_loss_weighs_its_parts(self, tiny, weight):
        terms = tiny(diffusion_weight=weight)(torch.rand(2, 5, 1, 16, 16), torch.rand(2, 20, 1, 16, 16))
        expected = weight * terms["diffusion"] + (1 - weight) * terms["deterministic"]
        torch.testing.assert_close(terms["loss"], expected)

    def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(self, monkeypatch):
        frames, kept, gradients = torch.rand(2, 25, 1, 16, 16), {}, {}
        for checkpointing in (False, True):
            torch.manual_seed(0)
            model = DiffCast(ConvGRU((1, 16, 16), dims=(8, 8), kernel_sizes=(3, 3)), 8, (1, 2))
            model.gradient_checkpointing = model.motion.recompute = model.residual.recompute = checkpointing
            kept[checkpointing], terms = bytes_kept(partial(model, frames[:, :5], frames[:, 5:], seeded(1, 2)))
            terms["loss"].backward()
            gradients[checkpointing] = [p.grad for p in model.parameters()]
        assert kept[True] < kept[False] / 3
        assert all(torch.equal(one, other) for one, other in zip(*gradients.values(), strict=True))

    def test_a_frozen_backbone_stays_as_it_is(self, tiny):
        model = tiny(freeze_backbone=True).train()
        terms = model(torch.rand(2, 5, 1, 16, 16), torch.rand(2, 20, 1, 16, 16))
        terms["loss"].backward()
        assert torch.equal(terms["loss"], terms["diffusion"])
        assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
        assert all(p.grad is not None for p in (*model.motion.parameters(), *model.residual.parameters()))
        assert model.training
        assert not model.backbone.training

    def test_a_backbone_that_is_not_frozen_follows_the_mode(self, tiny):
        model = tiny()
        assert model.train().backbone.training
        assert not model.eval().backbone.training

    def test_an_architecture_passes_every_option_on(self):
        architecture = Architecture("convgru", True, (1, 16, 16), 4, 6, {}, 8, (1, 2), 3, 50, 0.5, "crps")
        model = architecture.build(diffusion_weight=0.3, freeze_backbone=True)
        assert (model.frame_shape, model.frames_in, model.frames_out) == ((1, 16, 16), 4, 6)
        assert (model.segment_length, model.schedule.timesteps, model.residual.dim) == (3, 50, 8)
        assert (model.residual_scale, model.objective) == (0.5, "crps")
        assert model.freeze_backbone
        assert architecture.build(loss_weight="uniform").loss_weight == "uniform"
        thrifty = architecture.build(gradient_checkpointing=True)
        assert all((thrifty.gradient_checkpointing, thrifty.motion.recompute, thrifty.residual.recompute))
        assert architecture.build(diffusion_weight=0.3).diffusion_weight == 0.3


@pytest.mark.parametrize(
    ("frame_shape", "options", "message"),
    [
        ((1, 36, 32), {}, "frames of 36 x 32 pixels do not fit the 4 levels of dim_mults; choose a multiple of 8"),
        ((1, 32, 33), {"dim_mults": (1, 2)}, "frames of 32 x 33 pixels do not fit the 2 levels"),
        ((1, 32, 32), {"dim": 20}, "dim must be a positive multiple of 8, not 20"),
        ((1, 32, 32), {"dim": 0}, "dim must be a positive multiple of 8, not 0"),
        ((1, 32, 32), {"segment_length": 0}, r"segment_length must lie between 1 and frames_out \(20\), not 0"),
        ((1, 32, 32), {"segment_length": 21}, "segment_length must lie between 1 and .*, not 21"),
        ((1, 32, 32), {"diffusion_weight": 0}, r"diffusion_weight must lie in \(0, 1\], not 0"),
        ((1, 32, 32), {"diffusion_weight": 1.5}, r"diffusion_weight must lie in \(0, 1\], not 1.5"),
        ((1, 32, 32), {"residual_scale": 0.0}, r"residual_scale must lie in \(0, 2\], not 0.0"),
    ],
)
def test_contradicting_options_are_refused(frame_shape, options, message):
    with pytest.raises(InputError, match=message):
        build_diffcast(Persistence(frame_shape), **options)
