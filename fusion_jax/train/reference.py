"""Reference log-probabilities as data: computed once by the scoring step, kept in the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.data.batches import Buckets, Data, Example, collate
from fusion_jax.errors import InputError
from fusion_jax.files import regular_file, replacing, write_json, writing
from fusion_jax.hosts.agree import agreed_exists
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model
from fusion_jax.models.identity import fingerprint
from fusion_jax.paths import opened
from fusion_jax.sharding import data_ways, local_rows, padded_rows
from fusion_jax.store.manifest import Content, content_of
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.scores import Scores, score
from fusion_jax.train.step import make_score_step, shard_batch


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """A hash of every token, boundary, target, value and further array, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for row, start in zip(example.rows, example.starts):
            digest.update(np.asarray([len(row), start, *row], np.int64).data)
        digest.update(np.asarray([example.branch] if example.branch else [], np.int64).data)
        if example.values:
            digest.update(np.asarray(example.values, np.float64).tobytes())
        beside = [array for name in sorted(example.beside) for array in (name.encode(), example.beside[name])]
        for array in (example.groups, *(example.targets or ()), *beside):
            if array is not None:
                digest.update(array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def sequence_logprobs(
    params: Params,
    config: ModelConfig,
    data: Data,
    compute: Compute,
    *,
    batch_size: int,
    buckets: Buckets,
    scores: Callable[..., Scores] = score,
) -> np.ndarray:
    """float32[n, G]: sequence log-probs of every row, in the order of the examples; rows of similar length together."""
    step = make_score_step(config, compute, scores)
    batch_size, needs = padded_rows(batch_size, data_ways(compute.mesh)), data.extents
    examples = data.examples
    mine = local_rows(batch_size, compute.mesh)
    order = np.argsort([max(len(r) for r in e.rows) for e in examples], kind="stable")
    out = np.zeros((len(examples), len(examples[0].rows)), np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        padded = np.concatenate([chosen, np.repeat(chosen[:1], batch_size - len(chosen))])
        batch = collate([examples[i] for i in padded[mine]], buckets, needs[chosen].max(0), data.shapes)
        values = np.asarray(step(params, shard_batch(batch, compute.mesh)))
        out[chosen] = values[: len(chosen)]
    return out


def _stored(file: Path, stored: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Stored values, if they are as they were written."""
    cure = "Delete reference.json and reference.npy to compute them again"
    known = Content(stored.get("bytes", 0), stored.get("xxh3_128", ""))
    if content_of(regular_file(file, missing=cure)) != known:
        raise InputError("is not as it was written (its size or hash differs)", file=file, cure=cure)
    with opened(file) as source:
        values = np.load(source, allow_pickle=False)
    if values.shape != shape or values.dtype != np.float32:
        raise InputError(f"holds {values.dtype}{list(values.shape)}, not float32{list(shape)}", file=file, cure=cure)
    return values


def with_reference(
    run: RunFolder,
    model: Model,
    data: Data,
    compute: Compute,
    *,
    batch_size: int,
    buckets: Buckets,
    scores: Callable[..., Scores] = score,
) -> Data:
    """The examples with their reference log-probs, read from the folder of a run or computed and stored there.

    Args:
      scores: the forward pass, that of the objective.

    Raises:
      InputError: the stored values belong to another model or other examples, were changed, or are not finite.
    """
    examples = data.examples
    identity = {"model": fingerprint(model.params), "examples": examples_fingerprint(examples)}
    values_file, identity_file = run.file("reference.npy"), run.file("reference.json")
    if agreed_exists(identity_file):
        stored = read_json(identity_file, cure=RESTORE)
        for name, value in identity.items():
            if stored.get(name) != value:
                raise InputError(
                    f"was computed with another {name.rstrip('s')} than this run's", file=values_file, field=name,
                    cure="Delete reference.json and reference.npy to compute them again",
                )  # fmt: skip
        values = _stored(values_file, stored, (len(examples), len(examples[0].rows)))
    else:
        values = sequence_logprobs(
            model.params, model.config, data, compute, batch_size=batch_size, buckets=buckets, scores=scores
        )
        wrong = np.flatnonzero(~np.isfinite(values).all(1))
        if wrong.size:
            raise InputError(
                "the reference model gives log-probs that are not finite", record=data.name(examples[wrong[0]].index),
                cure="Check the record and the model's weights",
            )  # fmt: skip

        def store() -> None:
            with writing("reference log-probs", values_file):
                with replacing(values_file) as temporary, open(temporary, "wb") as out:
                    np.save(out, values, allow_pickle=False)
                # Last: with it the values count as made.
                write_json(identity_file, identity | content_of(values_file)._asdict())

        run.on_first(store)
    return data.referenced(values)
