"""Before a training on quadruples: whether the source's responses can teach more than the target's own.

WRPO differs from DPO by the source's response alone. It can gain where that response is better than the target's best
one, and where the two pull the weights in different directions. Three numbers tell, before any training: how often the
source's reward is above the target's, the log-probabilities of the three responses under the model that training starts
from, and the cosine of the two methods' gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_jax.data.batches import Data, buckets_for
from fusion_jax.data.examples import make_examples
from fusion_jax.data.records import Row
from fusion_jax.jsonl import Record
from fusion_jax.losses import Mean, Quad
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.train import objectives
from fusion_jax.train.alike import gradient_cosine
from fusion_jax.train.objective import Metrics, Objective, Progress
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.reference import sequence_logprobs
from fusion_jax.train.scores import Scores
from fusion_jax.train.settings import compute_for

MOST = 256  # quadruples whose log-probs and gradients are looked at
SLOTTED = ("logprobs", "mask", "sequence", "lengths", "reference")  # what `Scores` has for each slot
LEAST_NET, MOST_BELOW, LEAST_GAIN = 0.6, 0.05, 0.2


@dataclass(frozen=True)
class Standing:
    """How the source's responses stand to the target's own best ones, by reward: shares of the quadruples, and means.

    rewards: of source, target and rejected response; shares: whether all of them lie in [0, 1], as a verifier's do.
    """

    above: float
    below: float
    rewards: tuple[float, float, float]
    shares: bool = True

    @property
    def promising(self) -> bool:
        """Whether WRPO can gain over DPO, by what was measured on miniatures: necessary, not sufficient."""
        source, target, _ = self.rewards
        return self.above - self.below >= LEAST_NET and self.below <= MOST_BELOW and source - target >= LEAST_GAIN


def standing(quads: Sequence[Record]) -> Standing | None:
    """Of the quadruples whose three rewards are all known; None where none is."""
    rewards = [q["rewards"] for q in quads if _numbers(q.get("rewards"))]
    if not rewards:
        return None
    values = np.asarray(rewards, float)
    above, below = (values[:, 0] > values[:, 1]).mean(), (values[:, 0] < values[:, 1]).mean()
    source, target, rejected = values.mean(0).tolist()
    shares = bool(((values >= 0) & (values <= 1)).all())
    return Standing(float(above), float(below), (source, target, rejected), shares)


def _numbers(rewards: Any) -> bool:
    return (
        isinstance(rewards, list)
        and len(rewards) == len(Quad._fields)
        and all(isinstance(x, int | float) and math.isfinite(x) for x in rewards)
    )


def forecast(
    desk: Desk,
    stage: Stage,
    start: Model,
    rows: Sequence[Row],
    quads: Sequence[Record],
    dpo: PairSettings,
    wrpo: WrpoSettings,
) -> list[str]:
    """What foretells the result, told on the screen and as parts of the report; computed once, in forecast.jsonl.

    Args:
      start: the model that training starts from. rows: of the quadruples `quads`, which may have "rewards".
      dpo, wrpo: of the two trainings; a schedule of alpha counts with its end.
    """
    found = standing(quads)
    examples, _ = make_examples(rows[: 2 * MOST], start.tokenizer, stage.text)
    if not examples:
        return []  # the training says why
    data = Data(examples[:MOST], lambda i: rows[i].name)
    [measured] = desk.run.stage("forecast.jsonl", lambda: [_measured(stage, start, data, dpo, wrpo)], leaf=True)
    lines = [] if found is None else _told(found)
    logprobs = ", ".join(f"{slot.replace('_', ' ')} {measured['logprobs'][slot]:.2f}" for slot in Quad._fields)
    lines.append({"before training": "mean log-probability of the responses", "value": logprobs})
    lines.append({"before training": "cosine of the gradients of DPO and WRPO", "value": f"{measured['cosine']:.3f}"})
    verdict = _verdict(found)
    for line in lines:
        desk.run.log(f"{line['before training']}: {line['value']}")
    desk.run.log(verdict)
    return ["## Before training", markdown_table(lines), verdict]


def _told(found: Standing) -> list[dict[str, str]]:
    source, target, rejected = found.rewards
    return [
        {
            "before training": "quadruples whose source response is rewarded above, below the target's best",
            "value": f"{found.above:.3f}, {found.below:.3f}",
        },
        {
            "before training": "mean reward of the responses",
            "value": f"source chosen {source:.3f}, target chosen {target:.3f}, rejected {rejected:.3f}",
        },
    ]


def _verdict(found: Standing | None) -> str:
    if found is None:
        return "The quadruples have no rewards: whether the sources know more than the target cannot be told."
    if not found.shares:
        return (
            "The rewards are not shares: compare the means with how far the rewards of one prompt's samples lie apart. "
            "WRPO can gain over DPO where most of the sources' responses are well above the target's own."
        )
    if found.promising:
        return "The sources' responses are well above the target's own: WRPO has more to learn from than DPO."
    return (
        f"Expect no gain of WRPO over DPO: it takes a share above minus below of at least {LEAST_NET}, a share below "
        f"of at most {MOST_BELOW} and a mean reward {LEAST_GAIN} higher. Better sources, more samples of them or a "
        "shorter SFT help."
    )


def on_target_pair(objective: Objective) -> Objective:
    """An objective on (chosen, rejected) rows as one on quadruples, of which it sees the target's own two responses."""

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        own = {name: getattr(scores, name)[:, 1:] for name in SLOTTED}
        return objective.loss(scores._replace(**own), progress)

    return dataclasses.replace(objective, slots=Quad._fields, loss=loss)


def _measured(stage: Stage, start: Model, data: Data, dpo: PairSettings, wrpo: WrpoSettings) -> Record:
    examples, compute = data.examples, compute_for(stage.settings, option=stage.option)
    size = stage.settings.batch_size // stage.settings.micro_batches
    values = sequence_logprobs(
        start.params, start.config, data, compute, batch_size=size, buckets=buckets_for(data.extents)
    )
    there = np.asarray([[start < len(row) for row, start in zip(e.rows, e.starts)] for e in examples])
    means = [float(values[:, g][there[:, g]].mean()) if there[:, g].any() else 0.0 for g in range(len(Quad._fields))]
    both = on_target_pair(objectives.pair(dpo)), objectives.wrpo(dataclasses.replace(wrpo, dynamic=False))
    cosine = gradient_cosine(start, data, both, compute, batch_size=size)
    return {"logprobs": dict(zip(Quad._fields, means)), "cosine": cosine}
