"""Models judged on test prompts, and tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.evals.accuracy import by_skill, evaluate
from fusion_jax.intervals import paired_difference
from fusion_jax.jsonl import Record, read_jsonl
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.rewards.verifiers import VerifierName, verifier
from fusion_jax.store.run_folder import RunFolder


@dataclass(frozen=True)
class EvalSet:
    """Held-out prompts with answers. new_tokens: of the longest answer; verifier: what says that one is right; chat:
    whether prompts go through the model's template."""

    prompts: Sequence[Record]
    new_tokens: int
    verifier: VerifierName = "answer"
    chat: bool = True


def judged(
    run: RunFolder, name: str, model: Model, tests: EvalSet, *, of: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Accuracy of a model's greedy answers on the test prompts, if there are any.

    Args:
      of: what the model was made from, as in `RunFolder.made_once`.
    """
    if not tests.prompts:
        return []

    def graded() -> list[Record]:
        with run.phase("judging"):
            return evaluate(
                name, model, tests.prompts, max_new_tokens=tests.new_tokens, verifier=verifier(tests.verifier),
                chat=tests.chat,
            )[1]  # fmt: skip

    return by_skill(name, run.stage(f"answers/{name}.jsonl", graded, of=of, leaf=True))


def accuracy_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """One line a model, one column a skill, with the interval on the total."""
    out = []
    for model in dict.fromkeys(r["model"] for r in rows):
        line = {"model": model}
        for r in (r for r in rows if r["model"] == model):
            line[r["skill"]] = f"{r['accuracy']:.3f}" + (
                f" [{r['low']:.3f}, {r['high']:.3f}]" if r["skill"] == "all" else ""
            )
        out.append(line)
    return out


def paired_table(run: RunFolder, models: Sequence[str]) -> str:
    """The first of the judged models against each of the others on the same prompts."""
    right = {name: [r["right"] for r in read_jsonl(run.file(f"answers/{name}.jsonl"))] for name in models}
    first, *others = models
    differences = {f"{first} - {name}": paired_difference(right[first], right[name]) for name in others}
    return markdown_table([{"comparison": k, "difference": f"{d:+.3f} ± {h:.3f}"} for k, (d, h) in differences.items()])
