"""What a newcomer installs: any Python from 3.11 on, ranges that admit the tested versions, a wheel that is whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.small import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = ("README.md", "requirements.txt", ".ci/run", "tpu_scripts/README.md", "docs", "experiments/notebooks")


def pins():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def version(pin):
    [only] = pin.specifier
    assert only.operator == "=="
    return Version(only.version)


def commands():
    """The shell commands of README's fences."""
    fences = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [fence.strip() for fence in fences]


def test_ranges_admit_the_pins_and_other_versions():
    """A Colab has its own jax: a package is not to replace it by the one that the tests happened to run with."""
    ranges = {r.name.lower(): r for r in map(Requirement, PROJECT["dependencies"])}
    assert set(ranges) == {pin.name.lower() for pin in pins()}
    for pin in pins():
        allowed = ranges[pin.name.lower()].specifier
        assert version(pin) in allowed, pin
        assert all(one.operator != "==" for one in allowed), pin
    for name, others in {"jax": ("0.8.1", "0.11.2"), "numpy": ("2.1.0", "2.5.5"), "transformers": ("5.0.1",)}.items():
        assert all(Version(other) in ranges[name].specifier for other in others), name


def test_no_page_asks_for_one_python():
    files = [f for page in PAGES for f in ([ROOT / page] if (ROOT / page).is_file() else (ROOT / page).rglob("*"))]
    named = [
        f for f in files if f.suffix in ("", ".md", ".txt", ".ipynb") and f.is_file() and "python3.11" in f.read_text()
    ]
    assert named == []
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_commands_say_at_once_that_a_python_is_too_old(tmp_path):
    """Both of them, with a stand-in for an old python3 that runs nothing else."""
    old = tmp_path / "python3"
    old.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10, 13); $2"\n'
    )
    old.chmod(0o755)
    first, second = [command for command in commands() if "-m venv" in command]
    for command in (first, second):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 1 and done.stdout == "", done
        assert done.stderr.splitlines() == ["Python 3.11 or newer is needed"]
        assert "-e ." in command


def test_the_package_says_that_a_python_is_too_old():
    code = "import sys; sys.version_info = (3, 10, 13); import fusion_jax"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: fusion_jax needs Python 3.11 or newer; this is Python "
    )


def test_the_check_of_ci_is_the_command_of_the_readme():
    marked = re.search(r"<!-- test-command -->\n```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S)
    assert marked and marked[1] in commands() and "pytest" in marked[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What of this tree a package is built from."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "fusion_jax", source / "fusion_jax", ignore=shutil.ignore_patterns("__pycache__"))
    return source


def built(source: Path, how: str, out: Path) -> Path:
    """The wheel that pip would make, for `how` "wheel" or "editable", unpacked."""
    code = f"from setuptools import build_meta; build_meta.build_{how}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    return built(source, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_package(unpacked):
    def files(folder: Path) -> set[str]:
        found = (folder / "fusion_jax").rglob("*")
        return {str(f.relative_to(folder)) for f in found if f.is_file() and "__pycache__" not in f.parts}

    assert files(unpacked) == files(ROOT)
    assert "fusion_jax/zoo/models/target/model.safetensors" in files(unpacked)


def test_the_wheel_works_away_from_the_repository(unpacked, tmp_path):
    code = "import json, fusion_jax as fj; from fusion_jax.zoo import model_path; from pathlib import Path; folder = Path(model_path('zoo:target')); print(json.dumps([fj.__file__, str(folder), folder.is_dir()]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    package, folder, there = json.loads(done.stdout)
    assert package.startswith(str(unpacked)) and folder.startswith(str(unpacked)) and there
    metadata = next(unpacked.glob("*.dist-info/METADATA")).read_text()
    assert "Requires-Python: >=3.11" in metadata and "Requires-Dist: jax>=" in metadata


def test_an_editable_install_is_a_plain_entry_of_the_path(source, tmp_path):
    """No import hook: experiments are importable as well, and PYTHONPATH, which comes first, chooses another clone."""
    site = built(source, "editable", tmp_path)
    [entry] = [file for file in site.iterdir() if not file.name.endswith(".dist-info")]
    assert entry.suffix == ".pth" and entry.read_text().split() == [str(source)]


def test_programs_leave_the_path_to_the_installation():
    changed = "sys.path." + "insert"
    folders = ("experiments", "fusion_jax", "tests", "tpu_scripts", "docs")
    files = [
        f for folder in folders for ending in ("py", "ipynb", "md", "sh") for f in (ROOT / folder).rglob(f"*.{ending}")
    ]
    assert len(files) > 100 and [f for f in files if changed in f.read_text()] == []
