"""Weights under the names of the papers' official code.

A module that official weights exist for carries two tables. `official_names` lists pairs of templates, official and
ours, for the leading parts of a parameter's name, `{}` standing for a number; the first pair that fits counts, whether
it is read from left to right or from right to left. `official_dropped` lists regular expressions for official entries
that repeat others or are recomputed. This file applies the tables of any module.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from utils.checkpoint import TRAINING, WEIGHTS
from utils.errors import InputError
from utils.pickles import load_pickle

Rules = Sequence[tuple[str, str]]
Value = TypeVar("Value")

# Raw weights come before averaged ones because the official evaluation uses them.
_ENTRIES = ("model", "ema", "state_dict")
NOTE = "diffcast"  # key of our metadata as JSON, which the official code ignores
_AVERAGED = "ema_model."
_WRAPPERS = re.compile(r"^(ema_model\.|module\.|torch_nn_module\.)+")  # ema-pytorch, DistributedDataParallel, Lightning


def rename(names: dict[str, Value], rules: Rules, dropped: Sequence[str] = ()) -> dict[str, Value]:
    """Rename official names to ours; raises `InputError` for a name without a rule."""
    kept = _without(names, dropped)
    renamed = {name: _rename(name, rules) for name in kept}
    if unknown := [name for name, new in renamed.items() if new is None]:
        raise InputError(f"unexpected official parameters: {_listed(unknown)}.")
    return {renamed[name]: value for name, value in kept.items()}


def prefixed(rules: Rules, official: str, ours: str) -> list[tuple[str, str]]:
    """Prefix the rules of a part with the names of the part in its module."""
    return [(official + theirs, ours + new) for theirs, new in rules]


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `module` under official names, in our order.

    Entries that `official_dropped` stands for are missing.
    """
    inverse = [(ours, official) for official, ours in module.official_names]
    state = module.state_dict()
    names = {name: _rename(name, inverse) for name in state}
    if unknown := [name for name, official in names.items() if official is None]:
        raise InputError(f"{type(module).__name__} has no official names for {_listed(unknown)}.")
    return {names[name]: value for name, value in state.items()}


def load_official(module: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Fill a backbone or a DiffCast from tensors under official names; see `fill`.

    Entries that match `official_dropped` are ignored here and checked by `diffcast.official.load`.
    """
    fill(module, parameters_of(module, state_dict))


def parameters_of(module: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the official tensors that match `official_dropped`."""
    return _without(state_dict, module.official_dropped)


def fill(module: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Fill `module` from exactly its parameters under their official names; see `check_fit`."""
    check_fit(module, parameters)
    module.load_state_dict(rename(parameters, module.official_names))


def check_fit(module: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Compare names and shapes of official tensors with those of `module`.

    Raises `InputError` (a `ValueError`) that names missing and unexpected tensors and those of another shape.
    """
    expected = to_official(module)
    problems = []
    if missing := [name for name in expected if name not in parameters]:
        problems.append(f"missing {_listed(missing)}")
    if extra := [name for name in parameters if name not in expected]:
        problems.append(f"unexpected {_listed(extra)}")
    if wrong := [
        f"{name} {tuple(parameters[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in parameters and parameters[name].shape != value.shape
    ]:
        problems.append(f"wrong shape of {_listed(wrong)}")
    if problems:
        raise InputError(f"the official weights do not fit this {type(module).__name__}: {'; '.join(problems)}.")


def read_official(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read tensors under official names, and the metadata if `export` wrote the file.

    The file (`.pt` or `.ckpt`) is a state dict or a checkpoint that holds one. The official trainer writes `model`,
    whose raw weights the official evaluation uses, and `ema`, which is read only where there is no `model`. Lightning
    writes `state_dict`. Prefixes of wrappers are removed. Nothing in the file is executed. Raises `InputError` for
    anything else.
    """
    if path.name == TRAINING:
        raise InputError(f"checkpoint {path} holds the state to resume from; name the {WEIGHTS} in the same folder.")
    loaded = load_pickle(path)
    noted = _read_note(path, loaded.pop(NOTE)) if NOTE in loaded else {}
    state = next((loaded[entry] for entry in _ENTRIES if isinstance(loaded.get(entry), dict)), loaded)
    if averaged := {name: value for name, value in state.items() if name.startswith(_AVERAGED)}:
        state = averaged
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"checkpoint {path} holds no official weights: neither tensors by name nor an entry "
            f"{', '.join(_ENTRIES[:-1])} or {_ENTRIES[-1]} with them."
        )
    return {_WRAPPERS.sub("", name): value for name, value in state.items()}, noted


def _read_note(path: Path, note: object) -> dict:
    try:
        read = json.loads(note)
    except (TypeError, ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise InputError(f"checkpoint {path} has an entry {NOTE} that is not what `export` writes.")
    return read


def _without(names: dict[str, Value], dropped: Sequence[str]) -> dict[str, Value]:
    return {name: value for name, value in names.items() if not any(re.search(pattern, name) for pattern in dropped)}


def _rename(name: str, rules: Rules) -> str | None:
    for source, target in rules:
        if match := _pattern(source).match(name):
            return target.format(*match.groups()) + name[match.end() :]
    return None


@cache
def _pattern(template: str) -> re.Pattern:
    """Compile a template that matches leading parts of a dotted name."""
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)")


def _listed(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
