"""Reconcile what a weights file and the user say about a network."""

from dataclasses import dataclass
from pathlib import Path

from models import full_options
from utils.errors import InputError

OF_DIFFUSION = (
    "dim",
    "dim_mults",
    "segment_length",
    "timesteps",
    "objective",
    "residual_scale",
)  # nothing to a backbone alone


@dataclass(frozen=True)
class Description:
    """What a weights file says about itself."""

    path: Path
    network: dict  # by the names of the options of `run.py`, of which official weights determine a part
    metadata: dict  # besides, of our files: dataset, source, course

    def agreed(self, given: dict, stated: dict | None = None) -> dict:
        """Combine the options that the user gave with those of the file.

        `stated` are the options of the file, by default all of its network.

        Raises `InputError` where the two differ, and for a backbone that is code which the user has not named.
        """
        stated = self.network if stated is None else stated
        if given.get("use_diff") and not stated.get("use_diff", True):
            raise InputError(f"leave out --use_diff: {self.path} holds a backbone alone.")
        if differing := self._differences(stated, given):
            raise InputError(
                f"checkpoint {self.path} contradicts the command line (checkpoint / command line): "
                f"{'; '.join(differing)}; leave out what the checkpoint determines, or name another one."
            )
        if ":" in stated["backbone"] and "backbone" not in given:
            raise InputError(
                f"checkpoint {self.path} has the backbone {stated['backbone']}, which is code outside of this project "
                f"and is not run on a file's word; add --backbone {stated['backbone']}."
            )
        return {**given, **stated, "backbone_options": self._chosen(stated, given)}

    def _chosen(self, stated: dict, given: dict) -> dict:
        """Return the backbone's options.

        Our files hold all options, and official weights those that shape them.
        """
        if self.metadata:
            return stated["backbone_options"]
        defaults = full_options(stated["backbone"], {})
        options = given.get("backbone_options", {}) | stated["backbone_options"]
        return {name: value for name, value in options.items() if plain(value) != plain(defaults.get(name))}

    def _differences(self, stated: dict, given: dict) -> list[str]:
        """List contradictions as `--option the file's / the user's`."""
        pairs = {name: (stated[name], given[name]) for name in stated if name in given}
        if "segment_length" in pairs:  # None: as many as frames_in
            pairs["segment_length"] = tuple(
                side["segment_length"] or side.get("frames_in", stated["frames_in"]) for side in (stated, given)
            )
        for name in ("backbone_options", *(() if stated.get("use_diff") else OF_DIFFUSION)):
            pairs.pop(name, None)
        found = [f"--{name} {_text(a)} / {_text(b)}" for name, (a, b) in pairs.items() if plain(a) != plain(b)]
        if given.get("backbone", stated["backbone"]) == stated["backbone"]:
            found += self._option_differences(stated, given)
        return found

    def _option_differences(self, stated: dict, given: dict) -> list[str]:
        options = given.get("backbone_options", {})
        if not options or (":" in stated["backbone"] and "backbone" not in given):
            return []
        shown = stated["backbone_options"]
        known = full_options(stated["backbone"], shown) if self.metadata else shown
        return [
            f"--backbone_options {name}={_text(known.get(name, 'unknown'))} / {_text(value)}"
            for name, value in options.items()
            if (name in known or self.metadata) and plain(known.get(name)) != plain(value)
        ]


def plain(value):
    """The value as JSON would give it back."""
    return list(value) if isinstance(value, tuple) else value


def _text(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
