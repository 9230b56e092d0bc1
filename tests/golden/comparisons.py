"""Our networks against the stored outputs of the official ones, on any device."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from diffcast import DiffCast, motion, residual
from diffcast.motion import GlobalMotion
from diffcast.residual import LocalResidual
from models.convgru import ConvGRU
from models.earthformer import Earthformer
from models.phydnet import PhyDNet
from models.simvp import SimVP
from tests.golden.reference import arrays, official_weights, segment_noise, shapes
from utils.official import load_official, prefixed, rename

SMALL = "keys_diffcast_phydnet_dim16"
Pairs = dict[str, tuple[Tensor, np.ndarray, float]]  # result, stored result, tolerance
FRAME = (1, 32, 32)


def comparisons(device: torch.device) -> Iterator[tuple[str, Callable[[], Pairs]]]:
    """Yield names, and functions that compute pairs to compare."""
    of = Comparisons(device)
    yield "SimVP", of.simvp
    yield "PhyDNet", of.phydnet
    yield "ConvGRU", of.convgru
    yield "Earthformer", of.earthformer
    yield "GlobalMotion", of.global_motion
    yield "LocalResidual", of.local_residual
    yield "sampling, PhyDNet", lambda: of.sampling("sample_32", PhyDNet(FRAME), shapes(SMALL), 105, 10)
    yield "sampling, SimVP", of.with_simvp
    yield "training objective", of.objective


class Comparisons:
    """Results of our networks on a device, each with the stored one of the official network."""

    def __init__(self, device: torch.device):
        self.device = device

    def stored(self, name: str) -> dict[str, Tensor]:
        return {
            key: torch.from_numpy(value).to(self.device)
            for key, value in arrays(name).items()
            if value.dtype.kind in "fi"
        }

    def filled(self, model: nn.Module, keys: dict, seed: int) -> nn.Module:
        load_official(model, official_weights(keys, seed))
        return model.to(self.device).eval()

    def part(self, network: nn.Module, rules: list, prefix: str, seed: int) -> nn.Module:
        keys = {name: shape for name, shape in shapes(SMALL).items() if name.startswith(prefix)}
        network.load_state_dict(rename(official_weights(keys, seed), prefixed(rules, prefix, "")))
        return network.to(self.device)

    def simvp(self) -> Pairs:
        golden, given = arrays("simvp_32"), self.stored("simvp_32")
        terms = self.filled(SimVP(FRAME), shapes("keys_simvp"), 101)(given["frames_in"], given["frames_gt"])
        return {"forecast": (terms["forecast"], golden["pred"], 1e-4), "loss": (terms["loss"], golden["loss"], 1e-4)}

    def phydnet(self) -> Pairs:
        golden, given = arrays("phydnet_32"), self.stored("phydnet_32")
        model = self.filled(PhyDNet(FRAME), shapes("keys_phydnet"), 102)
        terms = model(given["frames_in"], given["frames_gt"])
        return {
            "forecast": (model.trend(given["frames_in"]), golden["pred_inference"], 1e-4),
            "loss": (terms["loss"], golden["loss_total"], 1e-4),
        }

    def convgru(self) -> Pairs:
        golden = arrays("convgru_small")
        config, gain = json.loads(str(golden["config"])), float(golden["weight_gain"])
        frame = (config["channels"], *config["frame_hw"])
        sizes = {"dims": config["filters"], "kernel_sizes": config["kernels"], "stem_dim": config["stem"]}
        model = ConvGRU(frame, config["frames_in"], config["frames_out"], **sizes)
        weights = official_weights(shapes("convgru_keys_small"), int(golden["seed"]))
        load_official(model, {name: w * (gain if w.dim() > 1 else 1.0) for name, w in weights.items()})
        return {"forecast": (model.to(self.device).trend(self.stored("convgru_small")["x"]), golden["y"], 1e-4)}

    def earthformer(self) -> Pairs:
        golden = arrays("earthformer_small")
        model = self.filled(Earthformer((1, 32, 40), stem_dims=(4, 8, 16)), shapes("earthformer_keys_small"), 1)
        made = model.trend(rearrange(self.stored("earthformer_small")["x"], "b t h w c -> b t c h w"))
        return {"forecast": (rearrange(made, "b t c h w -> b t h w c"), golden["y"], 1e-4)}

    def global_motion(self) -> Pairs:
        golden = arrays("contextnet_32")
        network = self.part(GlobalMotion(dim=16), motion.OFFICIAL_NAMES, "ctx_net.", 103)
        local, last = network(self.stored("contextnet_32")["frames"], local_at=5)
        maps = {"local": local, "global": last}
        return {f"{kind}_{i}": (x, golden[f"{kind}_{i}"], 1e-4) for kind, xs in maps.items() for i, x in enumerate(xs)}

    def local_residual(self) -> Pairs:
        golden, given = arrays("unet_32"), self.stored("unet_32")
        network = self.part(LocalResidual(dim=16), residual.OFFICIAL_NAMES, "model.", 104)
        time, segment = torch.tensor([[17, 803], [2, 0]], device=self.device)
        context = [given[f"ctx_{level}"] for level in range(4)]
        return {"v": (network(given["x"], time, given["cond"], context, segment), golden["out_mixed"], 1e-4)}

    def sampling(self, name: str, backbone: nn.Module, keys: dict, seed: int, steps: int) -> Pairs:
        golden = arrays(name)
        model, noise = (
            self.filled(DiffCast(backbone, dim=16), keys, seed),
            segment_noise(1, seed)[:, None].to(self.device),
        )
        made = model.generate(self.stored(name)["frames_in"], sampling_steps=steps, noise=noise)
        return {
            "trend": (made.trend, golden["mu"], 1e-4),
            "residual": (made.residual[:, 0], golden["residuals"], 6e-4),
            "forecast": (made.forecast[:, 0], golden["frames_pred"], 3e-4),
        }

    def with_simvp(self) -> Pairs:
        diffusion = {name: shape for name, shape in shapes(SMALL).items() if name.startswith(("model.", "ctx_net."))}
        keys = diffusion | {f"backbone_net.{name}": shape for name, shape in shapes("keys_simvp").items()}
        return self.sampling("sample_simvp_32", SimVP(FRAME), keys, 108, 5)

    def objective(self) -> Pairs:
        golden, given = arrays("train_objective_32"), self.stored("train_objective_32")
        model = self.filled(DiffCast(PhyDNet(FRAME), dim=16), shapes(SMALL), 106)
        noise = segment_noise(2, 106).to(self.device)
        with torch.enable_grad():
            terms = model.training_loss(given["frames_in"], given["frames_gt"], given["t"].T, noise)
            terms["loss"].backward()
        names = {"deterministic": "det_loss", "diffusion": "diff_loss_mean", "loss": "total"}
        norms = dict(zip(golden["grad_names"], golden["grad_norms"], strict=True))
        norms = rename(norms, model.official_names, model.official_dropped)
        ratios = torch.stack([p.grad.norm() / float(norms[name]) for name, p in model.named_parameters()])
        return {ours: (terms[ours], golden[theirs], 1e-4) for ours, theirs in names.items()} | {
            "gradients": (ratios, np.ones(len(ratios), np.float32), 5e-3)
        }


@torch.no_grad()
def compare(compute: Callable[[], Pairs]) -> dict:
    """Return the difference that comes nearest to its tolerance, or exceeds it most."""
    rows = []
    for name, (ours, expected, tolerance) in compute().items():
        difference = float(np.nan_to_num(np.abs(ours.detach().cpu().numpy() - expected), nan=np.inf).max())
        rows.append({"of": name, "difference": difference, "tolerance": tolerance})
    worst = max(rows, key=lambda row: row["difference"] / row["tolerance"])
    within = worst["difference"] <= worst["tolerance"]
    return worst | ({} if within else {"failed": "beyond its tolerance"})
