"""What computed something: versions, commit and devices, for reports."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "transformers")


def versions() -> list[str]:
    """This package, what it computes with, and Python."""
    found = []
    for name in ("fusion_jax", *PACKAGES):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} (not installed)" if name in PACKAGES else f"{name} (its sources)")
    return [*found, f"python {platform.python_version()}"]


def commit(root: Path = ROOT) -> str:
    """The commit of a clone, and whether files differ from it; nothing where there is no clone."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10,
            check=True,
        )  # fmt: skip
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return ""
        changed = " and changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD")[:12] + changed
    except (OSError, subprocess.SubprocessError):
        return ""


def devices() -> str:
    """How many devices of which kind, on how many hosts."""
    first, hosts = jax.devices()[0], jax.process_count()
    where = f", {hosts} hosts" if hosts > 1 else ""
    return f"{jax.device_count()} x {first.device_kind} ({first.platform}){where}"
