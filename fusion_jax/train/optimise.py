"""From a model, examples and an objective to a better model: the one training loop of the code base."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import Buckets, Example, TokenBatch, buckets_for, collate, extents
from fusion_jax.data.order import batch_order, num_steps
from fusion_jax.data.packing import check_packable
from fusion_jax.errors import InputError
from fusion_jax.evals.accuracy import student95
from fusion_jax.failures import doing
from fusion_jax.files import write_json
from fusion_jax.hosts import PREEMPTED, on_first, preemption
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.losses.reductions import Count, divide
from fusion_jax.losses.schedules import learning_rate
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import place_params
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS, CHUNK_ELEMENTS_ACCELERATOR
from fusion_jax.ops.remat import Remat
from fusion_jax.settings import bounded, seeded
from fusion_jax.sharding import data_ways, local_rows, make_mesh
from fusion_jax.slices import compiler_options, compute_dtype
from fusion_jax.train.batching import step_batch
from fusion_jax.train.checkpoints import Checkpoints, finishing, restore_state, save_state
from fusion_jax.train.reference import examples_fingerprint, with_reference
from fusion_jax.train.run_folder import RunFolder, append_metrics, evaluated, truncate_metrics
from fusion_jax.train.state import OptimizerSettings, Params, TrainState, init_state, make_optimizer
from fusion_jax.train.step import Compute, Metrics, Objective, make_eval_step, make_train_step, shard_batch

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class TrainSettings:
    """How a stage trains."""

    optimizer: OptimizerSettings = OptimizerSettings()
    epochs: float = 1.0
    """How often the data is gone through; may be a fraction."""
    batch_size: int = 128
    """Examples of an optimizer step, over all devices and micro-batches."""
    micro_batches: int = 8
    """Parts in which a batch is computed, one after the other: more take less memory."""
    seed: int = 42
    """Decides the order of the examples."""
    bucket_window: int = 8
    """Batches among which examples are sorted by length, so that little of a batch is padding; 1: none."""
    log_every: int = 5
    """Steps from one line of metrics.jsonl to the next."""
    eval_every: int = 500
    """Steps from one evaluation on held-out examples to the next."""
    checkpoint_every: int = 500
    """Steps from one saved state to the next: what a kill loses at most."""
    reference: Literal["stored", "in-step"] = "stored"
    """Log-probs of the frozen reference: computed once and stored, or with a second copy of the weights."""
    shared_prompt: bool = True
    """Whether the responses of a preference example share the computation of their prompt."""
    pack_tokens: int = 0
    """Tokens of a row into which preference examples of uneven lengths are packed; 0: each response is a row."""
    remat: Remat = "full"
    """What the backward pass keeps of a layer: everything (none); the residual stream (full), also the attention's
    outputs (attention) and inputs (qkv); the stream and the feed-forward's two factors (gated); the results of all wide
    matmuls (dots); the stream alone, in the host's memory (offload)."""
    attention: Literal["auto", "xla", "splash"] = "auto"
    """Attention kernel; auto is splash on TPU, but for windows that cut a shared prompt, and xla elsewhere."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers to compute in; auto is bfloat16 where the device multiplies it natively, else float32."""
    mesh_data: int = 1
    """Device groups that each hold all weights; -1: the devices that are left."""
    mesh_fsdp: int = -1
    """Devices over which weights and batches are split; -1: the devices that are left."""
    mesh_tensor: int = 1
    """Devices over which heads and feed-forward columns are split; -1: the devices that are left."""

    def __post_init__(self) -> None:
        bounded(self, "batch_size", "micro_batches", "bucket_window", least=1)
        bounded(self, "log_every", "eval_every", "checkpoint_every", least=1)
        bounded(self, "epochs", above=0, most=1e6)
        bounded(self, "mesh_data", "mesh_fsdp", "mesh_tensor", least=-1)
        seeded(self, "seed")
        bounded(self, "pack_tokens", least=0)
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"batch size {self.batch_size} is not a multiple of {self.micro_batches} micro-batches",
                field="batch_size", cure="Change one of the two",
            )  # fmt: skip


class NonFiniteLoss(InputError):
    """The loss or the gradient of a step was not finite; the last good state is saved."""


