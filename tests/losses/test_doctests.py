"""The examples in the docstrings of losses and alignment, and that every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

from fusion_jax import align, losses

pytestmark = pytest.mark.usefixtures("quick_compiler")

MODULES = [
    importlib.import_module(f"fusion_jax.{name}")
    for name in (
        "losses.preference", "losses.infifpo", "losses.fuserl", "losses.fusion", "losses.alirector", "losses.mktod",
        "losses.reductions", "losses.schedules", "losses.sft", "align.sequences",
    )
]  # fmt: skip
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
}


def public() -> list[str]:
    """Functions that `fj.losses` hands on, and those of `fj.align` that align tokens."""
    handed = [getattr(losses, name) for name in losses.__all__] + [align.align_tokens, align.byte_offsets]
    return [f"{found.__module__}.{found.__name__}" for found in handed if inspect.isfunction(found)]


@pytest.mark.parametrize("name", public())
def test_every_public_function_has_an_example(name):
    assert name in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_say(name):
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name])
    assert result.attempted > 0 and result.failed == 0
