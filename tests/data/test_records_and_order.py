"""Records, sources of records, order of batches."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import datasets
import numpy as np
import pytest

from fusion_jax.data.asked import parse_prompts, parse_responses
from fusion_jax.data.batches import Buckets, Example, bucket_list, collate
from fusion_jax.data.loaders import ArrayRecords, load_records, load_texts, write_array_record
from fusion_jax.data.order import batch_order, num_steps, split_indices
from fusion_jax.data.records import parse_rows
from fusion_jax.data.tokenise import pack_documents
from fusion_jax.errors import InputError
from fusion_jax.jsonl import content_hash, read_jsonl, write_jsonl
from tests.small import pairs, quads


def test_every_kind_of_source_gives_the_same_records(tmp_path):
    records = pairs(9)
    write_jsonl(tmp_path / "a.jsonl", records)
    assert write_array_record(tmp_path / "a.array_record", records) == 9
    datasets.DatasetDict(train=datasets.Dataset.from_list(records)).save_to_disk(str(tmp_path / "folder"))
    for name in ("a.jsonl", "a.array_record", "folder"):
        assert load_records(str(tmp_path / name)) == records, name
    source = ArrayRecords(tmp_path / "a.array_record")
    assert source[4] == records[4] and source[-1] == records[-1] and source[2:4] == records[2:4]
    with pytest.raises(InputError, match="has no split 'validation'"):
        load_records(str(tmp_path / "folder"), split="validation")
    assert content_hash(read_jsonl(tmp_path / "a.jsonl")) == content_hash(records) != content_hash(records[1:])


def test_all_forms_of_pairs_and_sft_records():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (row,), _ = parse_rows([{"prompt": "a", "chosen": [messages[1]], "rejected": "c"}], "pair")
    assert row.messages == ({"role": "user", "content": "a"},) and row.responses == ("b", "c")
    forms = [
        {"messages": messages},
        {"prompt": "a", "response": "b"},
        {"prompt": messages[:1], "response": messages[1]},
    ]
    for form in forms:
        (row,), _ = parse_rows([form], "sft")
        assert row.messages == ({"role": "user", "content": "a"},) and row.responses == ("b",)
    quad = quads(1)[0]
    assert parse_rows([quad], "sft")[0][0].responses == (quad["chosen"][0]["content"],)
    assert parse_rows([quad], "pair")[0][0].responses == (quad["chosen"][1]["content"], quad["rejected"][0]["content"])
    without = {**quad, "chosen": [None, quad["chosen"][1]]}
    assert parse_rows([without], "quad")[0][0].responses[0] is None


@pytest.mark.parametrize("spoil", [lambda b: b[:-100], lambda b: b[:40] + bytes(60) + b[100:], lambda b: b"junk"])
def test_a_corrupt_array_record_is_named(tmp_path, spoil):
    file = tmp_path / "a.array_record"
    write_array_record(file, pairs(9))
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=r"a\.array_record: is no whole array_record file"):
        load_records(str(file))


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    for name, content in {"a.jsonl": '{"text": "a"}', "a.json": '[{"text": "a"}]', "a.txt": "a\n"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert load_texts(str(tmp_path / name)) == ["a"], name


def test_files_without_a_text_are_refused(tmp_path):
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text("\n")
        with pytest.raises(InputError, match=rf"{name}: holds no text\. Give at least one"):
            load_texts(str(tmp_path / name))
    with pytest.raises(InputError, match=r"b\.txt: there is no such file\. Check the path"):
        load_texts(str(tmp_path / "b.txt"))


def test_half_a_surrogate_pair_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "pair \\ud83d\\ude42"}\n{"text": "lone \\ud83d surrogate"}')
    problem = r"holds half of a surrogate pair at character 5.*Write the whole pair"
    with pytest.raises(InputError, match=rf"a\.jsonl, record 2, field 'text': {problem}"):
        load_texts(str(tmp_path / "a.jsonl"))
    lone = "lone \ud800"
    for bad, field in [
        ({"prompt": lone, "response": "a"}, "content"), ({"prompt": "a", "response": lone}, "response"),
        ({"conversations": [{"from": "human", "value": lone}]}, "value"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=rf"f, record 1, field '{field}': {problem}"):
            parse_rows([bad], "sft", file="f")
    with pytest.raises(InputError, match=rf"field 'content': {problem}"):
        parse_prompts([{"prompt": lone}])


def test_chats_that_hold_nothing_or_stand_in_another_field():
    for bad, told in [
        ({"messages": []}, "'messages': is empty"), ({"conversations": []}, "'conversations': is empty"),
        ({"conversations": "a"}, "'conversations': is not a list of turns"),
        ({"prompt": "a", "conversation": []}, "'response': is missing.*\"conversations\""),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=told):
            parse_rows([bad], "sft")


def test_drops_are_counted_and_skipping_is_asked_for():
    good, bad = quads(2)[0], {**quads(2)[1], "rejected": []}
    with pytest.raises(InputError, match="record 2"):
        parse_rows([good, bad], "quad")
    rows, drops = parse_rows([good, bad, {**good, "rejected": [good["chosen"][1]]}], "quad", on_bad="skip")
    assert len(rows) == 1 and sum(drops.values()) == 2 and drops["chosen equals rejected"] == 1


def test_broken_prompts_and_responses_are_counted_where_that_is_asked_for():
    skipped = Counter()
    prompts = [{"prompt": "a"}, {"prompt": 3}, {"prompt": "b", "prompt_id": "x"}, {"prompt": "c", "prompt_id": "x"}]
    assert [r["prompt"] for r in parse_prompts(prompts, skipped=skipped)] == ["a", "b"] and skipped.total() == 2
    assert any("stands for another prompt in record 3" in reason for reason in skipped)
    answer = {"prompt": "a", "source_model": "m", "response": "r"}
    responses = [answer, answer | {"reward": "high"}, answer | {"response": None}, {"prompt": "a"}]
    skipped.clear()
    assert len(parse_responses(responses, skipped=skipped)) == 1 and skipped.total() == 3
    with pytest.raises(InputError, match="holds no response"):
        parse_responses(responses[1:], skipped=skipped)
    with pytest.raises(InputError, match=r"record 2, field 'prompt_id': 'x' stands for another prompt in record 1"):
        parse_prompts(prompts[2:])


def test_order_is_a_function_of_seed_and_step():
    lengths = np.random.default_rng(0).integers(5, 500, 203)
    order = batch_order(lengths, batch_size=8, seed=1, epochs=3, bucket_window=4)
    assert len(order) == num_steps(203, 8, 3) == 75
    again = batch_order(lengths, batch_size=8, seed=1, epochs=3, bucket_window=4)
    steps = [np.asarray(order[i]) for i in range(75)]
    assert all((np.asarray(again[i]) == steps[i]).all() for i in reversed(range(75)))
    for epoch in range(3):
        seen = np.concatenate(steps[epoch * 25 : epoch * 25 + 25])
        assert len(set(seen)) == 200
    other = batch_order(lengths, batch_size=8, seed=2, epochs=3, bucket_window=4)
    assert any((np.asarray(other[i]) != steps[i]).any() for i in range(75))
    plain = batch_order(lengths, batch_size=8, seed=1, epochs=3, bucket_window=1)

    def padding(batches):
        return sum(lengths[b].max() * 8 - lengths[b].sum() for b in batches)

    assert padding(steps) < 0.5 * padding([np.asarray(plain[i]) for i in range(75)])


def test_splits_are_disjoint():
    first, second = split_indices(59876, 1 / 3, 42)
    assert len(first) == 19959 and len(second) == 39917 and not set(first) & set(second)
    assert num_steps(39917, 128, 1) == 311  # the published run's count
    with pytest.raises(InputError, match="do not fill one batch"):
        num_steps(7, 8, 1)
    with pytest.raises(InputError, match=r"0 examples are left to train on\. Give data of which"):
        num_steps(0, 8, 1)
    for order in (lambda: split_indices(9, 0.5, -1), lambda: batch_order([3] * 9, batch_size=2, seed=-1, epochs=1)):
        with pytest.raises(InputError, match="field 'seed': -1 is out of range"):
            order()


def test_packing_scores_everything_and_can_reset():
    blocks, segments = pack_documents([[1, 5, 6, 2], [1, 7, 2]], block=5, bos_id=1, eos_id=2)
    assert blocks == [[1, 1, 5, 6, 2], [2, 1, 1, 7, 2]]  # two BOS, two EOS a document; the last partial block is gone
    assert segments == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 2]]
    batch = collate([Example((tuple(blocks[1]),), (1,), segments=tuple(segments[1]))], Buckets([0, 8], [8]))
    np.testing.assert_array_equal(batch.positions[0, 0, :4], [0, 0, 1, 2])
    np.testing.assert_array_equal(batch.segment_ids[0, 0], [1, 2, 2, 2, 0, 0, 0, 0])
    assert batch.scored[0, 0].sum() == 4 and batch.prompts.shape == (1, 0)


def test_buckets_grow_and_hold():
    sizes = bucket_list(3000)
    assert sizes[-1] >= 3000 and sizes == sorted(set(sizes)) and len(sizes) < 60
    assert all(b <= a * 1.25 for a, b in pairwise(sizes[3:]))
