"""The house's order: a room imports only rooms that stand below it, and no file of a room imports in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import fusion_jax

ROOT = Path(fusion_jax.__file__).parent

FLOORS = (
    "runs",
    "plan evals",
    "kca",
    "train merge prune cool asking",
    "teachers sampling rewards zoo",
    "dialogue",
    "align correction models",
    "data store",
    "jsonl settings",
    "json_files yaml_files command_line failures markdown ops",
    "arguments display fields files hosts intervals lazy losses options sharding slices",
    "copies",
    "paths",
    "errors figures keeping versions",
)  # from the top down; the package's own face hands names on and stands beside them


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fusion_jax":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix("fusion_jax.") for name in names} & known.keys() - {""}
    return found


def test_every_room_has_a_floor():
    rooms = {name.split(".")[0] for name in modules() if name}
    assert rooms == set(" ".join(FLOORS).split())


def test_rooms_import_downwards_only():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
    known, upwards = modules(), []
    for name, path in known.items():
        room = name.split(".")[0]
        for other in imported(path, known) if name else ():
            below = other.split(".")[0]
            if below != room and floor[below] <= floor[room]:
                upwards.append(f"{name} imports {other}")
    assert not upwards


def test_files_do_not_import_in_a_circle():
    """A package's `__init__` that hands on the names of its own files is left out."""
    known = modules()
    graph = {name: imported(path, known) for name, path in known.items() if path.name != "__init__.py"}
    assert tuple(TopologicalSorter(graph).static_order())


def test_the_library_imports_no_experiment():
    for path in modules().values():
        tops = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert not tops & {"experiments", "tests", "tpu_scripts"}, path
