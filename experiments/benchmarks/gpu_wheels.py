"""Wheels for `gpu.py` on a machine that has jax and PyTorch and no network.

`pack` asks pip what the project's pinned requirements need there, leaves out what jax and PyTorch bring and
what the benchmark does not touch, and downloads the rest. `install` puts them into a folder of their own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2014", "2_12", "2010", "2_5", "1")  # manylinux, of x86-64
MOST_MB = 60
BROUGHT = frozenset((
    "jax", "jaxlib", "ml-dtypes", "numpy", "opt-einsum", "scipy",
    "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy", "torch",
    "typing-extensions",
))  # fmt: skip
"""What jax and torch come with."""
UNUSED = frozenset((
    "chex", "datasets", "tensorflow-datasets", "hf-xet", "uvloop", "treescope", "psutil",
    "typer", "shellingham", "click", "annotated-doc", "annotated-types", "pydantic", "pydantic-core",
    "typing-inspection", "opencc", "sacrebleu", "portalocker", "lxml", "tabulate", "colorama",
))  # fmt: skip
"""What no part of the benchmark imports, or only where it is installed."""
PLOTS = frozenset((
    "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing", "python-dateutil",
))  # fmt: skip
"""What draws the figures of a report, and is left out where the rest alone would fit."""


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(file: Path) -> set[str]:
    """The distributions that a file of requirements or of `pip list --format=freeze` names."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return {normal(re.split(r"[\s=<>~!\[;@]", line)[0]) for line in lines if line}


def target_options(python: str) -> list[str]:
    """pip's options for the other machine, whatever this one is."""
    platforms = [f"--platform=manylinux{'' if p in ('2014', '2010', '1') else '_'}{p}_x86_64" for p in PLATFORMS]
    return ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]


def pack(folder: Path, requirements: Path, *, python: str = "3.12", installed: Path | None = None) -> None:
    """Fill a folder with wheels, and say how large they are.

    Args:
      requirements: the project's pins. python: version of the machine's, which is an x86-64 Linux. installed: what it
        has besides jax and torch, see `names_in`.

    Raises:
      SystemExit: the folder holds other things, pip failed, or the wheels are larger than they may be.
    """
    there = BROUGHT | UNUSED | (names_in(installed) if installed else set())
    if not names_in(requirements) - there:
        raise SystemExit(f"error: nothing of {requirements} is missing there")
    wanted = [v for v in resolved(requirements, there, python) if normal(v.partition("==")[0]) not in there]
    if folder.exists() and any(path.suffix != ".whl" for path in folder.iterdir()):
        raise SystemExit(f"error: {folder} holds more than wheels. Give a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    pip("download", "--no-deps", f"--dest={folder}", *target_options(python), *wanted)
    size = total(folder)
    if size > MOST_MB * 1e6:
        for wheel in folder.glob("*.whl"):
            if normal(wheel.name.partition("-")[0]) in PLOTS:
                wheel.unlink()
        print(f"left out, since all would be {size / 1e6:.1f} MB: {', '.join(sorted(PLOTS))}")
        print("The default run ends before its figures where that machine has none of them.")
    size = total(folder)
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size / 1e6:.1f} MB")
    if size > MOST_MB * 1e6:
        raise SystemExit(f"error: larger than {MOST_MB} MB. Name what the machine has with --installed")


def resolved(requirements: Path, there: frozenset[str] | set[str], python: str) -> list[str]:
    """name==version of the pinned requirements that are not there, and of all that these need."""
    with tempfile.TemporaryDirectory() as temporary:
        pins, report = Path(temporary) / "pins.txt", Path(temporary) / "report.json"
        lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
        missing = [line for line in lines if line and normal(re.split(r"[=\[]", line)[0]) not in there]
        pins.write_text("\n".join(missing), encoding="utf-8")
        pip(
            "install", "--dry-run", "--ignore-installed", f"--report={report}", f"--target={temporary}/none",
            *target_options(python), f"--requirement={pins}",
        )  # fmt: skip
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [f"{one['metadata']['name']}=={one['metadata']['version']}" for one in found]


def install(folder: Path, target: Path) -> Path:
    """The wheels of a folder, installed into `target`, which goes on PYTHONPATH. Nothing else is looked at or changed.

    Raises:
      SystemExit: there are none, or pip failed.
    """
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        raise SystemExit(f"error: {folder} has no wheels. Fill it with --pack on a machine with a package index")
    pip("install", "--no-index", "--no-deps", "--no-compile", f"--find-links={folder}", f"--target={target}", *wheels)
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: pip {arguments[0]} failed:\n{done.stderr[-2000:]}")


def total(folder: Path) -> int:
    """Bytes of the wheels of a folder."""
    return sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
