"""One tensor of a merge: merged on the device, checked, told in a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.errors import InputError
from fusion_jax.merge.executor.prepare import Prepared
from fusion_jax.merge.executor.reading import AHEAD, Hashes, Loaded, check_inputs, read_ahead
from fusion_jax.merge.methods.sums import sums_of
from fusion_jax.merge.recipes.plan import TensorPlan

Array = jax.Array
Record = dict[str, Any]
Place = Callable[[np.ndarray, int], Array]


class Finished(NamedTuple):
    """A merged tensor with its record, in host memory."""

    record: Record
    value: np.ndarray


class Made(NamedTuple):
    """A merged tensor, perhaps still being computed; squares: sums of squares, see `_as_saved`."""

    tensor: TensorPlan
    value: Array
    squares: dict[str, Array]
    report: dict[str, Array]
    hashes: Hashes


def merged_tensors(prepared: Prepared, tensors: Sequence[TensorPlan], mesh: Mesh | None) -> Iterator[Finished]:
    """Each tensor, in order; one is read while another is computed and a third is taken away.

    Raises:
      InputError: a weight, or a merged number in the output's dtype, is not finite.
    """
    place = placer(mesh)
    before: list[Made] = []
    with ThreadPoolExecutor(2) as hashers:
        for loaded in read_ahead(prepared, tensors, hashers):
            alone = prepared.held(loaded.tensor) > AHEAD
            if alone:
                yield from (finished(prepared, made) for made in before)
                before = []
            made = merge_tensor(prepared, loaded, place)
            del loaded
            yield from (finished(prepared, one) for one in before)
            before = [made]
            del made
            if alone:
                yield finished(prepared, before.pop())
        yield from (finished(prepared, made) for made in before)


def placer(mesh: Mesh | None) -> Place:
    """(array, leading axes that stay whole) -> the array on the device, or split over all devices of a mesh."""
    if mesh is None:
        return lambda array, leading: jax.device_put(array)

    def place(array: np.ndarray, leading: int) -> Array:
        axes: list[Any] = [None] * array.ndim
        for axis in range(leading, array.ndim):
            if array.shape[axis] % mesh.size == 0:
                axes[axis] = mesh.axis_names
                break
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    return place


def merge_tensor(prepared: Prepared, loaded: Loaded, place: Place) -> Made:
    """Start the merge of one tensor on the device."""
    tensor, dtype = loaded.tensor, prepared.dtype(loaded.tensor).name
    base = None if loaded.base is None else place(loaded.base, 0)
    if loaded.models is None:
        assert base is not None
        value, squares = _as_saved(base[None], base, base, dtype=dtype)
        return Made(tensor, value, squares, {}, loaded.hashes)
    models = place(loaded.models, 1)
    merged = prepared.merged(tensor, models, base)
    value, squares = _as_saved(models, base, merged.tensor, dtype=dtype)
    return Made(tensor, value, squares, merged.report, loaded.hashes)


@partial(jax.jit, static_argnames="dtype")
def _as_saved(models: Array, base: Array | None, merged: Array, *, dtype: str) -> tuple[Array, dict[str, Array]]:
    """The output as it is saved, and sums of squares float32: of each model [K], its task vector [K], the base, the
    output, and how far it is from the base."""
    value = merged.astype(dtype)
    out, stack = value.astype(jnp.float32), [model.astype(jnp.float32) for model in models]
    if base is None:
        return value, _square_sums({"models": stack, "output": out})
    base = base.astype(jnp.float32)
    task_vectors = [model - base for model in stack]
    told: dict[str, Array | list[Array]] = {
        "models": stack,
        "task_vectors": task_vectors,
        "base": base,
        "output": out,
        "change": out - base,
    }
    return value, _square_sums(told)


def _square_sums(tensors: Mapping[str, Array | list[Array]]) -> dict[str, Array]:
    """float32 [] or [K] by name: sums of squares of a tensor or of K, in one reading of what they are made of."""
    leaves, structure = jax.tree.flatten(tensors)
    sums = jax.tree.unflatten(structure, sums_of([jnp.square(jnp.atleast_1d(x)) for x in leaves]))
    return {name: jnp.stack(found) if isinstance(found, list) else found for name, found in sums.items()}


def finished(prepared: Prepared, made: Made) -> Finished:
    """The merged tensor in host memory and its record: norms, what the method reports, parameters, hashes of inputs."""
    norms = {name: np.sqrt(np.asarray(x, np.float64)) for name, x in made.squares.items()}
    value = np.asarray(made.value)
    _check_finite(prepared, made.tensor, norms, value)
    record = {
        "name": made.tensor.name,
        "shape": list(made.tensor.shape),
        "models": [one.model for one in made.tensor.inputs],
        "parameters": dict(made.tensor.parameters),
        "norms": {name: x.tolist() for name, x in norms.items()},
        **{name: np.asarray(x, np.float64).round(9).tolist() for name, x in made.report.items()},
        "xxh3_128": {name: hashed.result() for name, hashed in made.hashes.items()},
    }
    return Finished(record, value)


def _check_finite(prepared: Prepared, tensor: TensorPlan, norms: dict[str, np.ndarray], value: np.ndarray) -> None:
    """A sum of squares tells NaN and infinity at no cost; only then all numbers are looked at."""
    if all(np.isfinite(x).all() for x in norms.values()):
        return
    check_inputs(prepared, tensor)
    if not np.isfinite(value.astype(np.float32)).all():
        problem = f"the merged tensor has numbers that {value.dtype} does not hold"
        cure = "Lower `lambda` or the weights, or set out_dtype to bfloat16 or float32"
        raise InputError(problem, file=prepared.recipe.file, field=tensor.name, cure=cure)
