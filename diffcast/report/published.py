"""Published scores, shown with our own in the same setting."""

from dataclasses import dataclass

from diffcast.report.evaluation import Evaluation


@dataclass(frozen=True)
class Published:
    """A table of the literature. `rows[i][1:]` belong to `columns`; None: not reported."""

    title: str
    split: str  # the setting of that name
    columns: dict[str, str]  # heading -> key of our score with the same reduction
    rows: tuple[tuple[str | float | None, ...], ...]
    note: str


SEVIR_128 = Published(
    title="SEVIR, 5 → 20 frames, 128 by 128 pixels",
    split="official",
    columns={"CSI": "csi", "CSI pool 4": "csi_pool4", "CSI pool 16": "csi_pool16", "HSS": "hss"},
    rows=(
        ("SimVP", 0.2662, 0.2844, 0.3452, 0.3369),
        ("DiffCast + SimVP", 0.3077, 0.4122, 0.5683, 0.4033),
        ("Earthformer", 0.2513, 0.2617, 0.2910, 0.3073),
        ("DiffCast + Earthformer", 0.2823, 0.3868, 0.5362, 0.3623),
        ("PhyDNet", 0.2560, 0.2685, 0.3005, 0.3124),
        ("DiffCast + PhyDNet", 0.2757, 0.3797, 0.5296, 0.3584),
        ("ConvGRU", 0.2416, 0.2554, 0.3050, 0.2834),
        ("DiffCast + ConvGRU", 0.2772, 0.3809, 0.5463, 0.3551),
        ("PreDiff", 0.2304, 0.3041, 0.4028, 0.2986),
        ("MCVD", 0.2148, 0.3020, 0.4706, 0.2743),
    ),
    note="Yu et al., CVPR 2024 (arXiv 2312.06734), Table 1: CSI and HSS as means over lead times, pooled CSI from "
    "counts summed over lead times, one draw per forecast. The released checkpoint of DiffCast + PhyDNet was, by its "
    "authors' account, scored on a reduced test set.",
)
SEVIR_384 = Published(
    title="SEVIR, 13 → 12 frames, 384 by 384 pixels",
    split="benchmark",
    columns={
        "CSI total": "csi_total",
        "CSI pool 4": "csi_pool4",
        "CSI pool 16": "csi_pool16",
        "HSS total": "hss_total",
        "CRPS": "crps",
    },
    rows=(
        ("Earthformer (its paper)", 0.4419, None, None, None, None),
        ("SimVP (CasCast paper)", 0.4153, 0.4226, 0.4530, 0.5280, None),
        ("PreDiff (CasCast paper)", 0.3875, 0.3918, 0.4157, 0.4914, None),
        ("CasCast, 10 members (its paper; Gaussian CRPS)", 0.4401, 0.4640, 0.5225, 0.5602, 0.0202),
        ("SimCast (its paper)", 0.4521, 0.4750, 0.4968, 0.5834, 0.0270),
        ("FlowCast, 8 members (its paper)", 0.460, None, 0.506, 0.580, 0.0182),
    ),
    note="From the papers named: scores of counts summed over lead times. CasCast and PreDiff: as printed in Gong et "
    "al., ICML 2024.",
)
SETTINGS = {((1, 128, 128), 5, 20): SEVIR_128, ((1, 384, 384), 13, 12): SEVIR_384}
CAUTION = (
    "Papers differ in the split of SEVIR, in reduction, members and definition of CRPS: read these numbers as "
    "orders of magnitude, not as a ranking against ours."
)


def published_for(evaluation: Evaluation) -> Published | None:
    """The table of the evaluation's setting, if the literature has one.

    None unless the complete test split of SEVIR was scored.
    """
    settings, source = evaluation.section("settings"), evaluation.source
    setting = (tuple(source.get("frame_shape") or ()), source.get("frames_in"), source.get("frames_out"))
    found = SETTINGS.get(setting)
    chosen = {key: settings.get(key) for key in ("dataset", "split", "stride", "eval_sequences")}
    complete = {"dataset": "sevir", "split": found and found.split, "stride": None, "eval_sequences": None}
    return found if chosen == complete and not source.get("synthetic") else None
