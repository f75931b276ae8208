"""One contender of experiments/benchmarks/merge.py in a process of its own: CONTENDER RECIPE OUT."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

LONG = 20.0  # seconds


def ours(recipe: str, out: str) -> Any:
    """Returns what merges once."""
    from fusion_jax.merge import merge

    return lambda: merge(recipe, out)


def mergekit(recipe: str, out: str) -> Any:
    """The package's own entry point, without its tokenizer copy and model card."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(Path(recipe).read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    return lambda: run_merge(config, out, options)


def main() -> None:
    contender, recipe, out = sys.argv[1:]
    run = {"ours": ours, "mergekit": mergekit}[contender](recipe, out)
    result: dict[str, float] = {}
    for name in ("first", "second"):
        if name == "second" and contender == "mergekit" and result["first"] > LONG:
            result["second"] = result["first"]  # it compiles nothing
            break
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        run()
        result |= {name: time.perf_counter() - started, f"{name} ended": time.time()}
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
