"""Kill five experiments at seeded random moments, resume them, and compare the end with a run that nobody disturbed.

    python tests/resume/kills.py --out /tmp/kills                  # 25 kills, a table; exit code 1 if any end differs
    python tests/resume/kills.py --out /tmp/kills --only dpo merge --kills 2 --seed 1

Each kill is a SIGKILL: at a random time, at the first temporary file (something is being saved), or at a manifest that
says that a stage has begun, each with a short random delay. What is compared byte for byte: records, metrics, results,
weights, stores, of every file that both runs should have. Not part of the test suite: several minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fusion_jax.data.jsonl import write_jsonl
from fusion_jax.markdown import markdown_table
from tests.small import ROOT, command, pairs, small_folder

COMPARED = {".jsonl", ".json", ".safetensors", ".npy", ".array_record"}
NOT_COMPARED = {"config.json", "merge.json"}  # of a run: they name its folder
CACHE = os.path.join(tempfile.gettempdir(), "fusion_jax-kills-programs")  # of compiled programs, over all runs
KINDS = ("time", "saving", "stage")


def arguments(data: Path, out: Path) -> dict[str, list[str]]:
    """The command of every experiment, but for its way of going on."""
    model, train = str(data / "model"), ["--train.batch-size", "8", "--train.checkpoint-every", "5"]
    return {
        "dpo": ["dpo", "--model", model, "--data", str(data / "pairs.jsonl"), "--out", str(out), *train,
                "--train.epochs", "4", "--train.eval-every", "10"],
        "wrpo": ["wrpo", "--sources", "zoo:qwen-source", "--out", str(out), "--prompts-per-skill", "8",
                 "--test-per-skill", "2", "--sample.num-samples", "2", "--sft.batch-size", "4",
                 "--preference.batch-size", "4", "--sft.checkpoint-every", "2", "--preference.checkpoint-every", "2"],
        "fusechat": ["fusechat", "--chats", str(data / "chats.jsonl"), "--sources", "zoo:gemma-source", "--out", str(out),
                     *train, "--arms", "pairwise", "--train.epochs", "2"],
        "fusellm": ["fusellm", "--texts", str(data / "texts.jsonl"), "--sources", "zoo:qwen-source", "--out", str(out),
                    *train, "--arms", "FuseLLM", "--practice", "0", "--target-practice", "0", "--train.epochs", "2"],
        "merge": ["merge", str(data / "recipe.yml"), "--out", str(out), "--shard-gb", "0.00002"],
    }  # fmt: skip


def prepare(data: Path) -> None:
    """A small model, its merge with itself, and records."""
    for name in ("model", "other"):
        if not (data / name).exists():
            small_folder(data / name)
    write_jsonl(data / "pairs.jsonl", pairs(60))
    write_jsonl(data / "chats.jsonl", [{"prompt": p["prompt"], "response": p["chosen"]} for p in pairs(32)])
    write_jsonl(data / "texts.jsonl", [{"text": f"{p['prompt']}\n{p['chosen']}"} for p in pairs(32)])
    models = [{"model": str(data / name), "parameters": {"density": 0.5, "weight": 1}} for name in ("model", "other")]
    recipe = {"merge_method": "della", "base_model": str(data / "model"), "models": models, "dtype": "float32"}
    (data / "recipe.yml").write_text(json.dumps(recipe))


def start(args: list[str]) -> subprocess.Popen[bytes]:
    cache = {"JAX_COMPILATION_CACHE_DIR": CACHE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", **cache}
    return subprocess.Popen(command(*args), cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def moment(kind: str, out: Path, after: float) -> Callable[[], bool]:
    """Whether the moment of a kill has come; `after` seconds at the latest."""
    last = time.monotonic() + after
    place = out.with_name(f".{out.name}.unfinished") if out.name.startswith("merge") else out
    known = {p: p.stat().st_mtime_ns for p in place.rglob("manifests/**/*.json")} if place.exists() else {}

    def begun(path: Path) -> bool:
        try:
            return known.get(path) != path.stat().st_mtime_ns and b'"made": false' in path.read_bytes()
        except OSError:
            return False

    def come() -> bool:
        if time.monotonic() > last:
            return True
        try:
            if kind == "saving":
                return any(p.name.endswith(".tmp") or "checkpoint-tmp" in p.name for p in place.rglob("*tmp*"))
            return kind == "stage" and any(begun(p) for p in place.rglob("manifests/**/*.json"))
        except OSError:  # a folder went while it was listed
            return False

    return come


def killed(args: list[str], kind: str, out: Path, after: float, delay: float) -> bool:
    """Start and kill; False where it came to its end before."""
    process, come = start(args), moment(kind, out, after)
    while process.poll() is None and not come():
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(args)}\n{errors.decode()[-3000:]}")
    return process.returncode != 0


def finished(args: list[str]) -> float:
    """Run to the end; how long it took."""
    began = time.monotonic()
    process = start(args)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(args)}\n{errors.decode()[-3000:]}")
    return time.monotonic() - began


def compared(whole: Path, other: Path) -> tuple[int, list[str]]:
    """How many files were compared, and which differ or are missing."""

    def files(root: Path) -> dict[str, bytes]:
        out = {}
        for path in root.rglob("*"):
            inner = path.relative_to(root)
            counts = path.suffix in COMPARED and not {"checkpoints", "manifests"} & set(inner.parts)
            if counts and not (len(inner.parts) == 1 and path.name in NOT_COMPARED):
                out[inner.as_posix()] = path.read_bytes()
        return out

    one, two = files(whole), files(other)
    return len(one), sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def tried(name: str, out: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """One experiment: its line of the table."""
    data = out / "data"
    seconds = finished(arguments(data, out / f"{name}-whole")[name])
    done, ends, wrong, files, kinds = 0, 0, list[str](), 0, list[str]()
    while done < kills:
        folder = out / f"{name}-{ends}"
        args = arguments(data, folder)[name]
        resume = [] if name == "merge" else ["--resume", "True"]
        while done < kills:
            kind = KINDS[done % len(KINDS)]
            after, delay = seconds * rng.uniform(0.4, 0.95), rng.random() * 0.05
            if not killed([*args, *resume], kind, folder, after, delay):
                break
            done += 1
            kinds.append(kind)
        else:
            finished([*args, *resume])
        files, differ = compared(out / f"{name}-whole", folder)
        wrong += differ
        ends += 1
    return {
        "experiment": name, "kills": done, "at": " ".join(kinds), "ends": ends, "files compared": files,
        "differ": len(wrong), "first": wrong[0] if wrong else "", "seconds undisturbed": f"{seconds:.0f}",
    }  # fmt: skip


def main() -> None:
    names = list(arguments(Path(), Path()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for data and runs")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--kills", type=int, default=5, help="of each experiment")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out.absolute()
    (out / "data").mkdir(parents=True)
    prepare(out / "data")
    lines = []
    for name in options.only:
        lines.append(tried(name, out, options.kills, random.Random(f"{options.seed} {name}")))
        print(markdown_table(lines[-1:]), flush=True)
    print(markdown_table(lines))
    raise SystemExit(any(line["differ"] for line in lines))


if __name__ == "__main__":
    main()
