"""Kill experiments at seeded random moments, resume them, and compare the end with a run that nobody disturbed.

    python -m tests.resume.kills --out /tmp/kills                  # five kills each, a table; exit code 1 if any end differs
    python -m tests.resume.kills --out /tmp/kills --only dpo merge --kills 2 --seed 1

Each kill is a SIGKILL: when files have changed a random number of times, at the first temporary file (something is being
saved), or at a manifest that says that a stage has begun, each with a short random delay. What is compared byte for byte: records, metrics, results,
weights, stores, of every file that both runs should have. Not part of the test suite: several minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_COMPILATION_CACHE_DIR": os.path.join(tempfile.gettempdir(), "fusion_jax-kills-programs"),  # over all runs
}  # fmt: skip

from experiments import dpo, fusechat, fusechat3, fusellm, fuserl, infifpo, merge, reward_model, seft, wrpo
from fusion_jax.jsonl import write_jsonl
from fusion_jax.markdown import markdown_table
from fusion_jax.store.run_folder import TIMES
from tests.small import attempt, pairs, responses, small_folder

COMPARED = {".jsonl", ".json", ".safetensors", ".npy", ".array_record"}
KINDS = ("any", "saving", "stage")
MODULES = {
    "dpo": dpo, "wrpo": wrpo, "infifpo": infifpo, "fuserl": fuserl, "fusechat3": fusechat3, "fusechat": fusechat,
    "fusellm": fusellm, "merge": merge, "seft": seft, "reward_model": reward_model,
}  # fmt: skip


def arguments(data: Path, out: Path) -> dict[str, list[str]]:
    """The command of every experiment, but for its way of going on."""
    model, train = str(data / "model"), ["--train.batch-size", "8", "--train.checkpoint-every", "5"]
    short = ["--out", str(out), "--sample.num-samples", "2", "--sft.batch-size", "4", "--preference.batch-size", "4",
             "--sft.checkpoint-every", "2", "--preference.checkpoint-every", "2", "--preference.eval-every", "2"]
    plants = ["--sources", "zoo:plants-qwen", "--prompts-per-skill", "48", "--test-per-skill", "8", "--sft-share", "0.3"]
    ready = ["--target", model, "--responses", str(data / "responses.jsonl"), "--sft-share", "0.4", "--eval-samples", "0",
             "--text.tokens.max-length", "96", "--text.tokens.max-prompt-length", "64"]
    return {
        "infifpo": ["infifpo", *ready, *short, "--sources", model, str(data / "other"), "--target-samples", "2",
                    "--sample.max-new-tokens", "4", "--sample.temperature", "2"],
        "fuserl": ["fuserl", *ready, *short],
        "fusechat3": ["fusechat3", *ready, *short, "--preference.best-of", "2"],
        "dpo": ["dpo", "--model", model, "--data", str(data / "pairs.jsonl"), "--out", str(out), *train,
                "--train.epochs", "4", "--train.eval-every", "10"],
        "reward_model": ["reward_model", "--model", model, "--data", str(data / "pairs.jsonl"), "--out", str(out), *train,
                         "--max-length", "96", "--sft.batch-size", "8", "--sft.checkpoint-every", "3", "--train.epochs", "3"],
        "wrpo": ["wrpo", *plants, *short, "--sft.epochs", "2"],
        "fusechat": ["fusechat", "--chats", str(data / "chats.jsonl"), "--sources", "zoo:gemma-source", "--out", str(out),
                     *train, "--arms", "pairwise", "--train.epochs", "2"],
        "fusellm": ["fusellm", "--texts", str(data / "texts.jsonl"), "--sources", "zoo:qwen-source", "--out", str(out),
                    *train, "--arms", "FuseLLM", "--practice", "0", "--target-practice", "0", "--train.epochs", "2"],
        "seft": ["seft", "--reviser", "zoo:plants-target", "--out", str(out), "--zoo-pairs", "64", "--test-per-skill", "8",
                 "--baselines", "DPO", "--evolution.rounds", "2", "--evolution.round-prompts", "24",
                 "--evolution.drafts.num-samples", "2", "--warm-up.batch-size", "4", "--adapt.batch-size", "4",
                 "--policy.batch-size", "4", "--paired.batch-size", "4", "--adapt.checkpoint-every", "3",
                 "--policy.checkpoint-every", "2"],
        "merge": ["merge", str(data / "recipe.yml"), "--out", str(out), "--shard-gb", "0.00002"],
    }  # fmt: skip


def prepare(data: Path) -> None:
    """A small model, its merge with itself, and records."""
    for name in ("model", "other"):
        if not (data / name).exists():
            small_folder(data / name)
    write_jsonl(data / "pairs.jsonl", pairs(60))
    write_jsonl(data / "chats.jsonl", [{"prompt": p["prompt"], "response": p["chosen"]} for p in pairs(32)])
    write_jsonl(data / "responses.jsonl", responses(60))
    write_jsonl(data / "texts.jsonl", [{"text": f"{p['prompt']}\n{p['chosen']}"} for p in pairs(32)])
    models = [{"model": str(data / name), "parameters": {"density": 0.5, "weight": 1}} for name in ("model", "other")]
    recipe = {"merge_method": "della", "base_model": str(data / "model"), "models": models, "dtype": "float32"}
    (data / "recipe.yml").write_text(json.dumps(recipe))


def start(work: Callable[[], object], errors: Path) -> int:
    """Do something in a process of its own, forked from this one, which has imported all and computed nothing."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with open(os.devnull, "wb") as silent, open(errors, "wb") as told:
        os.dup2(silent.fileno(), 1)
        os.dup2(told.fileno(), 2)
        try:
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def experiment(args: list[str]) -> Callable[[], object]:
    module = MODULES[args[0]]
    return lambda: attempt(module, args[1:])


