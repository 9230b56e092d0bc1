"""Which networks the official code can hold, and how it is told about them."""

from diffcast.described import plain
from models import full_options

TIMESTEPS = 1000  # of its diffusion process
FRAMES_IN = 5  # its local context ends after this frame, whatever is observed
CLASSES = ("phydnet", "simvp")  # of the code of DiffCast, in which their widths are constants
OTHERS = ("convgru", "earthformer")  # from the codes of their own papers, without diffusion


def inexpressible(options: dict) -> list[str]:
    """What the official code would compute otherwise, as `--option ours / its`; options of a whole network."""
    backbone, diffusion = options["backbone"], options["use_diff"]
    known = CLASSES if diffusion else CLASSES + OTHERS
    found = [] if backbone in known else [f"--backbone {backbone} / one of {', '.join(known)}"]
    fixed = {}
    if diffusion:
        fixed = {"residual_scale": 1.0, "timesteps": TIMESTEPS, "frames_in": FRAMES_IN, "img_channel": 1}
    found += [f"--{name} {options[name]:g} / {value:g}" for name, value in fixed.items() if options[name] != value]
    if diffusion and options["segment_length"] not in (None, options["frames_in"]):
        found.append(f"--segment_length {options['segment_length']} / as many as --frames_in")
    if backbone in CLASSES:
        constants = full_options(backbone, {})
        found += [
            f"--backbone_options {name}={value} / {constants[name]}"
            for name, value in options["backbone_options"].items()
            if plain(value) != plain(constants[name])
        ]
        if len(set(options["img_size"])) > 1:
            found.append(f"--img_size {' '.join(map(str, options['img_size']))} / one number")
    if (diffusion or backbone == "simvp") and options["frames_out"] % options["frames_in"]:
        found.append(f"--frames_out {options['frames_out']} / a multiple of --frames_in {options['frames_in']}")
    return found


def official_call(options: dict) -> str:
    """What the official code has to be told, because weights do not tell it."""
    size = " ".join(map(str, dict.fromkeys(options["img_size"])))
    words = f"--img_size {size} --frames_in {options['frames_in']} --frames_out {options['frames_out']}"
    if not options["use_diff"]:
        return words
    multiples = ", ".join(map(str, options["dim_mults"]))
    return f"{words}, and its networks built with dim {options['dim']} and multiples ({multiples})"
