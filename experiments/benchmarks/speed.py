"""Speed and memory beside PyTorch, trl and transformers: same checkpoints, data and machine, one run.

    python experiments/benchmarks/speed.py --vocab 8192 32768
    python experiments/benchmarks/speed.py --vocab 8192 32768 131072 --only "wrpo ours" --steps 3     # memory alone

Needs requirements-test.txt. Model: Llama, 4 layers, D 256, 8 heads (4 for keys); 8 examples of 256 tokens, half of
them prompt; float32; AdamW and clipping included. Each contender runs in its own process, one after the other; a row
gives the median step, the range, the ratio to ours of the same job, the first loss (jobs agree to 1e-4, or the program
ends with an error) and the peak memory of the process. Time: about 8 minutes on 2 cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.contenders import CONTENDERS
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.settings import run as run_experiment


@dataclass(frozen=True)
class Settings:
    """only: the names that contain it. out: JSON lines of the raw figures."""

    vocab: tuple[int, ...] = (8192,)
    steps: int = 5
    only: str = ""
    out: str = ""


def job(name: str) -> str:
    """Contenders of one job do the same work: "dpo", "dpo in-step", ..."""
    first = " ".join(name.split()[:2]) if name.startswith("5") else name.split()[0]
    loop = "in-step" in name or name == "dpo trl" or "official" in name
    return f"{first} in-step" if loop else first


def child(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    result = folder / "result.json"
    script = Path(__file__).with_name("contenders.py")
    done = subprocess.run(
        [sys.executable, str(script), name, str(folder), str(result), str(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"failed:\n{done.stderr[-2000:]}", field=name)
    return json.loads(result.read_text()) if name != "prepare" else {}


def main(s: Settings) -> None:
    rows: list[dict[str, Any]] = []
    for vocab in s.vocab:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            child("prepare", folder, vocab)
            ours: dict[str, dict[str, Any]] = {}
            for name in (n for n in CONTENDERS if s.only in n):
                out = child(name, folder, s.steps)
                base = ours.setdefault(job(name), out)
                if abs(out["first_loss"] - base["first_loss"]) > 1e-4:
                    raise InputError(f"starts at {out['first_loss']}, ours at {base['first_loss']}", field=name)
                median, best = statistics.median(out["seconds"]), statistics.median(base["seconds"])
                rows.append({
                    "V": vocab, "contender": name, "median s": f"{median:.3f}",
                    "range": f"{min(out['seconds']):.3f}-{max(out['seconds']):.3f}",
                    "times ours": f"{median / best:.2f}",
                    "first loss": f"{out['first_loss']:.6f}", "peak MiB": f"{out['peak_mib']:.0f}",
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    print(markdown_table(rows))
    if s.out:
        Path(s.out).write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
