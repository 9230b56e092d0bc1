"""Reconcile what a weights file and the user say about a network."""

from dataclasses import dataclass
from pathlib import Path

from models import full_options
from utils.errors import InputError

OF_DIFFUSION = ("dim", "dim_mults", "segment_length", "timesteps", "residual_scale")  # nothing to a backbone alone


@dataclass(frozen=True)
class Description:
    """What a weights file says about itself."""

    path: Path
    network: dict  # by the names of the options of `run.py`; official weights show some of them
    metadata: dict  # besides, of our files: dataset, source, course

    def agreed(self, given: dict, told: dict | None = None) -> dict:
        """Combine the options that the user gave with those of the file.

        `told` are the options of the file, by default all of its network.

        Raises `InputError` where the two differ, and for a backbone that is code which the user has not named.
        """
        told = self.network if told is None else told
        if given.get("use_diff") and not told.get("use_diff", True):
            raise InputError(f"leave out --use_diff: {self.path} holds a backbone alone.")
        if differing := self._differences(told, given):
            raise InputError(
                f"checkpoint {self.path} contradicts the command line (checkpoint / command line): "
                f"{'; '.join(differing)}; leave out what the checkpoint tells, or name another one."
            )
        if ":" in told["backbone"] and "backbone" not in given:
            raise InputError(
                f"checkpoint {self.path} has the backbone {told['backbone']}, which is code outside of this project "
                f"and is not run on a file's word; add --backbone {told['backbone']}."
            )
        return {**given, **told, "backbone_options": self._chosen(told, given)}

    def _chosen(self, told: dict, given: dict) -> dict:
        """Return the backbone's options.

        Our files hold all options, and official weights those that shape them.
        """
        if self.metadata:
            return told["backbone_options"]
        defaults = full_options(told["backbone"], {})
        options = given.get("backbone_options", {}) | told["backbone_options"]
        return {name: value for name, value in options.items() if plain(value) != plain(defaults.get(name))}

    def _differences(self, told: dict, given: dict) -> list[str]:
        """List contradictions as `--option the file's / the user's`."""
        pairs = {name: (told[name], given[name]) for name in told if name in given}
        if "segment_length" in pairs:  # None: as many as frames_in
            pairs["segment_length"] = tuple(
                side["segment_length"] or side.get("frames_in", told["frames_in"]) for side in (told, given)
            )
        for name in ("backbone_options", *(() if told.get("use_diff") else OF_DIFFUSION)):
            pairs.pop(name, None)
        found = [f"--{name} {_text(a)} / {_text(b)}" for name, (a, b) in pairs.items() if plain(a) != plain(b)]
        if given.get("backbone", told["backbone"]) == told["backbone"]:
            found += self._option_differences(told, given)
        return found

    def _option_differences(self, told: dict, given: dict) -> list[str]:
        options = given.get("backbone_options", {})
        if not options or (":" in told["backbone"] and "backbone" not in given):
            return []
        shown = told["backbone_options"]
        known = full_options(told["backbone"], shown) if self.metadata else shown
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