def compute_for(
    settings: TrainSettings, devices: Sequence[jax.Device] | None = None, *, option: str = "--train"
) -> Compute:
    """`compute_to_read` for a stage that trains.

    Raises:
      InputError: the mesh or the micro-batches do not fit the devices; names the setting behind `option`.
    """
    compute = compute_to_read(settings, devices, option=option)
    rows, ways = settings.batch_size // settings.micro_batches, data_ways(compute.mesh)
    if rows % ways:
        raise InputError(
            f"a micro-batch of {rows} examples does not divide over {ways} devices", field=f"{option}.batch-size",
            cure=f"Change {option}.batch-size or {option}.micro-batches, or give {option}.mesh-tensor some devices",
        )  # fmt: skip
    return compute


def compute_to_read(
    settings: TrainSettings, devices: Sequence[jax.Device] | None = None, *, option: str = "--train"
) -> Compute:
    """Mesh, dtype, kernels: bfloat16 where the device multiplies it natively, float32 on a CPU; splash attention on
    TPU; no mesh on one device. Batches that are only read may have any size: they are filled up.

    Args:
      devices: what to compute on; None: all, those of other hosts included.
      option: of the settings, for messages.

    Raises:
      InputError: the mesh does not fit the devices, the kernel is not for them.
    """
    dtype = compute_dtype() if settings.compute_dtype == "auto" else settings.compute_dtype
    mesh: Mesh | None = None
    devices = jax.devices() if devices is None else devices
    if len(devices) > 1:
        mesh = make_mesh(settings.mesh_data, settings.mesh_fsdp, settings.mesh_tensor, devices=devices)
    platform, kernel = devices[0].platform, settings.attention
    if kernel == "splash" and platform != "tpu":
        problem = f"is a kernel for TPU, the devices here are {platform}"
        raise InputError(problem, field=f"{option}.attention", cure="Set it to auto or xla")
    if kernel == "auto":
        kernel = "splash" if platform == "tpu" else "xla"
    logits = CHUNK_ELEMENTS if platform == "cpu" else CHUNK_ELEMENTS_ACCELERATOR
    options = tuple(compiler_options(devices[0].device_kind).items())
    return Compute(mesh, jnp.dtype(dtype), settings.remat, settings.shared_prompt, kernel, logits, options)


def step_count(examples: int, settings: TrainSettings) -> int:
    """Optimizer steps of a run: the N of the learning-rate and fusion-coefficient schedules."""
    return num_steps(examples, settings.batch_size, settings.epochs)


def optimise(
    model: Model,
    examples: Sequence[Example],
    objective: Objective,
    settings: TrainSettings,
    run: RunFolder,
    *,
    needs_reference: bool = False,
    validation: Sequence[Example] = (),
    names: Callable[[int], str] = str,
) -> Model:
    """Train `model` on `examples`; continues from the run folder's last checkpoint if there is one.

    Args:
      objective: what to minimise; see `train.objectives`.
      needs_reference: the starting weights also serve as the frozen reference.
      validation: examples whose loss and metrics are logged under `eval_` every `eval_every` steps and at the end.
      names: example index -> what a user knows the record by, for error messages.

    Raises:
      NonFiniteLoss: a step was not finite; names the records, after saving the last good state.
      SystemExit: with `hosts.PREEMPTED`, SIGTERM came to any host; the state is saved.
    """
    total, compute = step_count(len(examples), settings), compute_for(settings)
    model = dataclasses.replace(model, params=place_params(model.params, model.config, compute.mesh))
    needs, held_needs = extents(examples), extents(validation)
    buckets = buckets_for(np.concatenate([needs, held_needs]))
    _check_examples(run, examples, model.config.max_positions, settings.pack_tokens)
    in_step = needs_reference and settings.reference == "in-step"
    if needs_reference and not in_step:
        examples = _referenced(run.sub("reference"), model, examples, settings, compute, buckets, names)
    if needs_reference and validation:
        validation = _referenced(run.sub("reference_validation"), model, validation, settings, compute, buckets, str)
    optimizer = make_optimizer(settings.optimizer, total)
    rate = learning_rate(
        settings.optimizer.learning_rate, num_steps=total,
        warmup_ratio=settings.optimizer.warmup_ratio, schedule=settings.optimizer.schedule,
    )  # fmt: skip
    work = _Work(
        total,
        _feeder(examples, settings, total, buckets, needs, compute.mesh),
        make_train_step(model.config, objective, optimizer, compute, rate),
        _evaluator(model, objective, compute, validation, settings, buckets, held_needs),
        names,
        model.params if in_step else None,
    )
    checkpoints = Checkpoints(run)
    state = init_state(model.params, optimizer, compute.mesh)
    state = restore_state(checkpoints, state) or state
    with doing(f"training {run.path.name}"), preemption() as told_to_stop, finishing(checkpoints):
        state = _loop(state, work, settings, run, checkpoints, told_to_stop)
    return dataclasses.replace(model, params=state.params)


