"""One tensor of a merge: its inputs read, merged on the device, checked, told in a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import tensor_keys
from fusion_jax.merge.inputs import Prepared
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.plan import TensorInput, TensorPlan
from fusion_jax.merge.stacks import sums_of
from fusion_jax.merge.vocabulary import remap
from fusion_jax.models.safetensors_io import TensorEntry

Array = jax.Array
Record = dict[str, Any]
Hashes = dict[str, Future[str]]
Place = Callable[[np.ndarray, int], Array]
AHEAD = 512 << 20  # bytes of inputs; larger tensors are read and merged with nothing else in memory


class Loaded(NamedTuple):
    """A tensor's inputs in host memory. models: float[K,...]; None: the base is copied.

    hashes: of each input, perhaps still being computed.
    """

    tensor: TensorPlan
    models: np.ndarray | None
    base: np.ndarray | None
    hashes: Hashes


class Made(NamedTuple):
    """A merged tensor, perhaps still being computed; squares: sums of squares, see `_finished`."""

    tensor: TensorPlan
    value: Array
    squares: dict[str, Array]
    report: dict[str, Array]
    hashes: Hashes


def merged_tensors(
    prepared: Prepared, tensors: Sequence[TensorPlan], mesh: Mesh | None
) -> Iterator[tuple[Record, np.ndarray]]:
    """(record, value) of each tensor in order; one is read while another is computed and a third is taken away.

    Raises:
      InputError: a weight, or a merged number in the output's dtype, is not finite.
    """
    place = placer(mesh)
    before: list[Made] = []
    with ThreadPoolExecutor(2) as hashers:
        for loaded in _read_ahead(prepared, tensors, hashers):
            alone = prepared.held(loaded.tensor) > AHEAD
            if alone:
                yield from (told(prepared, made) for made in before)
                before = []
            made = merge_tensor(prepared, loaded, place)
            del loaded
            yield from (told(prepared, one) for one in before)
            before = [made]
            del made
            if alone:
                yield told(prepared, before.pop())
        yield from (told(prepared, made) for made in before)


def _read_ahead(prepared: Prepared, tensors: Sequence[TensorPlan], hashers: Executor) -> Iterator[Loaded]:
    """Each tensor's inputs; while one is used, the next is read in another thread, if both are small.

    Small ones lie in three slabs in turn, so that the system gives pages once and not for each tensor: what one holds
    is of use until the next but one is asked for.
    """
    small = [prepared.held(t) <= AHEAD for t in tensors]
    room = 64 + max((prepared.held(t) for t, is_small in zip(tensors, small) if is_small), default=0)
    slabs = [np.empty(room, np.uint8) for _ in range(min(3, sum(small)))]
    turns = {number: slabs[turn % 3] for turn, number in enumerate(np.flatnonzero(small).tolist())}
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Loaded] | None = None
        for number, tensor in enumerate(tensors):
            now = ahead.result() if ahead else load_tensor(prepared, tensor, hashers, turns.get(number))
            ahead = None
            if number + 1 < len(tensors) and small[number] and small[number + 1]:
                ahead = reader.submit(load_tensor, prepared, tensors[number + 1], hashers, turns[number + 1])
            yield now
            del now


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


def load_tensor(
    prepared: Prepared, tensor: TensorPlan, hashers: Executor | None = None, slab: np.ndarray | None = None
) -> Loaded:
    """Read a tensor's inputs once, rewritten to the output's vocabulary where the recipe says so.

    hashers: where their bytes are hashed meanwhile. slab: memory that the inputs may lie in, if there is room.
    """
    if tensor.rows is not None and prepared.rows is not None:
        found = _rewritten(prepared, tensor)
        content = {one: prepared.entry(one).mapped() for one in tensor.reads}
        models = np.stack([found[one] for one in tensor.inputs]) if tensor.inputs else None
        base = found[tensor.base] if tensor.base else None
    else:
        rows = _read_stack(prepared, tensor.reads, slab)
        models = rows[: len(tensor.inputs)] if tensor.inputs else None
        base = rows[-1, ...] if tensor.base else None
        content = {one: _as_stored(prepared.entry(one), rows[i, ...]) for i, one in enumerate(tensor.reads)}
    hashes: Hashes = {}
    if hashers is not None:
        hashes = {f"{one.model}/{one.tensor}": hashers.submit(_content_hash, array) for one, array in content.items()}
    return Loaded(tensor, models, base, hashes)


def _content_hash(array: np.ndarray) -> str:
    """128 bits of the tensor's bytes: names a content, and takes a tenth of the time of a hash that resists forgers."""
    return xxhash.xxh3_128_hexdigest(array.reshape(-1).view(np.uint8).data)


def _rewritten(prepared: Prepared, tensor: TensorPlan) -> dict[TensorInput, np.ndarray]:
    """The models' rows in the order of the output's vocabulary; models that lack the tensor have no rows to give."""
    assert prepared.rows is not None
    of_model = {one.model: one for one in tensor.reads}
    places = {of_model[model]: i for i, model in enumerate(prepared.recipe.inputs) if model in of_model}
    new = remap(prepared.rows.of(list(places.values())), [jnp.asarray(prepared.entry(one).mapped()) for one in places])
    return {one: np.asarray(array) for one, array in zip(places, new, strict=True)}


