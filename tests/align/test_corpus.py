"""A corpus aligned in parts: any number of processes, any interruption, the same bytes; strangers are refused."""

from __future__ import annotations

import functools
import os
import pickle
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.align.corpus import PairRecord, align_corpus, align_rows, whole_text
from fusion_jax.align.distributions import RowRule, Rules, TopRows, align_distributions
from fusion_jax.align.sequences import align, byte_offsets
from fusion_jax.align.views import TokenizerView, view_of
from fusion_jax.align.vocabulary import count_pairs, mined_map
from fusion_jax.data.documents import TeacherRow
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path

K, PART = 5, 3


@functools.cache
def views() -> tuple[TokenizerView, TokenizerView]:
    pivot, source = (view_of(load_tokenizer(model_path(f"zoo:{name}"))) for name in ("target", "qwen-source"))
    return pivot, source


def teacher(ids: np.ndarray, offsets: np.ndarray, seed: int) -> TeacherRow:
    rng, n = np.random.default_rng(seed), len(ids)
    return TeacherRow(
        ids=ids, offsets=offsets, topk_ids=rng.permuted(np.tile(np.arange(200, dtype=np.int32), (n, 1)), axis=1)[:, :K],
        topk_logprobs=-np.sort(rng.exponential(2, (n, K)), 1).astype(np.float16),
        logsumexp=rng.normal(20, 3, n).astype(np.float32), tail=np.zeros(n, np.float32), metric=np.zeros(2, np.float32),
    )  # fmt: skip


def tokens(name: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    found = load_tokenizer(model_path(f"zoo:{name}"))(text, return_offsets_mapping=True)
    return np.asarray(found["input_ids"], np.int32), np.asarray(found["offset_mapping"], np.int32).reshape(-1, 2)


@functools.cache
def records() -> list[PairRecord]:
    """Eight texts, in three parts; the last two are only aligned in places."""
    rng, out = random.Random(0), []
    for number in range(8):
        text = " ".join(rng.choices(["Add", "12", "and", "30.", "naïve", "中文", "\n\n", "say:", "done!"], k=20))
        (ids, offsets), theirs = tokens("target", text), tokens("qwen-source", text)
        out.append(whole_text(ids, offsets, teacher(*theirs, number)))
    places = np.asarray([(2, 9, 1, 8), (12, 20, 10, 21)])
    for number in (6, 7):
        out[number] = out[number]._replace(segments=places, anchors=np.asarray([(1, 0), (22, 21)]))
    return out


def rules(**options) -> Rules:
    pivot, source = views()
    rows = [(r.pivot_ids, r.source.ids, align(r.pivot_ids, r.source.ids, pivot, source, "chat_v1")) for r in records()]
    return Rules(pivot, source, mined_map(pivot, source), counts=count_pairs(rows, pivot, source), **options)


def both(folder: Path, workers: int = 0, variant="chat_v2", how: Rules | None = None):
    alignments = align_corpus(folder / "ranges", records(), *views(), variant=variant, workers=workers, part_size=PART)
    rows = align_rows(folder / "rows", records(), alignments, how or rules(), workers=workers, part_size=PART)
    return alignments, rows


def content(folder: Path) -> dict[str, bytes]:
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(folder.glob("r*/*"))}


def same(a, b) -> None:
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("variant", ["fusellm", "chat_v1", "chat_v2"])
def test_each_record_is_what_it_is_alone(tmp_path, variant):
    how = rules(variant=variant, duplicates="logsumexp")
    alignments, rows = both(tmp_path, variant=variant, how=how)
    assert len(alignments) == len(rows) == 8 and len(list(rows)) == 8 and len(rows[2:5]) == 3
    for number, record in enumerate(records()[:6]):
        expected = align(record.pivot_ids, record.source.ids, *views(), variant)
        same(alignments[number], expected)
        source = record.source
        top = TopRows(
            source.topk_ids, source.topk_logprobs.astype(np.float32) + (variant == "chat_v1") * source.logsumexp[:, None],
            np.full(len(source.ids), K),
        )  # fmt: skip
        same(rows[number], align_distributions(top, expected, record.pivot_ids, source.ids, how))
    same(rows[-1], pickle.loads(pickle.dumps(rows))[7])
    with pytest.raises(IndexError):
        alignments[8]


