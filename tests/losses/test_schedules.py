"""Learning rates against transformers' schedules, as Alirector and MK-TOD state them, and the settings that give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.losses import learning_rate
from fusion_jax.train.state import OptimizerSettings

pytestmark = pytest.mark.usefixtures("quick_compiler")

GOLDEN = {
    name: json.loads((Path(__file__).parents[1] / "golden" / f"{name}.json").read_text())
    for name in ("alirector", "mktod")
}
CASES = GOLDEN["alirector"]["lr_schedules"] + [case | {"kind": "linear"} for case in GOLDEN["mktod"]["lr_linear"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{case['total_steps']}")
def test_golden_learning_rates(x64, case: dict[str, Any]):
    steps, expected = zip(*case["points"])
    settings = OptimizerSettings(
        case["peak"], schedule=case["kind"], warmup_ratio=0.0, warmup_steps=case["warmup_steps"]
    )
    rate = settings.rate(case["total_steps"])
    np.testing.assert_allclose([rate(np.asarray(step)) for step in steps], expected, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("case", GOLDEN["alirector"]["warmup_from_ratio"], ids=lambda case: str(case["total_steps"]))
def test_golden_warmup_from_a_ratio(x64, case: dict[str, Any]):
    """The first step at the peak is the golden number of steps."""
    rate = learning_rate(1.0, num_steps=case["total_steps"], warmup_ratio=case["ratio"], schedule="linear")
    rates = np.asarray([rate(np.asarray(step)) for step in range(case["warmup_steps"] - 1, case["warmup_steps"] + 2)])
    assert rates[1] == 1.0 and rates[0] < 1.0 and rates[2] < 1.0


def test_a_warmup_longer_than_the_run_never_reaches_the_peak(x64):
    rate = learning_rate(3e-5, num_steps=690, warmup_steps=1000, schedule="polynomial")
    np.testing.assert_allclose(rate(np.asarray(690)), 3e-5 * 0.69, rtol=1e-12)


def test_settings_out_of_range():
    for given in ({"warmup_steps": -1}, {"learning_rate": 1e-7, "schedule": "polynomial"}):
        with pytest.raises(InputError, match=next(iter(given))):
            OptimizerSettings(**given)