def _as_stored(entry: TensorEntry, array: np.ndarray) -> np.ndarray:
    """A tensor's own bytes: the array that was read, unless reading cast it."""
    return array if array.dtype == entry.dtype else entry.mapped()


def _read_stack(prepared: Prepared, inputs: Sequence[TensorInput], slab: np.ndarray | None) -> np.ndarray:
    """[N,...] read into one array, of the files' dtype where it is one that the device takes, else float32."""
    entries = [prepared.entry(one) for one in inputs]
    out = _aligned((len(entries), *entries[0].shape), common_dtype({e.dtype for e in entries}), slab)
    for number, entry in enumerate(entries):
        entry.read_into(out[number, ...])
    return out


def common_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """The one dtype, or float32 where there are several or a device does not take it."""
    return dtypes.pop() if len(dtypes) == 1 and np.dtype(np.float64) not in dtypes else np.dtype(np.float32)


def _aligned(shape: tuple[int, ...], dtype: np.dtype, slab: np.ndarray | None) -> np.ndarray:
    """An array that a CPU device can take without a copy: it begins at a multiple of 64 bytes; in the slab if it fits.

    What it holds is not defined.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    raw = slab if slab is not None and size + 64 <= slab.size else np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def merge_tensor(prepared: Prepared, loaded: Loaded, place: Place) -> Made:
    """Start the merge of one tensor on the device."""
    tensor, recipe = loaded.tensor, prepared.recipe
    base = None if loaded.base is None else place(loaded.base, 0)
    dtype = prepared.dtype(tensor).name
    if loaded.models is None:
        assert base is not None
        value, squares = _finished(base[None], base, base, dtype=dtype)
        return Made(tensor, value, squares, {}, loaded.hashes)
    models = place(loaded.models, 1)
    method = METHODS[recipe.method]
    keys = {}
    if method.random:
        keys["keys"] = tensor_keys(recipe.seed, tensor.name, [one.model_index for one in tensor.inputs])
    merged = method.function(models, base, math_dtype=recipe.math_dtype, **keys, **tensor.parameters)
    value, squares = _finished(models, base, merged.tensor, dtype=dtype)
    return Made(tensor, value, squares, merged.report, loaded.hashes)


@partial(jax.jit, static_argnames="dtype")
def _finished(models: Array, base: Array | None, merged: Array, *, dtype: str) -> tuple[Array, dict[str, Array]]:
    """The output as it is saved, and sums of squares float32: of each model [K], its task vector [K], the base, the
    output, and how far it is from the base."""
    value = merged.astype(dtype)
    out, stack = value.astype(jnp.float32), [model.astype(jnp.float32) for model in models]
    count = len(stack)
    if base is None:
        sums = _square_sums([*stack, out])
        return value, {"models": sums[:count], "output": sums[count]}
    base = base.astype(jnp.float32)
    sums = _square_sums([*stack, *(model - base for model in stack), base, out, out - base])
    squares = {"models": sums[:count], "task_vectors": sums[count : 2 * count]}
    return value, squares | dict(zip(("base", "output", "change"), sums[2 * count :], strict=True))


def _square_sums(tensors: Sequence[Array]) -> Array:
    """float32[N]: sums of squares of N tensors, in one reading of what they are made of."""
    return jnp.stack(sums_of([jnp.square(jnp.atleast_1d(x)) for x in tensors]))


def told(prepared: Prepared, made: Made) -> tuple[Record, np.ndarray]:
    """The merged tensor in host memory and its record: norms, what the method reports, parameters, hashes of inputs."""
    norms = {name: np.sqrt(np.asarray(x, np.float64)) for name, x in made.squares.items()}
    value = np.asarray(made.value)
    _check_finite(prepared, made.tensor, norms, value)
    record = {
        "name": made.tensor.name, "shape": list(made.tensor.shape), "models": [one.model for one in made.tensor.inputs],
        "parameters": dict(made.tensor.parameters), "norms": {name: x.tolist() for name, x in norms.items()},
        **{name: np.asarray(x, np.float64).round(9).tolist() for name, x in made.report.items()},
        "xxh3_128": {name: hashed.result() for name, hashed in made.hashes.items()},
    }  # fmt: skip
    return record, value


def check_inputs(prepared: Prepared, tensor: TensorPlan) -> None:
    """Raises InputError where what is read for a tensor holds NaN or infinity; names the file."""
    for one in tensor.reads:
        entry = prepared.entry(one)
        if not np.isfinite(entry.mapped().astype(np.float32)).all():
            raise InputError(
                "holds NaN or infinity", file=entry.file, field=one.tensor, cure="Restore or leave out this model"
            )


def _check_finite(prepared: Prepared, tensor: TensorPlan, norms: dict[str, np.ndarray], value: np.ndarray) -> None:
    """A sum of squares tells NaN and infinity at no cost; only then all numbers are looked at."""
    if all(np.isfinite(x).all() for x in norms.values()):
        return
    check_inputs(prepared, tensor)
    if not np.isfinite(value.astype(np.float32)).all():
        raise InputError(
            f"the merged tensor has numbers that {value.dtype} does not hold", file=prepared.recipe.file,
            field=tensor.name, cure="Lower `lambda` or the weights, or set out_dtype to bfloat16 or float32",
        )  # fmt: skip
