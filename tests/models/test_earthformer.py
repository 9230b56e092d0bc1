"""Earthformer against its published form, and at sizes the published form was never given."""

import numpy as np
import pytest
import torch
from einops import rearrange

from models.cuboid import AxialAttention, RelativePositionBias
from models.earthformer import Earthformer, PatchMerging
from tests.golden.reference import arrays, official_weights, shapes
from utils.errors import InputError
from utils.official import load_official, rename

AXES = "thw"
MODULES = {  # golden tensor -> the module that returns it, alone or with the global vectors
    **{f"stem_{i}": f"stem.{i}" for i in range(3)},
    **{f"enc{level}_attn_{a}": f"encoder.level{level}.attentions.{i}" for level in (0, 1) for i, a in enumerate(AXES)},
    **{
        f"enc{level}_ffn_{a}": f"encoder.level{level}.feed_forwards.{i}" for level in (0, 1) for i, a in enumerate(AXES)
    },
    **{f"enc{level}_out": f"encoder.level{level}" for level in (0, 1)},
    "down_out": "encoder.merge",
    "down_global": "encoder.project_globals",
    "dec1_cross_attn": "decoder.cross1.attention",
    "dec1_out": "decoder.cross1",
    "dec_up": "decoder.upsample",
    **{f"dec0_attn_{a}": f"decoder.self0.attentions.{i}" for i, a in enumerate(AXES)},
    "dec0_self": "decoder.self0",
    "dec0_out": "decoder.cross0",
    **{f"final{i}_up": f"head.{i}.upsample" for i in range(3)},
    **{f"final{i}_out": f"head.{i}.convs" for i in range(3)},
}


def small(frame_shape=(1, 32, 40), frames_in=5, frames_out=20, **options):
    torch.manual_seed(0)
    return Earthformer(frame_shape, frames_in, frames_out, **{"stem_dims": (4, 8, 16), **options}).eval()


@pytest.fixture(scope="module")
def golden():
    found = arrays("earthformer_small")
    return {name: torch.from_numpy(array) for name, array in found.items() if array.dtype == np.float32}


@pytest.fixture
def official():
    model = small()
    load_official(model, official_weights(shapes("earthformer_keys_small"), seed=1))
    return model


