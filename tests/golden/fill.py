"""Deterministic test weights and inputs (numpy only), shared by both sides of a parity test.

Every array is drawn from numpy.random.default_rng([crc32(name), seed]), so a checkpoint never
has to be stored: whoever knows the names and shapes (keys_*.json) can rebuild the weights.
"""

import zlib

import numpy as np

# Buffers that a model computes for itself; they are never filled.
SCHEDULE_BUFFERS = frozenset(
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "  # noqa: SIM905
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod "
    "posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 "
    "loss_weight".split()
)


def canonical(name):
    """PhyDNet lists its two recurrent cells twice (x.phycell.* and x.encoder.phycell.* are the
    same tensors); both spellings map to the one with 'encoder.' in front of the cell."""
    parts = name.split(".")
    for cell in ("phycell", "convcell"):
        if cell in parts:
            i = parts.index(cell)
            if i == 0 or parts[i - 1] != "encoder":
                parts.insert(i, "encoder")
    return ".".join(parts)


def randn(name, shape, seed):
    """Standard normal float32 array that depends on (name, shape, seed) only."""
    rng = np.random.default_rng([zlib.crc32(name.encode("utf-8")), int(seed)])
    return rng.standard_normal(tuple(shape)).astype(np.float32)


def fill_state_dict(shapes, seed):
    """{official name: shape} -> {official name: float32 array}; own buffers are left out."""
    out = {}
    for name, shape in shapes.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in SCHEDULE_BUFFERS or leaf.startswith(("_M", "_invM")):
            continue
        rng = np.random.default_rng([zlib.crc32(canonical(name).encode("utf-8")), int(seed)])
        z = rng.standard_normal(tuple(shape))
        if leaf == "g":  # RMSNorm gain, shape (1, C, 1, 1)
            w = 1.0 + 0.1 * z
        elif len(shape) >= 2:  # convolution / linear weight; "fan-in" = product of all dims but the first
            w = z / np.sqrt(np.prod(shape[1:]))
        elif leaf == "weight":  # GroupNorm gain
            w = 1.0 + 0.1 * z
        else:  # bias
            w = 0.1 * z
        out[name] = w.astype(np.float32)
    return out