@dataclass(frozen=True)
class _Work:
    """A run's parts that do not change from step to step.

    feed: step -> the indices of its examples and their batch on the devices, None behind the last step.
    step: (state, batch, reference) -> (state, metrics). evaluate: state -> metrics of the held-out examples, if any.
    """

    total: int
    feed: Callable[[int], tuple[np.ndarray, TokenBatch | None]]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[TrainState], dict[str, float]]
    names: Callable[[int], str]
    reference: Params | None


def _referenced(
    run: RunFolder,
    model: Model,
    examples: Sequence[Example],
    settings: TrainSettings,
    compute: Compute,
    buckets: Buckets,
    names: Callable[[int], str],
) -> Sequence[Example]:
    """The examples with the log-probs that `model` gives them, kept in the folder."""
    size = settings.batch_size // settings.micro_batches
    return with_reference(
        run.path, model.params, model.config, examples, compute, batch_size=size, buckets=buckets, names=names
    )


def _feeder(
    examples: Sequence[Example],
    settings: TrainSettings,
    total: int,
    buckets: Buckets,
    needs: np.ndarray,
    mesh: Mesh | None,
) -> Callable[[int], tuple[np.ndarray, TokenBatch | None]]:
    order = batch_order(
        [max(len(r) for r in e.rows) for e in examples],
        batch_size=settings.batch_size, seed=settings.seed, epochs=settings.epochs,
        bucket_window=settings.bucket_window,
    )  # fmt: skip

    def feed(step: int) -> tuple[np.ndarray, TokenBatch | None]:
        if step >= total:
            return np.zeros(0, np.int64), None
        indices = np.asarray(order[step])
        micro = indices.reshape(settings.micro_batches, -1)
        batch = step_batch(examples, micro, buckets, needs, mesh, settings.pack_tokens)
        return indices, shard_batch(batch, mesh)

    return feed


def _check_examples(run: RunFolder, examples: Sequence[Example], max_positions: int, pack_tokens: int) -> None:
    """Refuse rows that the model cannot read, examples that rows of `pack_tokens` do not hold and, on resume, other
    examples than the run was started with."""
    if pack_tokens:
        check_packable(examples, pack_tokens)
    read = max(len(row) for e in examples for row in e.rows) - 1  # the last token of a row only is predicted
    if read > max_positions:
        raise InputError(
            f"the longest example has {read + 1} tokens, the model has {max_positions} positions", field="max_length",
            cure=f"Cut examples to {max_positions} tokens",
        )  # fmt: skip
    on_first(lambda: _check_same_examples(run.file("examples.json"), examples))


def _check_same_examples(file: Path, examples: Sequence[Example]) -> None:
    now = {"sha256": examples_fingerprint(examples)}
    if not file.exists():
        write_json(file, now)
    elif read_json(file, cure=RESTORE) != now:
        raise InputError(
            "the run was started with other examples", file=file, field="sha256",
            cure="Resume with the data and tokenizer as they were, or start a new run",
        )  # fmt: skip