def test_forecast_equals_the_reference(official, golden):
    forecast = official.trend(rearrange(golden["x"], "b t h w c -> b t c h w"))
    torch.testing.assert_close(rearrange(forecast, "b t c h w -> b t h w c"), golden["y"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_every_layer_equals_the_reference(official, golden):
    official.double()
    official.encoder.level1.attentions[-1].updates_globals = True  # as the reference does, though nothing reads it
    seen = {}

    def record(name):
        def hook(module, inputs, output):
            tokens, *vectors = output if isinstance(output, tuple) else (output,)
            seen[name] = tokens if name.endswith("_global") else tokens[:1]
            if name.startswith("final"):
                seen[name] = tokens[:1, [0, 10]]
            if vectors:
                seen[name.removesuffix("_out") + "_global"] = vectors[0]

        return hook

    for name, module in MODULES.items():
        official.get_submodule(module).register_forward_hook(record(name))
    official.encoder.level0.register_forward_pre_hook(lambda module, inputs: seen.update(encoder_input=inputs[0][:1]))
    seen["y"] = rearrange(
        official.trend(rearrange(golden["x"].double(), "b t h w c -> b t c h w")), "b t c h w -> b t h w c"
    )
    seen["z"] = official.decoder.to_query(official.decoder.position())[None]

    expected = {name.removeprefix("mid/"): value for name, value in golden.items() if name != "x"}
    assert seen.keys() == expected.keys()
    wrong = [name for name, value in expected.items() if not torch.allclose(seen[name], value.double(), atol=1e-6)]
    assert not wrong


def test_names_and_shapes_are_the_official_ones():
    with torch.device("meta"):
        model = Earthformer()
    official = shapes("earthformer_keys")
    official["decoder.cross_blocks.0.0.attn_l.0.relative_position_index"] = [25, 25]  # checkpoints hold such buffers
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == rename(official, model.official_names, model.official_dropped)
    assert sum(p.numel() for p in model.parameters()) == 8_658_205


def test_the_published_sevir_model_can_be_built():
    with torch.device("meta"):
        model = Earthformer((1, 384, 384), 13, 12, stem_factors=(3, 2, 2))
    assert sum(p.numel() for p in model.parameters()) == 8_659_677


@pytest.mark.parametrize(
    ("frame_shape", "frames_in", "frames_out", "stem_factors"),
    [
        ((1, 33, 41), 5, 20, (1, 2, 2)),  # padded in every merging
        ((2, 32, 24), 13, 12, (3, 2, 2)),  # fewer frames out than in
        ((1, 17, 30), 5, 7, (2, 2, 1)),  # a last piece of two frames
        ((1, 5, 3), 1, 1, (1, 2, 2)),
    ],
)
def test_any_size_is_forecast_and_trained(frame_shape, frames_in, frames_out, stem_factors):
    model = small(frame_shape, frames_in, frames_out, stem_factors=stem_factors).train()
    losses = model(torch.rand(2, frames_in, *frame_shape), torch.rand(2, frames_out, *frame_shape))
    losses["loss"].backward()
    assert losses["forecast"].shape == (2, frames_out, *frame_shape)
    assert losses["forecast"].isfinite().all()


def test_padding_appends_zeros_at_bottom_and_right():
    merge = PatchMerging(3, 8, factor=2)
    frames = torch.rand(1, 1, 3, 5, 3)
    padded = torch.zeros(1, 1, 4, 6, 3)
    padded[:, :, :3, :5] = frames
    torch.testing.assert_close(merge(frames), merge(padded))


def test_pieces_of_the_forecast_do_not_see_one_another():
    attention = AxialAttention(8, 4, "time", length=7, reach=5, dropout=0.0)
    frames = torch.rand(1, 7, 2, 2, 8)
    before = attention(frames)
    frames[:, 0] += torch.rand(8)
    changed = (attention(frames) != before).any(dim=-1)[0, :, 0, 0]
    assert changed.tolist() == [True] * 5 + [False] * 2


def test_frames_appended_to_the_last_piece_take_part_in_its_softmax():
    attention = AxialAttention(8, 4, "time", length=7, reach=5, dropout=0.0)
    frames = torch.rand(1, 7, 2, 2, 8)
    zero_after_norm = torch.ones(1, 3, 2, 2, 8)
    whole = attention(torch.cat((frames, zero_after_norm), dim=1))
    torch.testing.assert_close(attention(frames), whole[:, :7])


def test_short_sequences_use_the_middle_of_the_bias_table():
    bias = RelativePositionBias(heads=1, queries=2, keys=3, reach=5)
    bias.table.data = torch.arange(9.0)[:, None]
    assert bias().tolist() == [[[4, 3, 2], [5, 4, 3]]]


def test_gradients_reach_exactly_the_trainable_parameters():
    model = small().train()
    model(torch.rand(1, 5, 1, 32, 40), torch.rand(1, 20, 1, 32, 40))["loss"].backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    unread = "encoder.level1.attentions.2.global_update."
    assert without == frozen == {name for name, _ in model.named_parameters() if name.startswith(unread)}


def test_half_precision_stays_finite():
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(torch.rand(1, 5, 1, 32, 40), torch.rand(1, 20, 1, 32, 40))
    losses["loss"].backward()
    assert losses["forecast"].isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_a_forecast_depends_on_its_own_sample_only():
    model = small()
    frames = torch.rand(2, 5, 1, 32, 40)
    both = model.trend(frames)
    assert torch.equal(both, model.trend(frames))
    torch.testing.assert_close(both[1:], model.trend(frames[1:]), atol=1e-4, rtol=0)


def test_weights_start_as_in_the_reference():
    torch.manual_seed(0)
    model = Earthformer((1, 32, 32), stem_dims=(16, 64, 128))
    level = model.encoder.level1
    expected = {
        level.feed_forwards[0].contract.weight: 1024**-0.5,
        level.attentions[0].to_qkv.weight: 256**-0.5,
        level.attentions[0].bias.table: 0.02,
        level.attentions[0].global_update.out.weight: (3 * 256) ** -0.5,
        model.encoder.project_globals.weight: (3 * 128) ** -0.5,
        model.encoder.position.row: 0.02,
        model.encoder.global_vectors: 0.02,
        model.decoder.upsample.conv.weight: (2 / 1.01 / (9 * 128)) ** 0.5,
        model.head[0].convs.layers[0].weight: (3 * 9 * 128) ** -0.5,
    }
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.25 if weight.numel() < 200 else 0.1)


@pytest.mark.parametrize("frames", [torch.zeros(1, 5, 1, 31, 40), torch.zeros(1, 4, 1, 32, 40)])
def test_frames_of_another_size_are_refused(frames):
    with pytest.raises(InputError, match="frame_shape"):
        small().trend(frames)


@pytest.mark.parametrize("options", [{"stem_factors": (2, 2)}, {"heads": 3}, {"stem_dims": (4, 9, 16)}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="stem_dims"):
        small(**options)
