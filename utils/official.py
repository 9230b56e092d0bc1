"""Weights under the names of the papers' official code.

A module that such weights exist for carries two tables: `official_names`, a list of (regular expression, replacement)
of which the first that matches an official parameter name counts; and `official_dropped`, expressions for entries that
are duplicates or recomputed. All expressions start with `^`. This file applies them; it knows no module.
"""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from utils.errors import InputError

Rules = Sequence[tuple[str, str]]


def rename(names: dict[str, Tensor], rules: Rules, dropped: Sequence[str] = ()) -> dict[str, Tensor]:
    """Translate official names to ours; raises `InputError` for a name that no rule and no drop rule knows."""
    renamed = {}
    unknown = []
    for name, value in names.items():
        if any(re.search(pattern, name) for pattern in dropped):
            continue
        match = next(((pattern, new) for pattern, new in rules if re.search(pattern, name)), None)
        if match is None:
            unknown.append(name)
        else:
            renamed[re.sub(*match, name, count=1)] = value
    if unknown:
        raise InputError(f"unexpected official parameters: {_some(unknown)}.")
    return renamed


def prefixed(rules: Rules, official: str, ours: str) -> list[tuple[str, str]]:
    """The rules of a part, for the whole that holds it as `official` in their names and as `ours` in our names."""
    return [(f"^{re.escape(official)}{pattern.removeprefix('^')}", ours + new) for pattern, new in rules]


def load_official(module: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Fill `module` (a backbone or a DiffCast) from tensors under their official names.

    Raises `InputError` (a `ValueError`) that names every parameter that is missing, unexpected or of another shape.
    """
    ours = rename(state_dict, module.official_names, module.official_dropped)
    expected = module.state_dict()
    problems = []
    if missing := [name for name in expected if name not in ours]:
        problems.append(f"missing {_some(missing)}")
    if extra := [name for name in ours if name not in expected]:
        problems.append(f"unexpected {_some(extra)}")
    if wrong := [
        f"{name} {tuple(ours[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in ours and ours[name].shape != value.shape
    ]:
        problems.append(f"wrong shape of {_some(wrong)}")
    if problems:
        raise InputError(f"the official weights do not fit this {type(module).__name__}: {'; '.join(problems)}.")
    module.load_state_dict(ours)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