def state_of(out: Path) -> frozenset[tuple[str, int]]:
    """Every file below a folder, and when it was written: between two states, something was."""
    found = set()
    for place in (out, out.with_name(f".{out.name}.unfinished")):  # the second is a merge's
        for folder, _, names in os.walk(place):
            for name in names:
                with suppress(OSError):  # it went while it was listed
                    found.add((f"{folder}/{name}", os.stat(f"{folder}/{name}").st_mtime_ns))
    return frozenset(found)


def due(kind: str, new: frozenset[tuple[str, int]]) -> bool:
    """Whether files that were just written are a moment of that kind."""
    if kind == "saving":
        return any(".tmp/" in path or path.endswith(".tmp") or "checkpoint-tmp" in path for path, _ in new)
    for path in (path for path, _ in new if kind == "stage" and "/manifests/" in path):
        with suppress(OSError):
            if b'"made": false' in Path(path).read_bytes():
                return True
    return False


def watched(args: list[str], out: Path, kind: str = "", after: int = 0, delay: float = 0.0) -> tuple[bool, int]:
    """Start an experiment and kill it at a moment of that kind, at the latest when its files have changed `after`
    times, or let it run to its end where `after` is 0. Whether it was killed, and how often files have changed.
    """
    errors = out.with_name(f"{out.name}.stderr")
    before, changes = state_of(out), 0
    pid = start(experiment(args), errors)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        now = state_of(out)
        changes += now != before
        if after and now != before and (changes >= after or due(kind, now - before)):
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        before = now
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(args)}\n{errors.read_text()[-3000:]}")
    return code != 0, changes


def compared(whole: Path, other: Path) -> tuple[int, list[str]]:
    """How many files were compared, and which differ or are missing."""

    def files(root: Path) -> dict[str, bytes]:
        out = {}
        for path in root.rglob("*"):
            inner = path.relative_to(root)
            counts = path.suffix in COMPARED and not {"checkpoints", "manifests", TIMES} & set(inner.parts)
            settings = path.name == "config.json" and path.parent == root and (root / "manifests").exists()
            if counts and not settings:
                out[inner.as_posix()] = path.read_bytes()
        return out

    one, two = files(whole), files(other)
    return len(one), sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def tried(name: str, out: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """One experiment: its line of the table."""
    began, whole = time.monotonic(), out / f"{name}-whole"
    _, changes = watched(arguments(out / "data", whole)[name], whole)
    seconds = time.monotonic() - began
    done, ends, files, wrong, kinds = 0, 0, 0, list[str](), list[str]()
    while done < kills:
        folder = out / f"{name}-{ends}"
        args = arguments(out / "data", folder)[name] + ([] if name == "merge" else ["--resume", "True"])
        hit = True
        while hit and done < kills:
            kind, after = KINDS[done % len(KINDS)], rng.randint(1, max(1, changes // (kills - 1)))
            hit, _ = watched(args, folder, kind, after, rng.random() * 0.05)
            done += hit
            kinds += [kind] * hit
        if hit:
            watched(args, folder)
        files, differ = compared(whole, folder)
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
    if os.waitpid(start(lambda: prepare(out / "data"), out / "stderr"), 0)[1]:
        raise SystemExit((out / "stderr").read_text())
    lines = []
    for name in options.only:
        lines.append(tried(name, out, options.kills, random.Random(f"{options.seed} {name}")))
        print(markdown_table(lines[-1:]), flush=True)
    print(markdown_table(lines))
    raise SystemExit(any(line["differ"] for line in lines))


if __name__ == "__main__":
    main()
