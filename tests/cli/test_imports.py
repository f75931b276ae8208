"""Programs start fast: what only some runs need is imported where it is used."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.small import ROOT

LATE = {"torch", "transformers", "datasets", "tensorflow_datasets", "grain", "orbax", "matplotlib"}


def test_experiments_import_nothing_that_help_and_refusals_do_not_need():
    pages = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem != "__init__")
    code = (
        f"import importlib, json, sys\nfor page in {pages}: importlib.import_module(f'experiments.{{page}}')\n"
        f"print(json.dumps(sorted({LATE} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(pages) > 10 and done.returncode == 0, done.stderr[-1000:]
    assert json.loads(done.stdout) == []
