"""What this package does on one NVIDIA GPU, beside PyTorch: is it right, and how fast is it? Under 8 minutes.

    python experiments/benchmarks/gpu.py                                    # where the requirements are installed
    python experiments/benchmarks/gpu.py --pack build/wheels                # here, with a package index
    PYTHONPATH=. python experiments/benchmarks/gpu.py --wheels build/wheels     # there, with jax, torch and no network
    python experiments/benchmarks/gpu.py --small                            # two layers, for a CPU: tries this program

Parts, each in a process of its own with a time limit of its own:
  parity      logits and training steps of small random models in float32, against numbers stored on a CPU
              (tests/golden/gpu.json, which --store makes anew), each with its tolerance
  ours        SFT, WRPO, distillation (FuseLLM), scoring and decoding of a 1B Llama in bfloat16: seconds, tokens/s, MFU,
              peak memory
  torch       the same in PyTorch: fused attention, torch.compile, fused AdamW
  attention   XLA's attention, as the models use it, beside cuDNN's
  default     `python experiments/wrpo.py` from start to end

Results go to --out: results.jsonl as they come, report.md, and the output of each part. Nothing is fetched, and the
installed jax is never touched: --wheels installs into a folder of its own. Nothing else has to be there to start.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks import gpu_report, gpu_wheels

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
HERE = "experiments.benchmarks"
JAX_MEMORY = "0.9"  # of the GPU; every process has it to itself


@dataclass(frozen=True)
class Part:
    """Jobs of one process. module: has `jobs(small)`, a dict of name -> function that gives rows; limit: in seconds.

    cpu: JAX counts FLOPs alone there, the GPU belongs to PyTorch.
    """

    name: str
    module: str
    jobs: tuple[str, ...]
    limit: float
    cpu: bool = False


PARTS = (
    Part("parity", "gpu_parity", ("llama", "qwen3", "gemma3"), 90),
    Part("ours-sft", "gpu_ours", ("sft",), 75),
    Part("ours-wrpo", "gpu_ours", ("wrpo",), 75),
    Part("torch-steps", "gpu_torch", ("sft", "wrpo", "distillation", "scoring"), 150, cpu=True),
    Part("attention", "gpu_attention", ("causal 2048 x 64", "causal 4096 x 128"), 60),
    Part("ours-decoding", "gpu_ours", ("decoding",), 75),
    Part("ours-scoring", "gpu_ours", ("scoring",), 60),
    Part("ours-distillation", "gpu_ours", ("distillation",), 75),
    Part("torch-decoding", "gpu_torch", ("decoding",), 90, cpu=True),
    Part("default", "", (), 180),
)
SMALL_PARTS = (
    Part("parity", "gpu_parity", ("llama",), 120),
    Part("ours", "gpu_ours", ("sft", "wrpo", "distillation", "scoring", "decoding"), 120),
    Part("torch", "gpu_torch", ("sft", "wrpo", "distillation", "scoring", "decoding"), 120, cpu=True),
    Part("attention", "gpu_attention", ("causal 2048 x 64",), 60),
    Part("default", "", (), 180),
)
SMALL_DEFAULT = (
    "--sources", "zoo:plants-qwen", "--prompts-per-skill", "40", "--test-per-skill", "0", "--sft-share", "0.33",
    "--sample.num-samples", "3", "--sft.epochs", "8", "--sft.batch-size", "8", "--preference.batch-size", "4",
    "--held-out", "0", "--baseline", "False", "--continued", "False",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    if options.pack:
        gpu_wheels.pack(options.pack, ROOT / "requirements.txt", python=options.python, installed=options.installed)
        return 0
    if options.child:
        module, *names = options.child
        return in_child(module, names, options.result, options.small)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        env = environment(Path(temporary), options.wheels)
        if options.store:
            command = [*python(), "--child", "gpu_parity", "store"]
            return subprocess.run(command, env=env | {"JAX_PLATFORMS": "cpu"}, cwd=ROOT, check=False).returncode
        parts = [p for p in (SMALL_PARTS if options.small else PARTS) if chosen(p.name, options.only)]
        rows = measured(parts, out, env, options.small, time.monotonic() + options.budget)
        text = gpu_report.page(rows)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(gpu_report.sound(row) for row in rows) else 1


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/gpu", help="folder of the results")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose names begin so")
    parser.add_argument("--budget", type=float, default=460, help="seconds for all parts together")
    parser.add_argument("--small", action="store_true", help="two layers and a few tokens, for a CPU too")
    parser.add_argument("--wheels", type=Path, help="install the wheels of this folder for the run, without a network")
    parser.add_argument("--pack", type=Path, help="fill this folder with the wheels that a machine with jax lacks")
    parser.add_argument("--python", default="3.12", help="with --pack: the version of that machine's Python")
    parser.add_argument("--installed", type=Path, help="with --pack: `pip list --format=freeze` of that machine")
    parser.add_argument("--store", action="store_true", help="write tests/golden/gpu.json on this machine's CPU")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(name.startswith(one) for one in only)


def python() -> list[str]:
    return [sys.executable, str(Path(__file__).resolve())]


def environment(temporary: Path, wheels: Path | None) -> dict[str, str]:
    """What the processes run with: one GPU, no network, the wheels in front of what is installed."""
    folders = [str(ROOT)]
    if wheels is not None:
        folders.append(str(gpu_wheels.install(wheels, temporary / "site")))
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    defaults = {
        "CUDA_VISIBLE_DEVICES": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; jax refuses both together
        defaults["XLA_CLIENT_MEM_FRACTION"] = JAX_MEMORY
    return defaults | os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def measured(parts: Iterable[Part], out: Path, env: dict[str, str], small: bool, end: float) -> list[Row]:
    """The rows of all parts, printed and stored as they come."""
    file = out / "results.jsonl"
    file.unlink(missing_ok=True)
    rows: list[Row] = []
    for part in parts:
        left = end - time.monotonic()
        if left < min(part.limit, 20):
            found: list[Row] = [{"part": part.name, "error": "no time was left"}]
        elif part.module:
            found = of_child(part, out, env, small, min(part.limit, left))
        else:
            found = [default_run(out, env, small, min(part.limit, left))]
        for row in found:
            print(json.dumps(row), flush=True)
        rows += found
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def of_child(part: Part, out: Path, env: dict[str, str], small: bool, limit: float) -> list[Row]:
    """The rows that a part's process wrote until it ended or was stopped."""
    result = out / f"{part.name}.jsonl"
    result.unlink(missing_ok=True)
    command = [*python(), "--child", part.module, *part.jobs, "--result", str(result), *["--small"] * small]
    env = env | ({"JAX_PLATFORMS": "cpu"} if part.cpu else {})
    log = out / f"{part.name}.log"
    code, seconds = run(command, env, limit, log)
    lines = result.read_text(encoding="utf-8").splitlines() if result.exists() else []
    result.unlink(missing_ok=True)
    rows = [{"part": part.name} | json.loads(line) for line in lines]
    if code != 0:
        rows.append({"part": part.name, "error": ended(code, limit, log)})
    return [*rows, {"part": part.name, "whole process": round(seconds, 1)}]