def test_blends_of_different_widths_share_a_part(tmp_path):
    pivot = TokenizerView(("ab", *"cdefg"), ("ab", *"cdefg"), "\u2581")
    source = TokenizerView(tuple("abcdefg"), tuple("abcdefg"), "\u2581")
    spans = np.asarray([(0, 1), (1, 2), (2, 3)], np.int32)
    row = teacher(np.asarray([0, 1, 2], np.int32), spans, 0)
    row = row._replace(topk_ids=np.asarray([(2, 3), (4, 5), (6, 2)], np.int32), topk_logprobs=row.topk_logprobs[:, :2])
    blended = whole_text(np.asarray([0, 1], np.int32), spans[:2], row)
    plain = PairRecord(np.asarray([1], np.int32), spans[:1], row, np.asarray([(0, 1, 2, 3)]))
    corpus = [plain, blended, plain]
    alignments = align_corpus(tmp_path / "a", corpus, pivot, source, variant="chat_v1")
    counts = count_pairs([(r.pivot_ids, r.source.ids, a) for r, a in zip(corpus, alignments)], pivot, source)
    how = Rules(pivot, source, mined_map(pivot, source), "chat_v1", counts=counts)
    rows = align_rows(tmp_path / "r", corpus, alignments, how)
    assert [r.ids.shape for r in rows] == [(1, 2), (2, 4), (1, 2)]
    np.testing.assert_array_equal(rows[1].ids, [(1, 2, 3, 4), (5, 1, 0, 0)])
    np.testing.assert_array_equal(rows[1].counts, [4, 2])
    same(rows[0], rows[2])


def test_segments_and_anchors(tmp_path):
    alignments, rows = both(tmp_path)
    record, (first, last, cost), found = records()[7], alignments[7], rows[7]
    parts = [
        align(record.pivot_ids[a:b], record.source.ids[c:d], *views(), "chat_v2") for a, b, c, d in record.segments
    ]
    expected = np.full(len(record.pivot_ids), -1)
    expected[2:9], expected[12:20], expected[1], expected[22] = parts[0].first + 1, parts[1].first + 10, 0, 21
    np.testing.assert_array_equal(first, expected)
    assert cost == parts[0].cost + parts[1].cost and (last[[1, 22]] == [0, 21]).all()
    assert (found.rule[[1, 22]] == RowRule.ONE_TO_ONE).all()
    outside = [j for j in range(len(expected)) if expected[j] < 0]
    assert outside and (found.rule[outside] == RowRule.FALLBACK).all()
    labels = np.append(record.pivot_ids[1:], record.pivot_ids[-1])
    np.testing.assert_array_equal(found.ids[outside, 0], labels[outside])


def test_byte_offsets_of_different_texts_count_from_the_content(tmp_path):
    answer = "naïve 中文 and 30."
    ours, theirs = tokens("target", "say: " + answer), tokens("qwen-source", "Add 12 and " + answer)
    starts = [int(np.searchsorted(offsets[:, 1], begin, "right")) for (_, offsets), begin in ((ours, 5), (theirs, 11))]
    segment = [starts[0], len(ours[0]), starts[1], len(theirs[0]), 5, 11]
    apart = PairRecord(*ours, teacher(*theirs, 0), np.asarray([segment]))
    together = records()[0]
    found = align_corpus(tmp_path / "a", [apart, together], *views(), variant="byte_offsets")
    same(found[1], byte_offsets(together.pivot_offsets, together.source.offsets))
    first, last, _ = found[0]
    assert (first[: starts[0]] == -1).all() and (first[starts[0] :] >= 0).all() and last[-1] == len(theirs[0]) - 1
    for j in np.flatnonzero((first == last) & (first >= 0)):
        if np.sum(first == first[j]) == 1:
            assert ours[1][j, 1] - 5 == theirs[1][first[j], 1] - 11
    with pytest.raises(InputError, match=r"record 1, field 'pivot_offsets': there are 2 for"):
        align_corpus(tmp_path / "b", [apart._replace(pivot_offsets=ours[1][:2])], *views(), variant="byte_offsets")


def test_processes_change_nothing(tmp_path):
    both(tmp_path / "alone")
    seen: list[int] = []
    alignments = align_corpus(
        tmp_path / "two/ranges", records(), *views(), workers=2, part_size=PART, progress=seen.append
    )
    align_rows(tmp_path / "two/rows", records(), alignments, rules(), workers=2, part_size=PART)
    assert seen == [0, 3, 6, 8]
    assert content(tmp_path / "two") == content(tmp_path / "alone") and len(content(tmp_path / "two")) == 8


def test_what_is_missing_is_made_and_nothing_else(tmp_path):
    both(tmp_path)
    before = content(tmp_path)
    (tmp_path / "ranges/part-00001.safetensors").unlink()
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("r*/*")}
    seen: list[int] = []
    align_corpus(tmp_path / "ranges", records(), *views(), part_size=PART, progress=seen.append)
    assert seen == [5, 8] and content(tmp_path) == before
    assert times == {p: p.stat().st_mtime_ns for p in times}


