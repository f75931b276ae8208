"""The scorers of corrections against values of the official programs, and what holds in each mode."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import random
import time
from pathlib import Path

import pytest

from fusion_jax.errors import InputError
from fusion_jax.evals import cgec
from fusion_jax.evals.cgec import (
    NA,
    NOOP,
    Annotated,
    Counts,
    Dictionaries,
    Edit,
    characters,
    edits,
    f_beta,
    load_dictionaries,
    score,
    score_annotated,
    score_m2,
    segment,
)
from fusion_jax.evals.cgec.cherrant import all_edits
from fusion_jax.evals.cgec.report import compare

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/alirector.json").read_text(encoding="utf-8"))
MODULES = [importlib.import_module(f"{cgec.__name__}.{found.name}") for found in pkgutil.iter_modules(cgec.__path__)]
EXAMPLES = {
    t.name: t for module in MODULES for t in doctest.DocTestFinder(exclude_empty=True).find(module) if t.examples
}
OFFICIAL = Dictionaries(
    {"地": ("A", "a", "01"), "得": ("A", "a", "02")},
    {"地": frozenset({"de", "di"}), "得": frozenset({"de", "dei"}), "则": frozenset({"ze"}), "学": frozenset({"xue"})},
)  # enough of them for the official ties


def as_lists(found: tuple[Edit, ...]) -> list[list[object]]:
    return [[*edit, 0] for edit in found]


@pytest.mark.parametrize("case", GOLDEN["cherrant_edits"], ids=lambda c: c["name"])
def test_edits_are_the_official_ones_in_every_mode(case):
    [target] = case["targets"]
    found = [edits(case["source"], target), edits(case["source"], target, "first_path")]
    found.append(edits(case["source"], target, "official_all", OFFICIAL))
    assert [as_lists(one) for one in found] == 3 * [case["edits"]]


@pytest.mark.parametrize("case", GOLDEN["cherrant_tied_alignments"], ids=lambda c: c["source"])
def test_ties_are_pooled_or_the_first_path_is_taken(case):
    pair = case["source"], case["target"]
    assert as_lists(edits(*pair, "official_all", OFFICIAL)) == case["official_all_tied"]
    assert as_lists(edits(*pair, "first_path", OFFICIAL)) == case["official_first_only"]
    assert as_lists(edits(*pair)) == case["no_dictionaries_all_tied"]


def scored(items, **how):
    return score(*([item[name] for item in items] for name in ("source", "hypothesis", "references")), **how)


@pytest.mark.parametrize("case", GOLDEN["cherrant_scores"], ids=lambda c: c["name"])
def test_scores_are_the_official_ones(case):
    report = scored(case["items"])
    assert report.counts == (case["tp"], case["fp"], case["fn"])
    assert (report.precision, report.recall, report.f) == (case["precision"], case["recall"], case["f0_5"])
    assert [item.counts._asdict() for item in report.items] == case["per_item"]


def test_a_sentence_that_cannot_be_corrected_counts_nothing():
    [case] = GOLDEN["cherrant_unannotatable"]
    report = scored([case["item"]])
    assert as_lists(report.items[0].gold) == case["edits"] and report.items[0].skipped
    assert report.counts == (0, 0, 0) and report.as_json()["skipped"] == 1


@pytest.mark.parametrize("case", GOLDEN["f_beta_from_counts"])
def test_f_from_counts(case):
    assert f_beta(Counts(case["tp"], case["fp"], case["fn"])) == (case["precision"], case["recall"], case["f0_5"])


@pytest.mark.parametrize("case", GOLDEN["m2_word"], ids=lambda c: c["name"])
def test_m2_scores_are_the_official_ones(case):
    sentences = [
        Annotated(
            tuple(item["source_tokens"]),
            tuple(tuple(Edit(a, b, "S", text) for a, b, text in edits) or (NOOP,) for edits in item["annotators"]),
        )
        for item in case["items"]
    ]
    report = score_m2(sentences, [item["hypothesis_tokens"] for item in case["items"]])
    tp, fp, fn = report.counts
    assert (tp, tp + fp, tp + fn) == (case["correct"], case["proposed"], case["gold"])
    assert (report.precision, report.recall, report.f) == (case["p"], case["r"], case["f"])


def test_other_weights_of_recall():
    p, r, f = f_beta(Counts(8, 19, 35), 1.0)
    assert (p, r) == (0.2963, 0.186) and f == round(2 * 8 / (2 * 8 + 19 + 35), 4)
    report = score(["他今天的心情非常很好。"], ["他今天心情非常好。"], [["他今天的心情非常好。"]], beta=2)
    assert report.f == round(5 * 0.5 / (4 * 0.5 + 1), 4)


def test_over_correction_is_of_sentences_that_every_reference_leaves():
    right = "图书馆今天八点开门。"
    report = score(
        [right] * 4, [right, "图书馆今天八点关门。", "图书馆八点开门。", right],
        [[right], ["没有错误"], [right, "图书馆今天八点就开门。"], ["图书馆今天九点开门。"]],
    )  # fmt: skip
    assert (report.error_free, report.changed, report.over_correction) == (2, 1, 0.5)
    assert score([right], [right], [["图书馆今天九点开门。"]]).over_correction is None


def test_counts_of_types_add_up_and_are_the_references_types():
    golden = next(case for case in GOLDEN["cherrant_scores"] if case["name"] == "corpus_of_five")
    report = scored(golden["items"])
    assert report.types == {"M": Counts(1, 1, 0), "R": Counts(1, 0, 2), "W": Counts(1, 0, 1)}
    both = compare([Edit(2, 5, "S", "甲乙")], [Edit(2, 5, "W", "甲 乙"), Edit(2, 5, "S", "甲乙")])
    assert both.counts == (2, 0, 0) and both.types == {"W": Counts(1, 0, 0), "S": Counts(1, 0, 0)}


def test_unannotatable_beside_another_reference_is_an_edit_that_is_missed():
    right = "他今天的心情非常好。"
    assert score([right], [right], [["无法标注", right]]).counts == (0, 0, 0)
    assert score([right], ["他今天心情好。"], [["无法标注"]]).counts == (0, 0, 0)
    assert compare([NOOP], [NA]).counts == (0, 0, 1)


def test_a_placeholder_is_one_character():
    assert characters("我[缺失成分] 去") == ("我", "[缺失成分]", "去")
    assert edits("我去", "我[缺失成分]去") == (Edit(1, 1, "M", "[缺失成分]"),)


def test_empty_sides():
    assert edits("我去", "") == (Edit(0, 2, "R", ""),)
    assert edits("", "我去") == (Edit(0, 0, "M", "我去"),)
    assert edits("", "") == (NOOP,)


def test_edits_lead_to_the_target():
    """Of the first path; whatever the pair, and for moves that are nearly moves, too."""
    rng = random.Random(3)
    pairs = []
    for _ in range(400):
        source = [rng.choice("天地人你我他，的了") for _ in range(rng.randint(0, 20))]
        target = list(source)
        for _ in range(rng.randint(0, 4)):
            a, b, c = sorted(rng.choices(range(len(target) + 1), k=3))
            target = [*target[:a], *target[b:c], *target[a:b], *target[c:], rng.choice("大小")]
        pairs.append((tuple(source), "".join(target)))
    for (source, target), found in zip(pairs, all_edits(pairs, "first_path")):
        words = list(source)
        for edit in reversed([e for e in found.edits if e != NOOP]):
            words[edit.start : edit.end] = edit.correction
        assert "".join(words) == target


def test_too_many_paths_end_in_time_and_are_told():
    """The ties of such pairs grow exponentially."""
    before = time.process_time()
    report = score(["一二" * 40, "天地"], ["二三一" * 27, "天地"], [["一二三" * 27], ["天地"]])
    assert report.head.cut == 2 and report.as_json()["first_path_only"] == 2
    assert time.process_time() - before < 5


def test_pairs_that_are_too_long_are_named():
    with pytest.raises(InputError, match=r"record 2, field 'target': source and target have 2001 and 2001 char"):
        score(["天", "天" * 2000 + "地"], ["天", "人" * 2000 + "心"], [["天"], ["没有错误"]])
    with pytest.raises(InputError, match="record 3, field 'target'"):
        score(["天"] * 2 + ["天" * 2000], ["天"] * 3, [["天", "地"], ["天"], ["天", "地" * 2000]])
    with pytest.raises(InputError, match="record 1, field 'target': source and target have 100000 and 0 char"):
        edits("天" * 100_000, "")
    assert edits("天地", "天" * 5000 + "地") == (Edit(0, 0, "M", "天" * 4999),)
    with pytest.raises(InputError, match="record 1, field 'hypothesis': has 2000 words beside 2000"):
        score_m2([Annotated(("a",) * 2000, ((NOOP,),))], [("b",) * 2000])


def test_what_does_not_go_together_is_refused():
    for call, told in [
        (lambda: score(["天"], ["天"], [["天"], ["地"]]), "1 sources, 1 hypotheses and 2 lists of references"),
        (lambda: score(["天"], ["天"], [[]]), "record 1, field 'references': is empty"),
        (lambda: score("天", ["天"], [["天"]]), "field 'sources'"),
        (lambda: score(["天"], ["天"], ["天"]), "field 'references'"),
        (lambda: edits("天", "地", "official_all"), "field 'mode': official_all needs dictionaries"),
        (lambda: edits("天", "地", "no_dict", OFFICIAL), "no_dict takes no dictionaries"),
        (lambda: edits("天", "地", "all"), "'all' is no mode"),  # type: ignore[arg-type]
        (lambda: score_m2([], [["天"]]), "1 hypotheses stand for 0 sentences"),
        (lambda: score_m2([Annotated(("天",), ((NOOP,),))], ["天"]), "record 1, field 'hypothesis'"),
        (lambda: score_annotated([Annotated(("天地",), ((NOOP,),))], ["天"]), "'天地' is not one character"),
    ]:
        with pytest.raises(InputError, match=told):
            call()


def test_dictionaries_are_read_and_change_what_is_alike(tmp_path):
    (tmp_path / "cilin.txt").write_bytes("Aa01A01= 地\nAb02A01# 得 学\nAa02C03@ 得\n".encode("gb18030"))
    (tmp_path / "confused.txt").write_text("在 再 载\n", encoding="utf-8")
    (tmp_path / "pinyin.txt").write_text("地 de di\n得 de dei\n\n", encoding="utf-8")
    known = load_dictionaries(tmp_path / "cilin.txt", tmp_path / "confused.txt", tmp_path / "pinyin.txt")
    assert known.classes == {"地": ("A", "a", "01"), "得": ("A", "a", "02"), "学": ("A", "b", "02")}
    assert known.readings["得"] == {"de", "dei"} and known.confusions == {"在": {"再", "载"}}
    tied = GOLDEN["cherrant_tied_alignments"][0]
    assert as_lists(edits(tied["source"], tied["target"], "first_path", known)) != tied["no_dictionaries_all_tied"]
    whole = load_dictionaries(tmp_path / "cilin.txt", tmp_path / "confused.txt")
    assert whole.readings["得"] == {"de", "dei"} and len(whole.readings) > 20000
    for name, text, told in [
        ("cilin.txt", "Aa 地\n", "record 1, field 'code': 'Aa' is no code"),
        ("confused.txt", "在 再\n在再\n", "record 2, field 'character': '在再' is not one character"),
    ]:
        (tmp_path / "broken").write_text(text, encoding="utf-8")
        files = {n: tmp_path / ("broken" if n == name else n) for n in ("cilin.txt", "confused.txt")}
        with pytest.raises(InputError, match=told):
            load_dictionaries(*files.values())


def test_words_of_jieba():
    assert segment(["他昨天 去学校", ""], "jieba") == [("他", "昨天", "去", "学校"), ()]
    assert segment(["他 [缺失成分]去"], "characters") == [("他", "[缺失成分]", "去")]


@pytest.mark.parametrize(
    "name", [f"{f.__module__}.{f.__qualname__}" for f in (edits, score, score_m2, f_beta, characters, segment)]
)
def test_public_functions_have_examples(name):
    assert name in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_say(name):
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name])
    assert result.attempted > 0 and result.failed == 0
