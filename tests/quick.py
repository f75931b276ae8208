"""How tests compile: programs of theirs run for less time than it takes to compile them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from jax._src import compiler

# Of all tests. The same arithmetic to the last bit for a third of the work: LLVM's first level, one piece, without the
# emitters of fusions, which pass through MLIR; and no threads that wait for each other beside another worker's.
FLAGS = (
    "--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_multi_thread_eigen=false",
)  # fmt: skip
# XLA's own values of the same, as users compile.
WHOLE: dict[str, bool | int] = {
    "xla_backend_optimization_level": 3, "xla_cpu_parallel_codegen_split_count": 32,
    "xla_cpu_use_fusion_emitters": True, "xla_cpu_multi_thread_eigen": True,
}  # fmt: skip
# With few optimisations, for `compiler_options` of `jax.jit`: numbers are rounded otherwise.
FAST: dict[str, bool | int] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def with_flags() -> str:
    """XLA_FLAGS of this process and of those that it starts; XLA reads them once."""
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join([*given, *(flag for flag in FLAGS if flag not in given)])


def options(more: dict[str, bool | int]) -> Callable[..., Any]:
    """What gives the compiler's options, with more of them where it compiles for a CPU."""
    return functools.partial(_options, compiler.get_compile_options, more)


def _options(whole: Callable[..., Any], more: dict[str, bool | int], **given: Any) -> Any:
    if getattr(given.get("backend"), "platform", None) == "cpu":
        given["env_options_overrides"] = more | dict(given["env_options_overrides"] or {})
    return whole(**given)