def killed(folder: str) -> None:
    """Run in a process of its own: it ends by SIGKILL after the first part."""

    def progress(done: int) -> None:
        if done:
            os.kill(os.getpid(), signal.SIGKILL)

    align_corpus(folder, records(), *views(), workers=1, part_size=PART, progress=progress)


def test_a_killed_run_goes_on_and_leaves_no_process(tmp_path):
    # The kill may also hit a part that is being written: what was begun then lies hidden beside the parts.
    begun = tmp_path / "cut/ranges/.identity.json.1.tmp"
    begun.parent.mkdir(parents=True)
    begun.write_text("{")
    call = f"import tests.align.test_corpus as t; t.killed({str(begun.parent)!r})"
    root = Path(__file__).parents[2]
    run = subprocess.Popen([sys.executable, "-c", call], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # The workers hold these pipes too: they close when the last one is gone.
    run.communicate(timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert (begun.parent / "part-00000.safetensors").exists()
    for leftover in begun.parent.glob(".*"):
        leftover.unlink()
    both(tmp_path / "cut")
    both(tmp_path / "whole")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_an_interrupt_leaves_finished_parts(tmp_path):
    def progress(done: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align_corpus(tmp_path, records(), *views(), part_size=PART, progress=progress)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "identity.json", "part-00000.safetensors", "part-00001.safetensors",
    ]  # fmt: skip


def test_something_else_is_refused(tmp_path):
    alignments, _ = both(tmp_path)
    pivot, source = views()
    ranges, rows = tmp_path / "ranges", tmp_path / "rows"
    other = [*records()[:7], records()[7]._replace(anchors=())]
    for field, make in {
        "inputs": lambda: align_corpus(ranges, other, pivot, source, part_size=PART),
        "records": lambda: align_corpus(ranges, records()[:7], pivot, source, part_size=PART),
        "part_size": lambda: align_corpus(ranges, records(), pivot, source),
        "variant": lambda: align_corpus(ranges, records(), pivot, source, part_size=PART, variant="fusellm"),
        "pivot": lambda: align_corpus(ranges, records(), replace(pivot, pad=3), source, part_size=PART),
        "source": lambda: align_corpus(ranges, records(), pivot, replace(source, pad=3), part_size=PART),
        "fallback": lambda: align_rows(rows, records(), alignments, rules(fallback="input"), part_size=PART),
        "counts": lambda: align_rows(rows, records(), alignments, replace(rules(), counts=None), part_size=PART),
        "stage": lambda: align_rows(ranges, records(), alignments, rules(), part_size=PART),
    }.items():
        with pytest.raises(InputError, match=r"identity\.json.*was made with another") as told:
            make()
        assert field in ("records", "stage") or told.value.field == field
    changed = list(alignments)
    changed[0] = changed[0]._replace(first=np.zeros_like(changed[0].first))
    with pytest.raises(InputError, match="field 'inputs'"):
        align_rows(rows, records(), changed, rules(), part_size=PART)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("")
    with pytest.raises(InputError, match=r"mine: holds other files.*new folder"):
        align_corpus(tmp_path / "mine", records(), pivot, source)


@pytest.mark.parametrize("size", [0, 4, 200, -40])
def test_a_part_that_is_cut_short_is_refused(tmp_path, size):
    alignments, rows = both(tmp_path)
    for part, read in (
        (tmp_path / "ranges/part-00001.safetensors", alignments),
        (tmp_path / "rows/part-00001.safetensors", rows),
    ):
        part.write_bytes(part.read_bytes()[:size])
        with pytest.raises(
            InputError, match=r"part-00001\.safetensors: cannot be read.*Delete this part and run again"
        ):
            read[4]
    with pytest.raises(InputError, match=r"ranges/part-00001\.safetensors: cannot be read.*Delete this part"):
        both(tmp_path)
    part = tmp_path / "ranges/part-00001.safetensors"
    part.write_bytes((tmp_path / "ranges/part-00002.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"part-00001\.safetensors: holds 2 records instead of 3"):
        both(tmp_path)


EMPTY = np.zeros(0, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r._replace(pivot_ids=EMPTY), r"field 'pivot_ids': there is no token\. Leave out"),
        (lambda r: r._replace(source=r.source._replace(ids=EMPTY)), "field 'source_ids': there is no token"),
        (lambda r: r._replace(segments=[(0, 5, 2, 2)]), "field 'segments': one has no source token"),
        (lambda r: r._replace(segments=[(0, 5, 0, 5), (4, 6, 5, 6)]), "field 'segments': they overlap"),
        (lambda r: r._replace(segments=[(0, 5, 0, 5000)]), "field 'segments': .* source tokens"),
        (lambda r: r._replace(segments=[(-1, 5, 0, 5)]), "field 'segments': .* pivot tokens"),
        (lambda r: r._replace(segments=[(0, 5)]), r"field 'segments': must be integers \[n, 4\] or \[n, 6\]"),
        (lambda r: r._replace(anchors=[(0, 5000)]), "field 'anchors': one is outside"),
        (lambda r: r._replace(anchors=[(0, 1), (0, 2)]), "field 'anchors': a pivot token has two"),
        (lambda r: r._replace(anchors=[(0.5, 1.0)]), "field 'anchors': must be integers"),
        (lambda r: r._replace(pivot_ids=r.pivot_ids + 5000), "field 'pivot_ids': token id"),
        (
            lambda r: r._replace(pivot_ids=r.pivot_ids.astype(np.int64) + 2**32),
            "field 'pivot_ids': holds a number beyond int32",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, message):
    bad = list(records())
    bad[4] = change(bad[4])
    with pytest.raises(InputError, match=f"^record 5, {message}"):
        align_corpus(tmp_path, bad, *views(), part_size=PART)
    assert not (tmp_path / "part-00001.safetensors").exists() and not list(tmp_path.glob(".*"))


def test_a_worker_names_the_same_record(tmp_path):
    bad = list(records())
    for number in (4, 7):
        bad[number] = bad[number]._replace(segments=np.asarray([(0, 5, 2, 2)]))
    told = []
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"record 5, field 'segments'") as error:
            align_corpus(tmp_path / str(workers), bad, *views(), workers=workers, part_size=PART)
        told.append((str(error.value), vars(error.value)))
        found = {p.name for p in (tmp_path / str(workers)).iterdir()}
        assert found == {"identity.json", "part-00000.safetensors"}
    assert told[0] == told[1]


def test_bad_rows_and_options(tmp_path):
    alignments = align_corpus(tmp_path / "a", records(), *views())
    bad = list(records())
    rising = bad[2].source._replace(topk_logprobs=bad[2].source.topk_logprobs[:, ::-1])
    bad[2] = bad[2]._replace(source=rising)
    with pytest.raises(InputError, match=r"record 3, field 'logits': a row does not descend"):
        align_rows(tmp_path / "b", bad, alignments, rules())
    bad[2] = bad[2]._replace(source=rising._replace(logsumexp=np.zeros(1, np.float32)))
    with pytest.raises(InputError, match=r"record 3, field 'source': the shapes"):
        align_rows(tmp_path / "c", bad, alignments, rules())
    with pytest.raises(InputError, match="field 'alignments': there are 7 for 8 records"):
        align_rows(tmp_path / "d", records(), alignments[:7], rules())
    with pytest.raises(InputError, match="Known: fusellm, chat_v1, chat_v2, byte_offsets"):
        align_corpus(tmp_path / "e", records(), *views(), variant="v3")  # type: ignore[arg-type]
    for wrong in ({"workers": -1}, {"part_size": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            align_corpus(tmp_path / "e", records(), *views(), **wrong)
    assert len(align_corpus(tmp_path / "f", [], *views())) == 0


def test_anchors_of_aligned_distributions():
    record, (pivot, source) = records()[0], views()
    n, how = len(record.source.ids), rules()
    top = TopRows(record.source.topk_ids, record.source.topk_logprobs.astype(np.float32), np.full(n, K))
    first = np.zeros(len(record.pivot_ids), np.int32)
    last = first.copy()
    first[0] = last[0] = -1
    last[3] = 1
    use = functools.partial(
        align_distributions, top, align([0], [0], pivot, source, "chat_v2")._replace(first=first, last=last),
        record.pivot_ids, record.source.ids, how,
    )  # fmt: skip
    plain, anchored = use(), use(anchors=[5, 2])
    assert (anchored.rule[[2, 5]] == RowRule.ONE_TO_ONE).all() and plain.rule[5] == RowRule.FALLBACK
    others = [j for j in range(len(first)) if j not in (2, 5)]
    for a, b in zip(plain, anchored, strict=True):
        np.testing.assert_array_equal(a[others], b[others])
    np.testing.assert_array_equal(anchored.ids[2], anchored.ids[5])
    for wrong, message in (
        ([0], "has not one"),
        ([3], "token 3 has not one"),
        ([-1], "not among"),
        ([0.5], "integers"),
    ):
        with pytest.raises(InputError, match=f"anchors.*{message}"):
            use(anchors=wrong)


def test_an_error_survives_the_way_to_another_process():
    error = InputError("is wrong", file="a/b", record=3, field="x", cure="Mend it")
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == str(error) and vars(found) == vars(error) and type(found) is InputError