def _loop(
    state: TrainState,
    work: _Work,
    settings: TrainSettings,
    run: RunFolder,
    checkpoints: Checkpoints,
    told_to_stop: Callable[[], bool | jax.Array],
) -> TrainState:
    first, started, total, lap = int(state.step), time.monotonic(), work.total, run.clock("training")
    truncate_metrics(run, first)
    if first and _due(first, settings.eval_every, total) and not evaluated(run, first - 1):
        _log_evaluation(run, first - 1, work.evaluate(state))
    upcoming = work.feed(first)
    with _progress(run) as progress:
        task = progress.add_task(run.path.name, total=total, completed=first, note="")
        for step in range(first, total):
            indices, batch = upcoming
            state, metrics = work.step(state, batch, work.reference)
            told = told_to_stop()
            upcoming = work.feed(step + 1)  # while the devices work
            checkpoints.settle()
            if bool(state.halted):
                _stop(state, step, indices, np.asarray(metrics["bad"]), checkpoints, run, work.names)
            if step % settings.log_every == 0 or step == total - 1:
                values = {k: float(v) for k, v in metrics.items() if k != "bad"}
                append_metrics(run, {"step": step, **values})
                progress.update(task, note=f"loss {values['loss']:.4f}")
            done = step + 1
            evaluating = _due(done, settings.eval_every, total)
            stop = bool(told) or (evaluating and bool(told_to_stop()))  # an evaluation is long, so once more
            if _due(done, settings.checkpoint_every, total) or stop:
                save_state(checkpoints, state)
                lap()
            if stop:
                run.log(f"{run.path.name}: told to stop, saved after step {done}; --resume goes on")
                raise SystemExit(PREEMPTED)
            if evaluating:  # after saving: what kills the run meanwhile costs no step
                _log_evaluation(run, step, work.evaluate(state))
            progress.update(task, completed=done)
    if first < total:
        lap()
        seconds = time.monotonic() - started
        run.log(f"{run.path.name}: steps {first + 1} to {total}, last loss {values['loss']:.4f}, {seconds:.0f} s")
    return state


def _due(done: int, every: int, total: int) -> bool:
    return done % every == 0 or done == total


def _log_evaluation(run: RunFolder, step: int, held_out: dict[str, float]) -> None:
    if held_out:
        append_metrics(run, {"step": step, **held_out})


def _progress(run: RunFolder) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"), BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=run.console, transient=True, disable=not run.console.is_terminal)


def _evaluator(
    model: Model,
    objective: Objective,
    compute: Compute,
    validation: Sequence[Example],
    settings: TrainSettings,
    buckets: Buckets,
    needs: np.ndarray,
) -> Callable[[TrainState], dict[str, float]]:
    """state -> means and counts of all validation examples, named `eval_`; the last batch is filled with weight 0."""
    if not validation:
        return lambda state: {}
    step_fn = make_eval_step(model.config, objective, compute)
    size = settings.batch_size // settings.micro_batches
    mine = local_rows(size, compute.mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: Metrics = {}
        parts: list[Metrics] = []
        for start in range(0, len(validation), size):
            part = list(validation[start : start + size])
            filled = part + [dataclasses.replace(part[0], weight=0.0)] * (size - len(part))
            batch = collate([filled[i] for i in mine], buckets, needs[start : start + size].max(0))
            new = step_fn(state.params, shard_batch(batch, compute.mesh), state.step)
            sums = jax.tree.map(jnp.add, sums, new) if sums else new
            parts.append(new)
        found = {f"eval_{k}": float(divide(v)) for k, v in sums.items()}
        return found | {"eval_examples": float(len(validation))} | _half_widths(parts)

    return evaluate


def _half_widths(parts: Sequence[Metrics]) -> dict[str, float]:
    """Half of each mean's 95 % Student interval, from its means over batches; of fewer than four, none is told."""
    if len(parts) < 4:
        return {}
    found = {}
    for name in parts[0]:
        means = [part[name] for part in parts]
        if any(isinstance(mean, Count) for mean in means):
            continue
        sums, weights = (np.asarray([float(mean[i]) for mean in means]) for i in (0, 1))
        if (weights > 0).all():
            off = (sums - weights * sums.sum() / weights.sum()) / weights.sum()
            error = np.sqrt(len(parts) / (len(parts) - 1) * np.sum(off**2))
            found[f"eval_{name}/half"] = float(student95(len(parts) - 1) * error)
    return found


def _stop(
    state: TrainState,
    step: int,
    indices: np.ndarray,
    bad: np.ndarray,
    checkpoints: Checkpoints,
    run: RunFolder,
    names: Callable[[int], str],
) -> None:
    """Save the last good state, then say which records broke the step."""
    if step > 0:
        save_state(checkpoints, state._replace(halted=jnp.zeros_like(state.halted)))
    broken = indices[bad.reshape(-1)] if bad.size == indices.size and bad.any() else indices
    listed = ", ".join(names(int(i)) for i in broken[:16]) + (" ..." if len(broken) > 16 else "")
    which = "their log-probs are not finite" if bad.any() else "the records of the batch"
    raise NonFiniteLoss(
        f"loss or gradient of step {step} is not finite; {which}: {listed}"
        + (". The state before the step is saved" if step else ""),
        file=run.file("checkpoints"),
        cure="Start a new run without these records or with a lower learning rate",
    )  # fmt: skip
