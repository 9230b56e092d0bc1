"""The rooms of the house import each other one way: run.py -> diffcast -> models, dataset -> utils."""

import ast
from graphlib import TopologicalSorter

from tests.tiny import ROOT

FLOORS = {"utils": 0, "models": 1, "dataset": 1, "diffcast": 2, "run": 3, "sample_batch": 3}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for pattern in ("*.py", "utils/**/*.py", "models/**/*.py", "dataset/**/*.py", "diffcast/**/*.py")
    for path in ROOT.glob(pattern)
}


def imported(module):
    """Modules of the project that a module imports anywhere, in its functions too."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (found for found in [name if name in FILES else node.module] if found in FILES)


IMPORTS = {module: set(imported(module)) for module in FILES}


def test_no_module_imports_from_a_floor_above_or_from_the_room_beside():
    rooms = {(module.split(".")[0], other.split(".")[0]) for module in IMPORTS for other in IMPORTS[module]}
    assert {(room, other) for room, other in rooms if room != other and FLOORS[room] <= FLOORS[other]} == set()


def test_no_modules_import_each_other_in_a_circle():
    assert list(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names them
