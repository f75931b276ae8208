"""From a model, data and an objective to a better model: the one training loop of the code base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.batches import Buckets, Data, TokenBatch, buckets_for
from fusion_jax.data.order import batch_order
from fusion_jax.errors import InputError
from fusion_jax.failures import doing
from fusion_jax.hosts.agree import agreed, first_host
from fusion_jax.hosts.signals import PREEMPTED, preemption
from fusion_jax.models.compute import Compute
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model
from fusion_jax.models.lora import Adapter, has_adapters, init_adapters, joined, merged
from fusion_jax.models.parameters import place_params
from fusion_jax.store.run_folder import RunFolder, append_metrics, evaluated, read_metrics, truncate_metrics
from fusion_jax.store.times import Clock
from fusion_jax.train.batching import step_batch
from fusion_jax.train.checkpoints import Checkpoints, finishing, restore_state, save_state
from fusion_jax.train.checks import check_examples, check_rate, check_settings
from fusion_jax.train.evaluate import evaluator
from fusion_jax.train.objective import Objective, Progress
from fusion_jax.train.reference import with_reference
from fusion_jax.train.scores import score
from fusion_jax.train.settings import TrainSettings, compute_for, step_count
from fusion_jax.train.state import Pace, TrainState, init_state, make_optimizer, paces
from fusion_jax.train.step import make_eval_step, make_memory, make_train_step, shard_batch

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


LOSS = "eval_loss"


class NonFiniteLoss(InputError):
    """The loss or the gradient of a step was not finite; the last good state is saved."""


def optimise(
    model: Model,
    data: Data,
    objective: Objective,
    settings: TrainSettings,
    run: RunFolder,
    *,
    held: Data | None = None,
    arrays: Any = None,
    measured: Callable[[Params], dict[str, float]] | None = None,
    best_by: str = LOSS,
) -> Model:
    """Train `model` on `data`; continues from the run folder's last checkpoint if there is one.

    Args:
      objective: what to minimise; where it needs a reference, the starting weights are also that.
      settings: with `lora_rank`, adapters are trained: the result's parameters are the starting ones with the adapters
        beside them, which are merged as it is saved.
      held: examples whose loss and metrics are logged under `eval_` every `eval_every` steps and at the end.
      arrays: what the objective's forward pass reads besides, a pytree of arrays on the mesh: `objective.Given`.
      measured: what else is measured of the weights every `eval_every` steps and at the end, and logged.
      best_by: what `settings.best_of` goes by: "eval_loss", the lowest, or another logged measure, the highest.

    Raises:
      NonFiniteLoss: a step was not finite; names the records, after saving the last good state.
      SystemExit: with `hosts.signals.PREEMPTED`, SIGTERM came to any host; the state is saved.
    """
    check_settings(settings, model, chosen=held is not None or measured is not None)
    compute, lora = compute_for(settings), settings.lora
    total = step_count(len(data), settings) if data.batches is None else len(data.batches)
    adapted = has_adapters(model.params)
    params = place_params(merged(model.params) if adapted else model.params, model.config, compute.mesh)
    model = replace(model, params=params, adapter=None, folder="" if adapted else model.folder)
    weights = (lambda params: params) if lora is None else partial(joined, model.params, scale=lora.scale)
    held = held if held is not None and len(held) else None
    buckets = buckets_for(np.concatenate([data.extents, *([held.extents] if held else [])]))
    check_examples(run, data, model.config, settings.pack_tokens, own=objective.scores is not score)
    in_step = objective.reference and settings.reference == "in-step"
    if objective.reference:
        refer = partial(_referenced, run, model, objective, settings, compute, buckets)
        data = data if in_step else refer("reference", data)
        held = refer("reference_validation", held) if held else None
    pace = paces(settings.optimizer, total, objective.companion)
    check_rate(run, pace(0), total)
    optimizer, objective = make_optimizer(settings.optimizer, objective.companion), replace(objective, companion=None)
    step = make_train_step(
        model.config, objective, optimizer, compute, router_weight=settings.router_weight, lora=lora, in_step=in_step
    )
    work = _Work(
        total,
        pace,
        _feeder(data, settings, total, buckets, compute),
        step,
        _evaluation(model, objective, held, settings, buckets, compute, total, weights, arrays, measured),
        data.name,
        (model.params if in_step or lora is not None else None, arrays),
        compute.dtype,
    )
    # One more than are compared: the end, or what a preemption left, is no whole interval.
    keep = settings.best_of + 1 if settings.best_of > 1 else 1
    checkpoints = Checkpoints(run, keep=keep, every=settings.checkpoint_every)
    fresh = model.params if lora is None else init_adapters(model.config, lora, settings.seed, compute.mesh)
    state = init_state(fresh, optimizer, compute.mesh)
    if (memory := objective.memory) is not None:
        made = make_memory(model.config, memory, compute)(state.params, arrays)
        state = state._replace(opt_state=(state.opt_state, made))
    state = restore_state(checkpoints, state) or state
    with doing(f"training {run.path.name}"), preemption() as told_to_stop, run.timed("training") as clock:
        with finishing(checkpoints):
            state = _loop(state, work, settings, run, checkpoints, told_to_stop, clock)
            if settings.best_of > 1:
                state = _best(state, settings, run, checkpoints, best_by)
        clock.took("checkpoint")
    adapter = None if lora is None else Adapter(lora, state.params, model.folder)
    return replace(model, params=weights(state.params), adapter=adapter, folder="")


def _referenced(
    run: RunFolder, model: Model, objective: Objective, settings: TrainSettings, compute: Compute, buckets: Buckets,
    name: str, data: Data,
) -> Data:  # fmt: skip
    """The examples with the starting weights' log-probs, which are made once."""
    size = settings.batch_size // settings.micro_batches
    with run.timed(name.replace("_", ", ")), run.phase("reference"):
        return with_reference(
            run.sub(name), model, data, compute, batch_size=size, buckets=buckets, scores=objective.scores
        )


