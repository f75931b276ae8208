"""What is told before a training on quadruples: shares by hand, the verdict at its limits, log-probs of the reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import wrpo
from fusion_jax.jsonl import read_jsonl
from fusion_jax.losses import Quad
from fusion_jax.runs.forecast import SLOTTED, Standing, on_target_pair, standing
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.scores import Scores
from tests.small import attempt, quads, small_folder, write


def rewarded(*rewards):
    return [{"rewards": list(three)} for three in rewards]


def test_shares_and_means_by_hand():
    found = standing(rewarded((1.0, 0.5, 0.0), (0.25, 0.5, 0.25), (0.5, 0.5, 0.0), (1.0, 0.75, 0.5)))
    assert found == Standing(above=0.5, below=0.25, rewards=(0.6875, 0.5625, 0.1875))


@pytest.mark.parametrize("rewards", [None, [1.0, None, 0.0], [1.0, 0.0], ["1", 0, 0], "100", [float("nan"), 1.0, 0.0]])
def test_quadruples_without_three_numbers_are_left_out(rewards):
    assert standing([{"rewards": rewards}]) is None
    assert standing([{"rewards": rewards}, {"rewards": [1, 0, 0]}]) == Standing(1.0, 0.0, (1.0, 0.0, 0.0))


@pytest.mark.parametrize(("above", "below", "source", "promising"), [
    (0.65, 0.05, 0.8, True), (0.64, 0.05, 0.8, False), (0.9, 0.06, 0.8, False), (0.9, 0.0, 0.79, False),
])  # fmt: skip
def test_the_verdict_at_its_limits(above, below, source, promising):
    assert Standing(above, below, (source, 0.6, 0.2)).promising is promising


def test_rewards_that_are_no_shares_are_not_measured_by_the_limits_of_shares():
    assert not standing(rewarded((0.2, 0.1, -0.1))).shares and not standing(rewarded((1.5, 0.1, 0.1))).shares


def test_the_dpo_of_a_quadruple_is_that_of_its_pair():
    rng = np.random.default_rng(0)
    one, other = (jnp.asarray(rng.normal(size=(4, 3)) - 5) for _ in range(2))
    tokens, weights = jnp.asarray(rng.normal(size=(4, 3, 6)) - 1), jnp.ones(4)
    whole = Scores(tokens, jnp.ones((4, 3, 6)), one, jnp.full((4, 3), 6.0), other, weights)
    cut = whole._replace(**{name: getattr(whole, name)[:, 1:] for name in SLOTTED})
    dpo = objectives.pair(PairSettings(beta=0.3, sft_weight=0.5))
    found, wanted = (o.loss(s, Progress(jnp.asarray(0), 1))[0] for o, s in ((on_target_pair(dpo), whole), (dpo, cut)))
    assert float(found.total) == float(wanted.total) and on_target_pair(dpo).slots == Quad._fields


def test_a_run_tells_it_before_training_and_in_its_report(tmp_path, capsys, quick_compiler):
    """On ready quadruples with and without rewards; the log-probs are those of the stored reference."""
    target = small_folder(tmp_path / "target")
    records = [q | {"rewards": [1.0, 0.5, 0.0]} for q in quads(8)]
    for name, some in {"with": records, "without": quads(8)}.items():
        data, out = write(tmp_path / f"{name}.jsonl", some), tmp_path / name
        attempt(wrpo, [
            "--target", str(target), "--quadruples", str(data), "--out", str(out), "--baseline", "False",
            "--continued", "False", "--held-out", "0", "--preference.batch-size", "4", "--preference.epochs", "1",
            "--text.tokens.max-length", "96", "--text.tokens.max-prompt-length", "64",
        ])  # fmt: skip
        report, [told] = (out / "report.md").read_text(), read_jsonl(out / "forecast.jsonl")
        assert "## Before training" in report and f"{told['cosine']:.3f}" in report
        verdict = "has more to learn from" if name == "with" else "have no rewards"
        assert verdict in report and verdict in " ".join(capsys.readouterr().out.split())
        assert -1 <= told["cosine"] < 1 and all(value < 0 for value in told["logprobs"].values())
        first = read_jsonl(out / "wrpo" / "metrics.jsonl")[0]
        assert first["rewards/source_chosen"] == pytest.approx(0.0, abs=1e-5)
