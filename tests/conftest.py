"""Shared by all tests: golden files, float64 where a test asks for it, quiet offline libraries, one compilation cache.

Most of the time goes into compiling the same programs in one process after another: all of them share what they
compiled. JAX_COMPILATION_CACHE_DIR names a folder that keeps it for the next run, too; daily work (-m "not slow") keeps
it in pytest's own cache.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import gcs

# The programs that tests start import this tree, whichever one is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch: beside another worker its threads wait for each other
os.environ |= gcs.QUIET
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fusion-jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jax._src import compiler

from tests import daily, quick

os.environ["XLA_FLAGS"] = quick.with_flags()  # nothing is compiled before

GOLDEN = Path(__file__).parent / "golden"
MOST_PROGRAMS = 2**30  # bytes that daily work keeps
# The files that take longest, the longest first; one that is not here comes after them. The notebooks find what the
# benchmark has compiled.
LONGEST = (
    "resume/test_sigkill.py", "cli/test_alirector.py", "parity/test_logits.py", "train/test_sharding.py",
    "plan/test_correcting.py", "merge/test_mergekit.py", "multihost/test_training.py", "cli/test_mktod.py",
    "benchmarks/test_gpu.py", "notebooks/test_notebooks.py", "parity/test_encoders.py", "cli/test_distil.py",
    "store/test_bucket.py", "train/test_lora.py", "sampling/test_generate.py", "merge/test_task_vectors.py",
    "cli/test_prune.py", "plan/test_compile.py", "cli/test_preference_pages.py", "parity/test_beams.py",
    "models/test_int8.py", "parity/test_generation.py", "cool/test_golden.py", "store/test_given.py",
    "sampling/test_session.py", "prune/test_native.py", "cool/test_together.py", "cli/test_sweeps.py",
    "cli/test_profuser.py", "fuzz/test_fuzz.py", "train/test_mktod_by_heart.py", "cli/test_role_interact.py",
    "ops/test_kernels.py", "models/test_parts.py", "sampling/test_beams.py", "cli/test_seft.py",
    "train/test_mktod.py", "parity/test_layouts.py", "train/test_alirector.py", "plan/test_llama.py",
    "prune/test_search.py", "train/test_given.py",
)  # fmt: skip


def is_daily(config: pytest.Config) -> bool:
    """Whether these are the tests of daily work."""
    return config.getoption("markexpr") == "not slow"


def pytest_configure(config: pytest.Config) -> None:
    """Daily work (-m "not slow") compiles with the fewest optimisations, which the whole suite does where
    `quick_compiler` is used, keeps its programs for the next time, and looks for damaged input only shortly."""
    if not is_daily(config):
        return
    os.environ.setdefault("FUSION_JAX_FUZZ_SECONDS", "1")
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    if Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).name.startswith("fusion-jax-compiled-"):  # not one that was given
        os.environ["JAX_COMPILATION_CACHE_DIR"] = kept_programs(config)
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


def kept_programs(config: pytest.Config) -> str:
    """The folder of compiled programs in pytest's cache, emptied where it has become too large."""
    folder = config.cache.mkdir("compiled-programs")
    first = not hasattr(config, "workerinput")
    if first and sum(file.stat().st_size for file in folder.iterdir()) > MOST_PROGRAMS:
        shutil.rmtree(folder)
        folder.mkdir()
    return str(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left for one process at the end; what daily work leaves out."""
    daily.mark(items)
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0].removeprefix("tests/"), len(place)))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no collection of garbage has to look at it. Tracing makes many objects
    that live on; what is garbage among them is looked for more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n a file stays in one process, which makes what its tests share once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def golden_cases(name: str, kind: str) -> list[dict[str, Any]]:
    """The cases of one kind of a golden file."""
    cases = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    found = [case for case in cases if case["kind"] == kind]
    assert found, f"{name}.json has no case of kind {kind}"
    return found


@pytest.fixture(scope="module")
def quick_compiler() -> Iterator[None]:
    """Programs of this process and of those that it starts are compiled with the fewest optimisations.

    For modules that compare runs of this package with each other, or look at what a run says, writes and refuses: there
    the compiler would take far longer than the programs. Not for comparisons with numbers of other implementations:
    where a module has some, they stand before the first test that uses this fixture, which holds from there on.
    """
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        yield
        return
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def whole_compiler() -> Iterator[None]:
    """Programs of this process are compiled as users compile them; not in daily work.

    For some of the comparisons with other implementations (elsewhere `quick.WHOLE` is given to `jax.jit`): the others
    find the same faults, in the same arithmetic.
    """
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        yield
        return
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quick.options(quick.WHOLE))
        yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 inside the test."""
    with jax.enable_x64(True):
        yield
