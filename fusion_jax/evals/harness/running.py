"""Evaluations by lm-eval from settings: which tasks, how they are asked, and tables of what comes out."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_jax.errors import InputError, causes, first_line, one_line
from fusion_jax.evals.harness.zoo_tasks import known_tasks, zoo_tasks
from fusion_jax.intervals import Z95
from fusion_jax.jsonl import Record
from fusion_jax.models.int8 import Weights
from fusion_jax.options import Folders
from fusion_jax.settings import bounded, seeded

if TYPE_CHECKING:
    from fusion_jax.models.folder import Model

UNREACHED = (  # errors of data sets that could not be fetched, by name, since the packages that raise them vary
    "ConnectionError", "DatasetNotFoundError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError",
    "HfHubHTTPError", "DataFilesNotFoundError",
)  # fmt: skip


@dataclass(frozen=True)
class HarnessSettings:
    """How tasks are asked."""

    include: Folders = ()
    """Folders with tasks of your own, as YAML files of lm-eval."""
    num_fewshot: int = -1
    """Examples in front of each question; -1: as each task has it."""
    limit: int = 0
    """Questions of each task, the first ones; 0: all."""
    chat: bool = False
    """Whether questions go through the model's chat template."""
    system: str = ""
    """System message in front of the questions."""
    multiturn: bool = True
    """Whether the examples are turns of a chat; else one message holds all of them."""
    batch_size: int = 32
    """Texts at once, over all devices."""
    max_length: int = 0
    """Positions of the model that are used; 0: all."""
    max_gen_toks: int = 256
    """Longest answer in tokens, where a task does not say."""
    mesh_tensor: int = 0
    """Devices over which the model's heads are split; 0: as many as its key-value heads divide over."""
    weights: Weights = "stored"
    """How the layers' matrices are held: as in the files (stored), or rounded to int8."""
    per_skill: int = 30
    """Problems of each skill in the zoo's tasks."""
    bootstrap: int = 1000
    """Resamples for standard errors that no formula gives."""
    seed: int = 1234
    """Decides the examples in front of questions, samples and resamples."""

    def __post_init__(self) -> None:
        seeded(self, "seed")
        bounded(self, "num_fewshot", least=-1)
        bounded(self, "limit", "max_length", "mesh_tensor", "bootstrap", least=0)
        bounded(self, "batch_size", "max_gen_toks", "per_skill", least=1)


def found_tasks(names: Sequence[str], s: HarnessSettings, option: str = "tasks") -> tuple[Any, list[Any]]:
    """lm-eval's `TaskManager`, and the named tasks as `simple_evaluate` takes them; their data are not fetched.

    Args:
      option: that names them, for messages.

    Raises:
      InputError: lm-eval is not installed; an unknown task.
    """
    from fusion_jax.evals.harness import backend  # noqa: F401  # says what to install

    manager = _manager(s.include)
    return manager, known_tasks(names, zoo_tasks(s.per_skill, seed=s.seed), manager.all_tasks, option)


@functools.cache
def _manager(include: tuple[str, ...]) -> Any:
    """lm-eval's index of tasks, which takes seconds to make and is the same for every model."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of every default that it takes
    return TaskManager(include_path=list(include) or None)


def evaluated(model: str | Model, names: Sequence[str], s: HarnessSettings) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` tells of a model on the tasks, as plain JSON values; all hosts call it.

    Args:
      names: tasks, groups or tags of lm-eval, by name or pattern (mmlu_*).

    Raises:
      InputError: lm-eval is not installed; an unknown task; data that cannot be fetched; what the backend refuses.
    """
    manager, tasks = found_tasks(names, s)
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    from fusion_jax.evals.harness.backend import FusionLM

    own = FusionLM(
        model, batch_size=s.batch_size, max_length=s.max_length, max_gen_toks=s.max_gen_toks,
        mesh_tensor=s.mesh_tensor, weights=s.weights, seed=s.seed,
    )  # fmt: skip
    with _fetching(names):
        found = simple_evaluate(
            own, tasks=tasks, task_manager=manager, num_fewshot=None if s.num_fewshot < 0 else s.num_fewshot,
            limit=s.limit or None, batch_size=s.batch_size, apply_chat_template=s.chat,
            fewshot_as_multiturn=s.chat and s.multiturn, system_instruction=s.system or None,
            bootstrap_iters=s.bootstrap, random_seed=s.seed, numpy_random_seed=s.seed, torch_random_seed=s.seed,
            fewshot_random_seed=s.seed,
        )  # fmt: skip
    return json.loads(json.dumps(found, default=handle_non_serializable))


@contextmanager
def _fetching(tasks: Sequence[str]) -> Iterator[None]:
    """Says in one line which tasks were wanted where data cannot be fetched."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        kinds = {kind.__name__ for one in causes(error) for kind in type(one).mro()}
        if not kinds & set(UNREACHED):
            raise
        problem = f"the data of {', '.join(tasks)} cannot be fetched ({one_line(first_line(error), 160)})"
        cure = "Go online, fetch them before, or give tasks over local files with --include"
        raise InputError(problem, field="tasks", cure=cure) from None


def results_of(found: Mapping[str, Any]) -> list[Record]:
    """A record for every metric of every task, group and filter: {"task", "metric", "value", "stderr" (None where
    lm-eval gives none), "filter", "shots", "questions", "version"}."""
    out = []
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        told = {what: found.get(kept, {}).get(task) for what, kept in (("shots", "n-shot"), ("version", "versions"))}
        told["questions"] = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kept}")
            error = error if isinstance(error, int | float) else None
            out.append({"task": task, "metric": metric, "value": value, "stderr": error, "filter": kept, **told})
    return out


def rows_of(results: Sequence[Record]) -> list[dict[str, str]]:
    """Rows of a table of `results_of`: the value with its 95 % interval, 1.96 standard errors as lm-eval estimates
    them to each side, and the number of questions."""
    return [
        {
            "task": one["task"], "metric": one["metric"], "value": f"{one['value']:.4f}",
            "95 %": "" if one["stderr"] is None else f"± {Z95 * one['stderr']:.4f}", "filter": one["filter"],
            **{name: "" if one[name] is None else str(one[name]) for name in ("shots", "questions")},
        }
        for one in results
    ]  # fmt: skip


def sample_records(results: Mapping[str, Any]) -> Iterator[Record]:
    """A record of every question: task, number, what was asked and answered, and its metrics."""
    names = ("doc_id", "filter", "arguments", "resps", "filtered_resps", "target")
    for task, samples in results.get("samples", {}).items():
        for one in samples:
            yield {"task": task, **{name: one.get(name) for name in (*names, *one.get("metrics", ()))}}
