"""Teacher stores in the present format, to the bit and in 8 bits, beside the first one: bytes and tokens a second.

    python experiments/benchmarks/teacher_store.py --model SMOLLM2.gguf --texts README.md LICENSE docs/fusion.md

A model reads the texts; the same rows are written `copies` times in each way, each copy a part of its own, and read
back in turn, in one process, row by row in order. Bytes are those of the files but for the zeros that fill up each part
(some 100 KB). Seconds are the processor's. Kept to the bit means equal arrays; for 8 bits the table has the KL
divergence of the k entries, renormalised, from what was kept of them, its mean and its largest, and by how much the KL
divergence of another model from them changes on the mean, with its standard error: the same model, blind beyond 32
tokens. Figures: docs/stores.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.documents import TeacherRow, TeacherText, encode_documents
from fusion_jax.data.windows import window_documents
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model, load, logits
from fusion_jax.options import Files, ModelPath
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.teachers.parts import CACHED
from fusion_jax.teachers.reading import teacher_rows
from fusion_jax.teachers.store import StoreIdentity, TeacherStore, write_store
from fusion_jax.zoo import model_path

WAYS: dict[str, dict[str, object]] = {"format 1": {"format": 1}, "float16": {}, "8bit": {"log_probs": "8bit"}}
BLIND = 32  # tokens that the other model sees


@dataclass(frozen=True)
class Settings:
    """model: the teacher. texts: files, each a text. tokens: read of them at most. copies: of the rows, a part each."""

    model: ModelPath = "zoo:gemma-source"
    texts: Files = ("README.md", "LICENSE", "docs/fusion.md", "docs/plan.md", "docs/runs.md")
    k: tuple[int, ...] = (10, 128)
    max_length: int = 512
    tokens: int = 12_000
    copies: int = 6
    repeats: int = 5

    def __post_init__(self) -> None:
        bounded(self, "tokens", "repeats", least=1)
        bounded(self, "copies", least=CACHED + 1)  # blocks that are kept shall not be those that are read next


def read(s: Settings, model: Model) -> tuple[list[TeacherText], list[TeacherRow]]:
    """Windows of the texts and the rows of the largest k."""
    whole = [Path(file).read_text(encoding="utf-8") for file in s.texts]
    limit = min(s.max_length, model.config.max_positions)
    documents, _ = window_documents(whole, [model.tokenizer], limit - 1)
    texts = encode_documents(model.tokenizer, documents, max_length=limit)
    kept = np.cumsum([len(text.ids) for text in texts]) <= s.tokens
    texts = [text for text, keep in zip(texts, kept, strict=True) if keep]
    if not texts:
        raise InputError("hold no window that short", field="tokens", cure="Raise it")
    return texts, teacher_rows(model, texts, max(s.k), Compute(), batch_size=4)(range(len(texts)))


def cut(row: TeacherRow, k: int) -> TeacherRow:
    """The row with the first k entries alone."""
    kept = row.topk_logprobs[:, :k]
    tail = row.tail if k == row.topk_ids.shape[1] else 1 - np.exp(kept.astype(np.float32)).sum(-1)
    return row._replace(
        topk_ids=np.ascontiguousarray(row.topk_ids[:, :k]), topk_logprobs=np.ascontiguousarray(kept), tail=tail
    )


def timed(store: TeacherStore) -> float:
    """Seconds of the processor to read every row of a store whose parts are open."""
    for first in range(0, len(store), store.identity.part_size):
        store[first]
    start = time.process_time()
    for row in store:
        row.topk_ids  # noqa: B018
    return time.process_time() - start


def filled(part: Path) -> int:
    """Bytes of a part without the runs of zeros that fill it up."""
    return sum(map(len, part.read_bytes().split(bytes(64))))


def compared(rows: Sequence[TeacherRow], s: Settings, k: int, folder: Path, kl: Callable[..., str]) -> str:
    """A table of all ways of keeping these rows."""
    stores, sizes, tokens = {}, {}, s.copies * sum(len(row.ids) for row in rows)
    for name, how in WAYS.items():
        identity = replace(StoreIdentity("", "", "", k, s.copies * len(rows), len(rows)), **how)  # type: ignore[arg-type]
        place = folder / f"{k} {name}"
        write_store(place, identity, lambda wanted: [rows[i % len(rows)] for i in wanted])
        stores[name] = TeacherStore(place, identity)
        sizes[name] = sum(map(filled, place.glob("part-*")))
        if name != "8bit":
            for i, row in enumerate(stores[name]):
                assert all(a.tobytes() == b.tobytes() for a, b in zip(row, rows[i % len(rows)], strict=True)), name
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(s.repeats):
        for name, store in stores.items():
            seconds[name].append(timed(store))
    rate = {name: tokens / statistics.median(all_) for name, all_ in seconds.items()}
    first = next(iter(WAYS))
    return markdown_table([{
        "k": k, "kept as": name, "bytes a token": f"{sizes[name] / tokens:.1f}",
        "of format 1": f"{sizes[name] / sizes[first]:.2f}", "million tokens/s": f"{rate[name] / 1e6:.2f}",
        "times format 1": f"{rate[name] / rate[first]:.2f}", "KL: mean, largest, change": kl(stores[name], rows),
    } for name in WAYS])  # fmt: skip


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of log-probs [n,k], renormalised, in nats."""
    p, q = (x.astype(np.float64) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


def blind(model: Model, row: TeacherRow) -> np.ndarray:
    """float32[n,k], the log-probs of a row's entries under the model that sees `BLIND` tokens at most; whole ones."""
    whole = len(row.ids) // BLIND * BLIND
    if not whole:
        return np.zeros((0, row.topk_ids.shape[1]), np.float32)
    seen = jnp.asarray(row.ids[:whole].reshape(-1, BLIND))
    found = np.asarray(jax.nn.log_softmax(logits(model, seen).astype(np.float32)))
    return np.take_along_axis(found.reshape(whole, -1), row.topk_ids[:whole], -1)


def main(s: Settings) -> None:
    model = load(model_path(s.model))
    _, rows = read(s, model)
    other = [blind(model, row) for row in rows]

    def kl(store: TeacherStore, rows: Sequence[TeacherRow]) -> str:
        kept = [store[i].topk_logprobs for i in range(len(rows))]
        lost = np.concatenate([divergence(row.topk_logprobs, x) for row, x in zip(rows, kept, strict=True)])
        k, before, after = store.identity.k, [], []
        for row, x, q in zip(rows, kept, other, strict=True):
            before.append(divergence(row.topk_logprobs[: len(q)], q[:, :k]))
            after.append(divergence(x[: len(q)], q[:, :k]))
        change = np.concatenate(after) - np.concatenate(before)
        mean = f"{change.mean():+.1e} ± {change.std() / len(change) ** 0.5:.0e} of {np.concatenate(before).mean():.3f}"
        return f"{lost.mean():.1e}, {lost.max():.1e}, {mean}"

    print(f"{len(rows)} texts, {sum(len(row.ids) for row in rows)} tokens, {model.config.vocab_size} ids")
    with tempfile.TemporaryDirectory() as folder:
        for k in s.k:
            print(compared([cut(row, k) for row in rows], s, k, Path(folder), kl))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