def run(command: Sequence[str], env: dict[str, str], limit: float, log: Path) -> tuple[int | None, float]:
    """Exit code, None where the process was stopped at its limit, and seconds. Nothing that it started stays behind,
    so that the GPU's memory is free for the next."""
    started = time.monotonic()
    with open(log, "wb") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=ROOT, start_new_session=True
        )  # fmt: skip
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return code, time.monotonic() - started


def ended(code: int | None, limit: float, log: Path) -> str:
    """How a process ended, with the last line that it wrote."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"stopped after {limit:.0f} s" if code is None else f"ended with code {code}"
    return f"{how}: {lines[-1][:300] if lines else 'it wrote nothing'}"


def in_child(module: str, names: Sequence[str], result: Path | None, small: bool) -> int:
    """Carry out jobs of a module; what goes wrong with one is a row, and the next is tried."""
    jobs: dict[str, Callable[[], Iterable[Row]]] = importlib.import_module(f"{HERE}.{module}").jobs(small)
    failed = 0
    with open(result, "a", encoding="utf-8") if result else contextlib.nullcontext(sys.stdout) as out:
        for name in names:
            try:
                for row in jobs[name]():
                    print(json.dumps({"job": name} | row), file=out, flush=True)
            except Exception as error:
                failed += 1
                traceback.print_exc()
                row = {"job": name, "error": f"{type(error).__name__}: {error}"[:500]}
                print(json.dumps(row), file=out, flush=True)
    return 0 if result else min(failed, 1)


def default_run(out: Path, env: dict[str, str], small: bool, limit: float) -> Row:
    """The README's command, timed; where it did not end, the stages that it came to."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "wrpo"
        command = [sys.executable, "experiments/wrpo.py", "--out", str(folder), *(SMALL_DEFAULT if small else ())]
        code, seconds = run(command, env, limit, out / "default.log")
        row: Row = {"part": "default", "job": "experiments/wrpo.py", "seconds": round(seconds, 1)}
        times, results = folder / "times.jsonl", folder / "results.json"
        if times.exists():
            row["stages"] = [json.loads(line) for line in times.read_text(encoding="utf-8").splitlines()]
        if results.exists():
            row["results"] = json.loads(results.read_text(encoding="utf-8"))
    return row if code == 0 else row | {"error": ended(code, limit, out / "default.log")}


if __name__ == "__main__":
    sys.exit(main())