@dataclass(frozen=True)
class _Work:
    """A run's parts that do not change from step to step.

    pace: step -> what its program is told.
    feed: step -> the indices of its examples and their batch on the devices, None behind the last step.
    step: (state, batch, pace, *given) -> (state, metrics). evaluate: state -> metrics of the held-out examples, if any.
    name: index of an example -> its record. dtype: of the computation.
    """

    total: int
    pace: Callable[[int], Pace]
    feed: Callable[[int], tuple[np.ndarray, TokenBatch | None]]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[TrainState], dict[str, float]]
    name: Callable[[int], str]
    given: tuple[Any, ...]
    dtype: Any


def _evaluation(
    model: Model,
    objective: Objective,
    held: Data | None,
    settings: TrainSettings,
    buckets: Buckets,
    compute: Compute,
    total: int,
    weights: Callable[[Params], Params],
    arrays: Any,
    measured: Callable[[Params], dict[str, float]] | None,
) -> Callable[[TrainState], dict[str, float]]:
    if held is None:
        return lambda state: {} if measured is None else measured(weights(state.params))
    if objective.held is not None:
        objective, arrays = objective.held, None
    step = make_eval_step(model.config, objective, compute)
    size = settings.batch_size // settings.micro_batches
    evaluate = evaluator(
        lambda params, batch, done: step(params, batch, Progress(done, total), arrays),
        held, buckets, compute.mesh, batch_size=size, weights=weights,
    )  # fmt: skip
    if measured is None:
        return evaluate
    return lambda state: evaluate(state) | measured(weights(state.params))


def _feeder(
    data: Data, settings: TrainSettings, total: int, buckets: Buckets, compute: Compute
) -> Callable[[int], tuple[np.ndarray, TokenBatch | None]]:
    order = data.batches or batch_order(
        [max(len(r) for r in e.rows) for e in data.examples],
        batch_size=settings.batch_size, seed=settings.seed, epochs=settings.epochs,
        bucket_window=settings.bucket_window,
    )  # fmt: skip

    def feed(step: int) -> tuple[np.ndarray, TokenBatch | None]:
        if step >= total:
            return np.zeros(0, np.int64), None
        indices = np.asarray(order[step])
        micro = indices.reshape(settings.micro_batches, -1)
        drawn_from = (settings.seed, step) if settings.dropout or settings.source_dropout else None
        batch = step_batch(data, micro, buckets, compute.mesh, settings.pack_tokens, drawn_from)
        return indices, shard_batch(batch, compute.mesh)

    return feed


