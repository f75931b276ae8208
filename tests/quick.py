"""Compiling with few optimisations, for programs that run for less time than it takes to compile them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from jax._src import compiler
from jax._src.lib import xla_client

# What compiles small programs on a CPU in less than half the time, beside few optimisations.
QUICK: dict[str, bool | int] = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
# The same with few optimisations, for `compiler_options` of `jax.jit`.
FAST = QUICK | {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Set where this process gives QUICK with each program, and XLA had read its flags before.
WITH_EACH = "FUSION_JAX_TESTS_QUICK_OPTIONS"


def with_flags() -> str:
    """XLA_FLAGS of a process that compiles quickly; XLA reads them once."""
    return " ".join(filter(None, [os.environ.get("XLA_FLAGS"), *FLAGS]))


def options() -> Callable[..., Any]:
    """What gives the compiler's options, with `QUICK` where it compiles for a CPU."""
    return functools.partial(_options, compiler.get_compile_options)


def _options(whole: Callable[..., Any], **given: Any) -> Any:
    if getattr(given.get("backend"), "platform", None) == "cpu":
        given["env_options_overrides"] = QUICK | dict(given["env_options_overrides"] or {})
    return whole(**given)


def compile_as_the_first_process() -> None:
    """In a process that has read no flags yet: take compiled programs from the cache that the tests' process fills.

    They are found by the compiler's options, in which QUICK has to stand at the same place: not among the flags.
    """
    if WITH_EACH not in os.environ:
        return
    flags = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags.split() if flag not in FLAGS)
    read_flags()
    os.environ["XLA_FLAGS"] = flags
    compiler.get_compile_options = options()


def read_flags() -> None:
    """Let XLA read XLA_FLAGS, which it does once."""
    _ = xla_client.CompileOptions().executable_build_options.debug_options
