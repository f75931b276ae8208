"""The teacher store's formats: blocks give back what went in, 8 bits what they promise, the first format is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.data.documents import TeacherRow
from fusion_jax.errors import InputError
from fusion_jax.teachers import blocks, parts
from fusion_jax.teachers.blocks import DTYPES, LEVELS, Damaged, decode, encode, falls, rounding, spans
from fusion_jax.teachers.store import StoreIdentity, TeacherStore, identity_of, write_store

FIRST = Path(__file__).parents[1] / "golden" / "teacher_store_1"
IDENTITY = StoreIdentity("model", "tokenizer", "documents", k=3, records=5, part_size=5)


def first_row(number: int, k: int = 3) -> TeacherRow:
    """What the stored rows of `FIRST`, written by the code that knew no other format, were made of."""
    n = np.arange(number + 1)
    row = TeacherRow(
        ids=n * 7 + number, offsets=np.stack((n * 2, n * 2 + number), 1),
        topk_ids=n[:, None] * 11 + np.arange(k) * 5 + number, topk_logprobs=-(np.arange(k) + n[:, None] / 8 + 0.25),
        logsumexp=n / 4 + number, tail=n / 16, metric=np.asarray([number * 1.5, number]),
    )  # fmt: skip
    return cast(row)


def cast(row: TeacherRow) -> TeacherRow:
    return TeacherRow(*(np.ascontiguousarray(x, DTYPES[name]) for name, x in row._asdict().items()))


def anything(rng: np.random.Generator, tokens: int, k: int) -> TeacherRow:
    """A row of any numbers that the dtypes hold and a store takes: finite ones, in no order."""
    whole = lambda *shape: rng.integers(-(2**31), 2**31, shape).astype(np.int32)  # noqa: E731
    real = lambda *shape: np.nan_to_num(rng.integers(0, 2**32, shape, np.uint32).view(np.float32))  # noqa: E731
    half = np.nan_to_num(rng.integers(0, 2**16, (tokens, k), np.uint16).view(np.float16))
    return TeacherRow(whole(tokens), whole(tokens, 2), whole(tokens, k), half, real(tokens), real(tokens), real(2))


def likely(rng: np.random.Generator, tokens: int, k: int, vocabulary: int = 49152) -> TeacherRow:
    """A row as language models give them: few entries have most of the mass, some ids are frequent, texts go on."""
    scores = np.sort(rng.normal(size=(tokens, 1024)) * rng.uniform(1, 4, (tokens, 1)), -1)[:, ::-1]
    logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    ids = np.minimum(rng.zipf(1.2, (tokens, k)) + rng.integers(0, 4096, (tokens, k)), vocabulary - 1)
    ends = np.cumsum(rng.integers(1, 9, tokens))
    kept = logprobs[:, :k].astype(np.float32)
    return cast(TeacherRow(
        ids[:, 0], np.stack((np.append(0, ends[:-1]), ends), 1), ids, kept, rng.normal(20, 3, tokens),
        1 - np.exp(kept).sum(-1), np.asarray([tokens * 2.3, tokens]),
    ))  # fmt: skip


def same(ours: TeacherRow, other: TeacherRow) -> None:
    for name, a, b in zip(TeacherRow._fields, ours, other, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def back(rows: list[TeacherRow], log_probs="float16", start: int = 7) -> list[TeacherRow]:
    block = decode(encode(rows, log_probs, start), log_probs, start)
    return [block.row(i) for i in range(len(rows))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("make", [anything, likely])
def test_blocks_give_back_every_bit(seed, make):
    rng = np.random.default_rng(seed)
    k = [1, 2, 3, 10, 16, 17, 24, 64, 127, 128][seed % 10]
    rows = [make(rng, int(n), k) for n in rng.integers(1, 30, rng.integers(1, 6))]
    for ours, other in zip(back(rows), rows, strict=True):
        same(ours, other)


def test_ties_and_signed_zeros_and_the_largest_numbers_come_back_in_their_order():
    big = np.finfo(np.float16).max
    logprobs = np.asarray([[-1.0, -1.0, -1.0], [0.0, -0.0, -big], [-6e-8, -6e-8, big]], np.float16)
    ids = np.asarray([[9, 2, 5], [2**31 - 1, -(2**31), 0], [262143, 0, 262143]], np.int32)
    row = first_row(2)._replace(topk_logprobs=logprobs, topk_ids=ids)
    (ours,) = back([row])
    same(ours, row)
    assert not ours.topk_ids.flags.writeable


def test_texts_fill_blocks_and_a_long_one_has_its_own(monkeypatch):
    monkeypatch.setattr(blocks, "ENTRIES", 20)
    assert spans([], 2) == [] and spans([50], 2) == [range(0, 1)]
    assert spans([4, 6, 1, 30, 2, 2, 6, 1], 2) == [range(0, 2), range(2, 3), range(3, 4), range(4, 7), range(7, 8)]


def test_rows_are_found_in_any_order_and_blocks_read_once_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "ENTRIES", 30)
    read, decoded = [], parts.decode
    monkeypatch.setattr(parts, "decode", lambda *given: read.append(given[2]) or decoded(*given))
    rng = np.random.default_rng(0)
    rows = [anything(rng, 1 + i % 7, 3) for i in range(23)]
    identity = dataclasses.replace(IDENTITY, records=23)
    write_store(tmp_path / "store", identity, lambda wanted: [rows[i] for i in wanted])
    store = TeacherStore(tmp_path / "store", identity)
    for ours, other in zip(store, rows, strict=True):
        same(ours, other)
    assert len(read) == len(set(read)) > identity.parts and 0 in read
    for i in rng.permutation(23).tolist():
        same(store[i], rows[i])


def test_an_empty_store(tmp_path):
    identity = dataclasses.replace(IDENTITY, records=0)
    assert write_store(tmp_path / "store", identity, lambda wanted: []) == 0
    assert list(TeacherStore(tmp_path / "store", identity)) == []
    assert write_store(tmp_path / "store", identity, lambda wanted: []) == 0


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of log-probs, renormalised."""
    p, q = (x.astype(np.float64) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("k", [1, 2, 10, 24, 128])
def test_eight_bits_change_log_probs_alone_by_half_a_step_and_keep_the_mass(k):
    rng = np.random.default_rng(k)
    rows = [likely(rng, 200, k) for _ in range(3)]
    for ours, row in zip(back(rows, "8bit"), rows, strict=True):
        same(ours._replace(topk_logprobs=row.topk_logprobs), row)
        kept, given = ours.topk_logprobs, row.topk_logprobs
        masses = [np.exp(x.astype(np.float64)).sum(-1) for x in (kept, given)]
        moved = np.abs(masses[0] - masses[1])
        assert (moved <= 0.1 * (1 - masses[1]) + 1e-3).all()  # of what is outside, and what float16 knows
        assert falls(kept) and kept.dtype == np.float16
        steps = -np.diff(LEVELS.astype(np.float64))
        place = np.searchsorted(-LEVELS.astype(np.float64), -given.astype(np.float64))
        step = np.maximum(steps[np.clip(place - 1, 0, 254)], steps[np.clip(place, 0, 254)])
        lost = np.abs(kept.astype(np.float64) - given)
        assert (lost[:, 1:] <= step[:, 1:] * (0.501 + np.minimum(step[:, 1:] / 10, 0.25))).all() and (lost <= rounding(given, "8bit") + 2e-3).all()
        lost = divergence(given, kept)
        assert lost.mean() < 1e-4 and lost.max() < 3e-4


def test_eight_bits_hold_falling_log_probs_alone(tmp_path):
    identity = dataclasses.replace(IDENTITY, log_probs="8bit")
    low = first_row(4)._replace(topk_logprobs=np.asarray([[-40.0, -50.0, -60.0]] * 5, np.float16))
    (kept,) = back([low], "8bit")
    np.testing.assert_array_equal(kept.topk_logprobs, -40.0)  # below the lowest level all are the first
    for wrong in ([-2.0, -1.0, -3.0], [-1.0, -2.0, -1.5], [1.0, 0.5, -1.0]):
        row = first_row(4)._replace(topk_logprobs=np.asarray([wrong] * 5))
        with pytest.raises(InputError, match="record 5, field 'topk_logprobs': does not fall"):
            write_store(tmp_path / "store", identity, lambda wanted, row=row: [*map(first_row, range(4)), row])
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("k, log_probs, most", [(128, "float16", 450), (128, "8bit", 300), (10, "float16", 60)])
def test_bytes_a_token(tmp_path, k, log_probs, most):
    rng = np.random.default_rng(0)
    rows = [likely(rng, 1000, k) for _ in range(2 if k > 10 else 15)]
    identity = dataclasses.replace(IDENTITY, k=k, records=4 * len(rows), part_size=99, log_probs=log_probs)
    write_store(tmp_path / "store", identity, lambda wanted: [rows[i % len(rows)] for i in wanted])
    (part,) = (tmp_path / "store").glob("part-*")
    assert part.stat().st_size / (4000 * len(rows)) < most


def test_a_changed_or_moved_block_is_seen():
    block = encode([first_row(3)], "float16", 2)
    with pytest.raises(Damaged, match="its checksum differs"):
        decode(block, "float16", 3)
    for place in range(len(block)):
        changed = bytearray(block)
        changed[place] ^= 4
        with pytest.raises(Damaged, match="its checksum differs"):
            decode(bytes(changed), "float16", 2)
    for size in (0, 7, 12, len(block) - 1):
        with pytest.raises(Damaged, match="its checksum differs"):
            decode(block[:size], "float16", 2)


def test_a_store_of_the_first_format_is_read(tmp_path):
    store = TeacherStore(FIRST, IDENTITY)
    assert store.identity.format == 1 and identity_of(FIRST) == IDENTITY
    for number, row in enumerate(store):
        same(row, first_row(number))
    assert write_store(FIRST, IDENTITY, lambda wanted: []) == 1
    with pytest.raises(InputError, match=r"field 'log_probs': the store was written with another log_probs \(float16, now 8bit\)"):
        TeacherStore(FIRST, dataclasses.replace(IDENTITY, log_probs="8bit"))


def test_a_half_written_store_of_the_first_format_goes_on_in_it(tmp_path):
    """Its parts are those that the code of that format wrote, byte by byte."""
    shutil.copy(FIRST / "store.json", tmp_path)
    assert write_store(tmp_path, IDENTITY, lambda wanted: [first_row(i) for i in wanted]) == 0
    for file in FIRST.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert "format" not in json.loads((tmp_path / "store.json").read_text())


def test_formats_of_parts_do_not_mix(tmp_path):
    write_store(tmp_path / "new", IDENTITY, lambda wanted: [first_row(i) for i in wanted])
    new, name = tmp_path / "new", "part-00000.array_record"
    assert json.loads((new / "store.json").read_text())["format"] == 2 and identity_of(new).format == 2
    shutil.copytree(FIRST, tmp_path / "old")
    shutil.copy(new / name, tmp_path / "old")
    with pytest.raises(InputError, match="holds 2 records instead of 5"):
        TeacherStore(tmp_path / "old", IDENTITY)
    shutil.copy(FIRST / name, new)
    with pytest.raises(InputError, match=rf"{name}, record 3: cannot be read .*Delete the part"):
        TeacherStore(new, IDENTITY)[2]


@pytest.mark.parametrize("name, value, told", [
    ("format", 3, "field 'format': the store has format 3, this version reads 1 and 2"),
    ("format", "2", "field 'format'"), ("log_probs", "8bit", "another log_probs"), ("k", 4, "another k"),
])  # fmt: skip
def test_other_stores_are_told_by_field(tmp_path, name, value, told):
    write_store(tmp_path / "store", IDENTITY, lambda wanted: [first_row(i) for i in wanted])
    file = tmp_path / "store/store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(InputError, match=told):
        TeacherStore(tmp_path / "store", IDENTITY)


@pytest.mark.parametrize("change", [{"k": None}, {"k": True}, {"model": 3}, {"part_size": "5"}])
def test_what_a_store_says_of_itself_is_checked(tmp_path, change):
    shutil.copytree(FIRST, tmp_path / "store")
    file = tmp_path / "store/store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=f"field '{next(iter(change))}': is missing or of another type"):
        identity_of(tmp_path / "store")
    with pytest.raises(InputError, match="holds no teacher store"):
        identity_of(tmp_path)
