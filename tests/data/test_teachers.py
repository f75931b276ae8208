"""The teacher store: what goes in comes out, a cut store goes on, and nothing is read as something else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fusion_jax.data.documents import TeacherRow, TeacherText, documents_fingerprint, text_documents
from fusion_jax.data.loaders import write_array_record
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import Host, HostSettings
from fusion_jax.teachers.store import StoreIdentity, TeacherStore, write_store

TEXTS = [f"text {i}" for i in range(7)]
IDENTITY = StoreIdentity("m" * 64, "t" * 64, documents_fingerprint(text_documents(TEXTS)), k=3, records=7, part_size=3)


def row(number: int) -> TeacherRow:
    rng, tokens = np.random.default_rng(number), number + 1
    return TeacherRow(
        ids=rng.integers(0, 50, tokens).astype(np.int32), offsets=rng.integers(0, 9, (tokens, 2)).astype(np.int32),
        topk_ids=rng.integers(0, 50, (tokens, 3)).astype(np.int32),
        topk_logprobs=-np.sort(rng.random((tokens, 3))).astype(np.float16), logsumexp=rng.random(tokens, np.float32),
        tail=rng.random(tokens, np.float32), metric=rng.random(2, np.float32),
    )  # fmt: skip


def write(folder, asked=None, identity=IDENTITY, make=row, host=Host(), **options):
    def rows_of(wanted):
        if asked is not None:
            asked.append((wanted.start, wanted.stop))
        return [make(i) for i in wanted]

    return write_store(folder, identity, rows_of, host=host, settings=HostSettings(patience=0.05), **options)


def test_rows_survive_the_trip(tmp_path):
    write(tmp_path / "store")
    store = TeacherStore(tmp_path / "store", IDENTITY)
    assert len(store) == 7 == len(list(store)) and len(store[2:5]) == 3
    for number in range(7):
        for a, b in zip(store[number], row(number), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(store[-1].ids, row(6).ids)
    with pytest.raises(IndexError):
        store[7]


def test_a_cut_store_goes_on_at_its_missing_parts(tmp_path):
    def breaks(number):
        if number == 4:
            raise KeyboardInterrupt
        return row(number)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", make=breaks)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["part-00000.array_record", "store.json"]
    with pytest.raises(InputError, match=r"part-00001.*is missing.*it goes on"):
        TeacherStore(tmp_path / "store", IDENTITY)
    asked: list[tuple[int, int]] = []
    assert write(tmp_path / "store", asked) == 1
    assert asked == [(3, 6), (6, 7)]
    np.testing.assert_array_equal(TeacherStore(tmp_path / "store", IDENTITY)[5].ids, row(5).ids)


def test_hosts_share_out_the_parts_and_another_number_of_hosts_completes_them(tmp_path):
    folder, asked = tmp_path / "store", []
    with pytest.raises(InputError, match=r"part-00001.*nothing came from host 1, 2, 3 for 0\.05 s"):
        write(folder, asked, dataclasses.replace(IDENTITY, part_size=1), host=Host(0, 4))
    assert asked == [(0, 1), (4, 5)]
    del asked[:]
    for host in (Host(1, 3), Host(2, 3), Host(0, 3)):
        try:
            write(folder, asked, dataclasses.replace(IDENTITY, part_size=1), host=host)
        except InputError as error:
            assert "nothing came from host" in str(error) and host != Host(0, 3)
    assert asked == [(1, 2), (2, 3), (5, 6), (3, 4), (6, 7)]
    TeacherStore(folder, dataclasses.replace(IDENTITY, part_size=1))


def test_hosts_that_compute_together_are_asked_for_all_and_the_first_writes(tmp_path):
    asked: list[tuple[int, int]] = []
    write(tmp_path / "store", asked, host=Host(0, 2), together=True)
    (tmp_path / "store/part-00001.array_record").unlink()
    with pytest.raises(InputError, match=r"part-00001.*nothing came from host 0"):
        write(tmp_path / "store", asked, host=Host(1, 2), together=True)
    assert asked == [(0, 3), (3, 6), (6, 7), (3, 6)]
    with pytest.raises(InputError, match="field 'k': the store was written with another k"):
        write(tmp_path / "store", identity=dataclasses.replace(IDENTITY, k=4), host=Host(1, 2))


@pytest.mark.parametrize("field, value", [("model", "x"), ("tokenizer", "x"), ("documents", "x"), ("k", 4)])
def test_a_store_of_something_else_is_refused(tmp_path, field, value):
    write(tmp_path / "store")
    other = dataclasses.replace(IDENTITY, **{field: value})
    for use in (lambda: TeacherStore(tmp_path / "store", other), lambda: write(tmp_path / "store", identity=other)):
        with pytest.raises(InputError, match=f"field '{field}': the store was written with (an)?other {field}"):
            use()


def test_broken_stores_and_rows(tmp_path):
    with pytest.raises(InputError, match="holds no teacher store"):
        TeacherStore(tmp_path, IDENTITY)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="holds files but no teacher store"):
        write(tmp_path)
    nan = lambda number: row(number)._replace(metric=np.asarray([np.nan, 1], np.float32))  # noqa: E731
    with pytest.raises(InputError, match="record 1, field 'metric': is not finite"):
        write(tmp_path / "nan", make=nan)
    wide = lambda number: row(number)._replace(topk_ids=np.zeros((1, 9), np.int32))  # noqa: E731
    with pytest.raises(InputError, match="record 1, field 'topk_ids': has shape"):
        write(tmp_path / "wide", make=wide)
    write(tmp_path / "cut")
    part = tmp_path / "cut" / "part-00001.array_record"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(InputError, match="cut"):
        TeacherStore(tmp_path / "cut", IDENTITY)[4]
    write(tmp_path / "json")
    (tmp_path / "json/store.json").write_text("{")
    with pytest.raises(InputError, match=r"store\.json: is not JSON"):
        TeacherStore(tmp_path / "json", IDENTITY)


def test_rows_of_other_texts_and_records_that_cannot_be_read_name_part_and_record(tmp_path):
    """Parts that changed places, entries of another k and damage are found, with the texts at hand or without."""
    folder, texts = tmp_path / "store", [TeacherText(r.ids, r.offsets, r.ids > 0) for r in map(row, range(7))]
    write(folder)
    assert [len(r.ids) for r in TeacherStore(folder, IDENTITY, texts)] == [1, 2, 3, 4, 5, 6, 7]
    first, second = (folder / f"part-0000{i}.array_record" for i in (0, 1))
    second.write_bytes(first.read_bytes())
    for known in (None, texts):
        with pytest.raises(InputError, match=r"part-00001\.array_record, record 2: is of another text.*Delete the part"):
            TeacherStore(folder, IDENTITY, known)[-3]
    wide = lambda n: row(n)._replace(topk_ids=np.zeros((n + 1, 4)), topk_logprobs=np.zeros((n + 1, 4)))  # noqa: E731
    write(tmp_path / "wide", identity=dataclasses.replace(IDENTITY, k=4), make=wide)
    second.write_bytes((tmp_path / "wide" / second.name).read_bytes())
    with pytest.raises(InputError, match=r"part-00001\.array_record, record 1: is of another text or store"):
        TeacherStore(folder, IDENTITY, texts)[3]
    second.unlink()
    write_array_record(second, [{}] * 3)
    with pytest.raises(InputError, match=r"part-00001\.array_record, record 3: cannot be read"):
        TeacherStore(folder, IDENTITY)[5]


def test_fingerprints_of_documents_see_order_and_boundaries():
    prints = {documents_fingerprint(text_documents(t)) for t in (["ab", "c"], ["a", "bc"], ["bc", "a"], ["é"])}
    assert len(prints) == 4
