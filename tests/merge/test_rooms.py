"""The rooms of the merge package: imports run downwards between them, and to nothing that stands above the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fusion_jax

PACKAGE = "fusion_jax.merge"
ROOMS = ["names", "methods", "recipes", "vocabulary", "executor"]
ABOVE = ("fusion_jax.train", "fusion_jax.plan", "fusion_jax.evals", "fusion_jax.sampling", "experiments")
ROOT = Path(fusion_jax.__file__).parent / "merge"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imported(file: str) -> list[str]:
    """Every module that a file imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def room_of(module: str) -> str | None:
    """The room of a module of the package."""
    parts = module.removeprefix(f"{PACKAGE}.").split(".")
    return parts[0] if module.startswith(f"{PACKAGE}.") and parts[0] in ROOMS else None


@pytest.mark.parametrize("file", FILES)
def test_imports_run_downwards(file: str) -> None:
    own = Path(file).parts[0].removesuffix(".py")
    for module in imported(file):
        assert not module.startswith(ABOVE), module
        room = room_of(module)
        if own in ROOMS and room is not None:
            assert ROOMS.index(room) <= ROOMS.index(own), module


def test_methods_know_nothing_of_files() -> None:
    for file in FILES:
        if file.startswith("methods/"):
            names = imported(file)
            assert not [
                n for n in names if n.startswith(("os", "pathlib", "json", "fusion_jax.models", "fusion_jax.files"))
            ]


def test_every_room_has_files() -> None:
    assert {Path(file).parts[0].removesuffix(".py") for file in FILES} == {*ROOMS, "__init__", "trees"}
