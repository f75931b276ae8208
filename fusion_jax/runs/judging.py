"""Models judged on test prompts, and tables of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.evals.accuracy import by_skill, evaluate
from fusion_jax.evals.sampled import mean_rewards, right_probabilities
from fusion_jax.intervals import mean_interval, paired_difference
from fusion_jax.jsonl import Record, read_jsonl
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.plan import fits
from fusion_jax.rewards.verifiers import VerifierName, verifier
from fusion_jax.runs.seeds import MOST_TELLING, pairs_of
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.settings import TrainSettings, compute_to_read

MEASURES = {"accuracy": "right", "mean reward": "reward", "P(right)": "right_probability"}
"""What a model is measured by, and the field of an answer that has it: whether the greedy answer is right, the mean
reward of sampled ones, and the probability of the right wordings."""


@dataclass(frozen=True)
class EvalSet:
    """Held-out prompts with answers. new_tokens: of the longest answer; verifier: what rewards one, 1 is right; chat:
    whether prompts go through the model's template; samples: answers that are sampled to each prompt, beside the
    greedy one, with `seed`."""

    prompts: Sequence[Record]
    new_tokens: int
    verifier: VerifierName = "answer"
    chat: bool = True
    samples: int = 0
    seed: int = 0

    def check(self, *folders: Path) -> None:
        """Refuse prompts that leave one of the models no room for an answer."""
        for folder in folders:
            fits.check_prompts(folder, self.prompts, self.new_tokens, "--eval-new-tokens", chat=self.chat)


def judged(
    run: RunFolder, name: str, model: Model | Callable[[], Model], tests: EvalSet, *,
    made_from: Sequence[str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of `by_skill` on the test prompts, if there are any; that of all skills has what `means` gives, too.

    Args:
      model: or what loads it, which is called where the answers are not there yet.
      made_from: what the model was made from, as in `RunFolder.made_once`.
    """
    if not tests.prompts:
        return []

    def answered() -> list[Record]:
        with run.phase("judging"):
            return answers(name, model() if callable(model) else model, tests)

    records = run.stage(f"answers/{name}.jsonl", answered, made_from=made_from, leaf=True)
    return [row | (means(records) if row["skill"] == "all" else {}) for row in by_skill(name, records)]


def answers(name: str, model: Model, tests: EvalSet) -> list[Record]:
    """The greedy answer to each prompt, with the fields of `MEASURES` that can be had."""
    reward = verifier(tests.verifier)
    records = evaluate(
        name, model, tests.prompts, max_new_tokens=tests.new_tokens, verifier=reward, chat=tests.chat
    )[1]  # fmt: skip
    if not (tests.samples and tests.chat):
        return records
    how = SampleSettings(num_samples=tests.samples, max_new_tokens=tests.new_tokens, batch_size=64)
    rewards = mean_rewards(model, tests.prompts, reward, how, seed=tests.seed)
    probabilities = right_probabilities(model, tests.prompts, compute_to_read(TrainSettings()))
    for record, mean, probability in zip(records, rewards, probabilities, strict=True):
        record["reward"] = mean
        if probability is not None:
            record["right_probability"] = probability
    return records


def means(records: Sequence[Record]) -> dict[str, float]:
    """The mean of each of `MEASURES` that every record has, and half its 95 % Student interval under "NAME/half"."""
    found = {}
    for measure, field in MEASURES.items():
        if all(r.get(field) is not None for r in records):
            found[measure], found[f"{measure}/half"] = mean_interval([r[field] for r in records])
    return found


def figure_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `judged` for a figure: the accuracy at each skill, then every other measure as if it were one more.

    Beside a single skill, that of all says nothing more.
    """
    skills = {r["skill"] for r in rows}
    shown = [r for r in rows if r["skill"] != "all" or len(skills) != 2]
    for row in (r for r in rows if r["skill"] == "all"):
        for measure in [m for m in MEASURES if m != "accuracy" and m in row]:
            mean, half = row[measure], np.nan_to_num(row[f"{measure}/half"])
            place = {"model": row["model"], "skill": measure, "accuracy": mean}
            shown.append(place | {"low": max(mean - half, 0.0), "high": min(mean + half, 1.0)})
    return shown


def accuracy_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """One line a model, one column a skill, with the interval on the total, then the other measures."""
    out = []
    for model in dict.fromkeys(r["model"] for r in rows):
        line = {"model": model}
        for r in (r for r in rows if r["model"] == model):
            line[r["skill"]] = f"{r['accuracy']:.3f}" + (
                f" [{r['low']:.3f}, {r['high']:.3f}]" if r["skill"] == "all" else ""
            )
            line |= {measure: f"{r[measure]:.3f}" for measure in MEASURES if measure != "accuracy" and measure in r}
        out.append(line)
    return out


def answers_of(run: RunFolder, models: Sequence[str]) -> dict[str, list[Record]]:
    """The judged answers of models, in the order in which they were made."""
    return {name: read_jsonl(run.file(f"answers/{name}.jsonl")) for name in models}


def paired_table(found: Mapping[str, Sequence[Record]]) -> str:
    """Each of the judged models against the one before it, and the last against every other, on the same prompts.

    Args:
      found: of `answers_of`.
    """
    return markdown_table([
        {"comparison": f"{one} - {other}", **differences(found[one], found[other])}
        for one, other in pairs_of(list(found))
    ])  # fmt: skip


def differences(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean difference and 95 % interval of each measure that both have, on the same prompts."""
    shown = {}
    for measure, field in MEASURES.items():
        if any(record.get(field) is None for records in (one, other) for record in records):
            continue
        first, second = ([float(record[field]) for record in records] for records in (one, other))
        if measure == "accuracy":  # few answers, or none, may differ
            mean, half = paired_difference(first, second)
        else:
            mean, half = mean_interval([a - b for a, b in zip(first, second, strict=True)])
        shown[measure] = f"{mean:+.3f} ± {half:.3f}"
    return shown


def reward_sentence(found: Mapping[str, Sequence[Record]]) -> str:
    """The last model's mean reward of sampled answers, against the one before it and the first; "" without rewards.

    Args:
      found: of `answers_of`.
    """
    models = list(found)
    last = models[-1]
    mean = means(found[last]).get(MOST_TELLING)
    if mean is None:
        return ""
    told = [f"Sampled answers of {last} have a mean reward of {mean:.3f}"]
    for other in dict.fromkeys([*models[-2:-1], models[0]]):
        difference = differences(found[last], found[other]).get(MOST_TELLING)
        if other != last and difference is not None:
            told.append(f"{difference} against {other}")
    return ", ".join(told) + "."
