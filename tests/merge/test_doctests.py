"""The examples in the docstrings of the merge methods, and that every method has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

from fusion_jax.merge import METHODS, methods, names

pytestmark = pytest.mark.usefixtures("quick_compiler")

MODULES = [
    names,
    *(
        importlib.import_module(found.name)
        for found in pkgutil.iter_modules(methods.__path__, "fusion_jax.merge.methods.")
    ),
]
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
}


def module_of(method: str) -> ModuleType:
    (found,) = [module for module in MODULES if method in getattr(module, "METHODS", {})]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_example(method: str) -> None:
    assert f"{module_of(method).__name__}.{method}" in EXAMPLES
    assert getattr(methods, method) is METHODS[method].function


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_say(name: str) -> None:
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name])
    assert result.attempted > 0 and result.failed == 0