def _loop(
    state: TrainState,
    work: _Work,
    settings: TrainSettings,
    run: RunFolder,
    checkpoints: Checkpoints,
    told_to_stop: Callable[[], bool | jax.Array],
    clock: Clock,
) -> TrainState:
    """The steps that are left. On the clock, `data` is making the next batch while the devices work, `step` waiting for
    them."""
    first, total = int(state.step), work.total
    truncate_metrics(run, first)
    if first and _due(first, settings.eval_every, total) and not evaluated(run, first - 1):
        _log_evaluation(run, first - 1, work.evaluate(state))
        clock.took("eval")
    upcoming = work.feed(first)
    clock.took("data")
    with _progress(run) as progress:
        task = progress.add_task(run.path.name, total=total, completed=first, note="")
        for step in range(first, total):
            indices, batch = upcoming
            state, metrics = work.step(state, batch, work.pace(step), *work.given)
            stopping = told_to_stop()
            clock.took("step")
            upcoming = work.feed(step + 1)  # while the devices work
            clock.took("data")
            checkpoints.settle()
            if bool(state.halted):
                _stop(state, step, indices, np.asarray(metrics["bad"]), checkpoints, run, work)
            clock.took("step")
            if step % settings.log_every == 0 or step == total - 1:
                values = {k: float(v) for k, v in metrics.items() if k != "bad"}
                append_metrics(run, {"step": step, **values})
                clock.lap(step=step)
                progress.update(task, note=f"loss {values['loss']:.4f}")
            done = step + 1
            evaluating = _due(done, settings.eval_every, total)
            stop = bool(stopping) or (evaluating and bool(told_to_stop()))  # an evaluation is long, so once more
            if _due(done, settings.checkpoint_every, total) or stop:
                save_state(checkpoints, state)
                clock.took("checkpoint")
            if stop:
                run.log(f"{run.path.name}: told to stop, saved after step {done}; --resume goes on")
                raise SystemExit(PREEMPTED)
            if evaluating:  # after saving: what kills the run meanwhile costs no step
                _log_evaluation(run, step, work.evaluate(state))
                clock.took("eval")
            progress.update(task, completed=done)
            run.heartbeat(f"{run.path.name}, steps", done, total)
    if first < total:
        loss = f"last loss {values['loss']:.4f}"
        run.log(f"{run.path.name}: steps {first + 1} to {total}, {loss}, {clock.in_words()}")
    return state


def _best(
    state: TrainState, settings: TrainSettings, run: RunFolder, checkpoints: Checkpoints, best_by: str
) -> TrainState:
    """Of the last states the one with the lowest held-out loss, or the highest other measure, the latest of equals."""
    last = int(state.step)
    sign, what = (1, "loss") if best_by == LOSS else (-1, best_by.removeprefix("eval_"))

    def best_step() -> int:
        logged = read_metrics(run, last)
        values = {record["step"] + 1: record[best_by] for record in logged if best_by in record}
        steps = checkpoints.apart(settings.best_of)
        told = ", ".join(f"{values[step]:.4f} after step {step}" for step in steps)
        best = min(reversed(steps), key=lambda step: sign * values[step])
        run.log(f"{run.path.name}: held-out {what} {told}; the result is the state after step {best}")
        return best

    checkpoints.finish()
    best = int(agreed(np.asarray(best_step() if first_host() else last)))
    return state if best == last else restore_state(checkpoints, state, best) or state


def _due(done: int, every: int, total: int) -> bool:
    return done % every == 0 or done == total


def _log_evaluation(run: RunFolder, step: int, held_out: dict[str, float]) -> None:
    if held_out:
        append_metrics(run, {"step": step, **held_out})


def _progress(run: RunFolder) -> Bar:
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("  {task.description}"), BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"), TimeRemainingColumn(),
    )  # fmt: skip
    return Bar(*columns, console=run.console, transient=True, disable=not run.console.is_terminal)


def _stop(
    state: TrainState,
    step: int,
    indices: np.ndarray,
    bad: np.ndarray,
    checkpoints: Checkpoints,
    run: RunFolder,
    work: _Work,
) -> None:
    """Save the last good state, then say which records broke the step."""
    if step > 0:
        save_state(checkpoints, state._replace(halted=jnp.zeros_like(state.halted)))
    broken = indices[bad.reshape(-1)] if bad.size == indices.size and bad.any() else indices
    listed = ", ".join(work.name(int(i)) for i in broken[:16]) + (" ..." if len(broken) > 16 else "")
    which = "their log-probs are not finite" if bad.any() else "the records of the batch"
    exact = "" if jnp.dtype(work.dtype) == jnp.float32 else ", or compute_dtype float32"
    raise NonFiniteLoss(
        f"loss or gradient of step {step} is not finite; {which}: {listed}"
        + (". The state before the step is saved" if step else ""),
        file=run.file("checkpoints"),
        cure="Look at these records (experiments/inspect_data.py); then start a new run without them, or with a lower "
        f"learning_rate, a larger warmup_ratio, a smaller clip_norm{exact}",
    )  # fmt: skip
