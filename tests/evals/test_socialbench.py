"""SocialBench's harness against the golden file (letters, prompts exactly; scores to 1e-9; aggregates to 5e-5), and by hand."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import time
from pathlib import Path

import pytest

from fusion_jax.asking.thoughts import without_thinking
from fusion_jax.errors import InputError
from fusion_jax.evals.socialbench import analysis, prompts
from fusion_jax.evals.socialbench.aggregate import DIMENSIONS, Cell, Scored, aggregate, average, dimension
from fusion_jax.evals.socialbench.parsers import official, strict
from fusion_jax.evals.socialbench.prompts import fitted, prompt_of, rewritten, templates_of
from fusion_jax.evals.socialbench.published import PUBLISHED, individual_against_group, recomputed
from fusion_jax.evals.socialbench.records import CATEGORIES, SAMPLE, load, load_file
from fusion_jax.evals.socialbench.rows import Asked, row_from, row_of
from fusion_jax.evals.socialbench.scores import chance, score
from fusion_jax.runs import role_report

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/roleinteract.json").read_text(encoding="utf-8"))
SAMPLES = json.loads(SAMPLE.read_text(encoding="utf-8"))
SAMPLES_SHA256 = "32aa54cdbf9fef9740b9dcdcfad88d48d148e58ee79163586cc32803084f5424"
CHOICE = {
    "dialogue": [{"from": "User", "value": "Did the ferry leave?"}], "instruction": "", "choices": {"A": "Aye.", "B": "As an AI no.", "C": "dunno", "D": "Boats."},
    "label": ["A"], "meta": {"lang": "EN", "name": "Mira", "profile": {"Mira": "Harbour pilot."}, "category": "Individual-SA-RoleStyle"},
}  # fmt: skip
MEMORY = {**CHOICE, "choices": None, "label": ["Tomas"], "meta": {**CHOICE["meta"], "category": "Individual-MEM"}}


def file_of(folder: Path, *records: object, name: str = "some.json") -> Path:
    file = folder / name
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
    file.write_text(lines if name.endswith("l") else json.dumps(list(records), ensure_ascii=False), encoding="utf-8")
    return file


def item_of(folder: Path, record: object):
    return load_file(file_of(folder, record)).items[0]


@pytest.mark.parametrize("case", GOLDEN["parse"], ids=lambda case: repr(case["predict"]))
def test_letters(case):
    assert list(official(case["predict"])) == case["letters"]


@pytest.mark.parametrize("case", GOLDEN["score"], ids=range(len(GOLDEN["score"])))
def test_scores(case):
    found = score(case["category"], case["predict"], case["label"], official)
    assert found == (None if case["score"] is None else pytest.approx(case["score"], abs=1e-9, rel=0))


@pytest.mark.parametrize("case", GOLDEN["prompt"], ids=range(len(GOLDEN["prompt"])))
def test_prompts(case, tmp_path):
    assert prompt_of(item_of(tmp_path, case["record"]), rewritten()) == case["prompt"]


def test_the_sample_has_the_golden_prompts():
    """As far as the golden file has them: the two long dialogues are not in it."""
    assert hashlib.sha256(SAMPLE.read_bytes()).hexdigest() == SAMPLES_SHA256
    (bench,) = load([SAMPLE])
    known = [(case["record"], case["prompt"]) for case in GOLDEN["prompt"]]
    found = [
        (prompt_of(item, rewritten()), wanted)
        for item, record in zip(bench.items, SAMPLES, strict=True)
        for other, wanted in known
        if other == record
    ]
    assert len(bench.items) == 20 and len(found) == 18 and all(ours == wanted for ours, wanted in found)
    assert rewritten().texts == GOLDEN["templates_rewritten_v1"] and rewritten().wording == "rewritten-v1"


@pytest.mark.parametrize("case", GOLDEN["aggregate"], ids=range(len(GOLDEN["aggregate"])))
@pytest.mark.parametrize("unparsed", ["drop", "zero"])
def test_aggregates(case, unparsed):
    items = [
        Scored(one["category"], one["n_utterances"], score(one["category"], one["predict"], one["label"], official))
        for one in case["items"]
    ]
    wanted, found = case[f"expected_{unparsed}_unparsed"], aggregate(items, unparsed)
    assert found.keys() == wanted["dimensions"].keys()
    for name, one in wanted["dimensions"].items():
        assert found[name].score == pytest.approx(one["score"], abs=5e-5, rel=0)
        assert (found[name].counted, found[name].unparsed, found[name].errors) == (one["counted"], one["unparsed"], 0)
    assert average(found) == (None if wanted["avg"] is None else pytest.approx(wanted["avg"], abs=5e-5, rel=0))


# The rule of section 5 written as a regular expression: of each match the letters are its first character's run.
RULE = re.compile(r"(?:(?<!\w)|(?<=[ABCD])|[\u4e00-\u9fa5]+)([A-H])(?:(?!\w)|(?=[ABCD])|[\u4e00-\u9fa5]+)")


def test_letters_are_those_of_a_regular_expression():
    """Every text of up to five of these characters that the expression can read without going back, and longer ones."""
    draw, signs = random.Random(0), "ABDEH a1_，中文Ａé."
    texts = ["".join(text) for size in range(5) for text in itertools.product("AE中, a", repeat=size)]
    texts += ["".join(draw.choices(signs, k=draw.randint(3, 24))) for _ in range(4000)]
    for text in texts:
        assert list(official(text)) == list(dict.fromkeys(RULE.findall(text))), text


def test_a_stricter_parser():
    for text, wanted in {
        "A good reply would be option C.": "C", "选择B和D": "BD", "我选C，因为A太冷淡": "CA", "The answer is C.": "C", "Not B. Answer: D": "D", "答案：A、C": "AC", "BAD idea": "",
        "ABD": "ABD", "E/H": "EH", "I think A or B": "AB", "The correct answer is **B**, not A": "B", "the answer is a matter of taste": "", "Answer is A good question": "",
        "A": "A", "": "", "C1": "", "答案是B": "B", "None of these.": "", "FEED": "", "B\nB": "B", "answer: B, because D is rude": "B",
    }.items():  # fmt: skip
        assert "".join(strict(text)) == wanted, text


def test_parsers_take_linear_time():
    begun = time.process_time()
    for text in (
        "A" + " " * 10**4,
        "answer " * 2 * 10**3,
        "A or " * 2 * 10**3,
        "中" * 10**4 + "A",
        "<think>" * 10**4,
        "A中" * 10**4,
    ):
        official(text), strict(text), without_thinking(text)
    assert time.process_time() - begun < 5.0


def test_templates_are_known_by_their_hashes(tmp_path, monkeypatch):
    """The benchmark's own sentences are not here: another wording stands for them, with its own hashes."""
    texts = {key: text.replace("\n", "\n\n", 1) for key, text in rewritten().texts.items()}
    file = tmp_path / "templates.json"
    file.write_text(json.dumps(texts))
    with pytest.raises(InputError, match=r"field 'choice_en': is not the benchmark's own wording.*--own-wording"):
        templates_of(file)
    assert templates_of(file, own=True).wording.startswith("own-") and templates_of(file, own=True).texts == texts
    monkeypatch.setattr(
        prompts, "OFFICIAL", {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}
    )
    assert templates_of(file).wording == "official"
    for changed, told in [
        ({"open_en": None}, "field 'open_en': is missing"), ({"group_zh": texts["group_zh"] + "{more}"}, "has the slot {more}, which is unknown"),
        ({"emotion_en": "{options}{conversations}"}, "has no slot {utterance}"), ({"extra": "x"}, "'extra' is no template"),
    ]:  # fmt: skip
        file.write_text(json.dumps(texts | changed))
        with pytest.raises(InputError, match=told):
            templates_of(file, own=True)


def test_braces_in_a_record_are_text(tmp_path):
    meta = {**CHOICE["meta"], "name": "{options}", "profile": {"{options}": "{role_name} {0} {{x}}"}}
    record = {**CHOICE, "dialogue": [{"from": "{conversations}", "value": "{role_profile}"}], "meta": meta}
    found = prompt_of(item_of(tmp_path, record), rewritten())
    assert (
        "{role_name} {0} {{x}}\n" in found and "{conversations}: {role_profile}\n" in found and "as {options}:" in found
    )


def test_profiles_of_groups_and_of_roles(tmp_path):
    """A group's are cut to ten lines without blank ones; a role's stands as it is; carriage returns stay."""
    meta = {
        **CHOICE["meta"],
        "category": "Group-SAP-Neutral",
        "profile": {"Mira": "1\r\n\n\n2\n" + "\n".join("abcdefghijk"), "Bo": "x\n\ny"},
    }
    group = prompt_of(item_of(tmp_path, {**CHOICE, "meta": meta}), rewritten())
    assert "==Profiles==\n1\r\n2\na\nb\nc\nd\ne\nf\ng\nh\n\n\nx\ny\n\n==Conv" in group
    bare = prompt_of(item_of(tmp_path, {**CHOICE, "meta": meta}), rewritten(), profile=False)
    assert "==Profiles==\n\n\n==Conv" in bare and "Harbour" not in bare
    assert "==Profile==\n\n\n==Conv" in prompt_of(item_of(tmp_path, CHOICE), rewritten(), profile=False)


def test_the_oldest_turns_are_left_out_first(tmp_path):
    """As few as possible, never the last one, the profile or the options."""
    turns = [{"from": "User", "value": f"turn {n} " + "x" * 50} for n in range(30)]
    item = item_of(tmp_path, {**MEMORY, "dialogue": turns})
    whole = prompt_of(item, rewritten())
    assert fitted(item, rewritten(), lambda text: True) == (whole, 0)
    for most in (len(whole) - 1, 1500, 700):
        found = fitted(item, rewritten(), lambda text, most=most: len(text) <= most)
        longer = prompt_of(item, rewritten(), dropped=found.dropped - 1)
        assert len(found.text) <= most < len(longer) and found.text == prompt_of(
            item, rewritten(), dropped=found.dropped
        )
        assert "turn 29" in found.text and "turn 0 " not in found.text and "Harbour pilot." in found.text
    least = fitted(item, rewritten(), lambda text: False)
    assert least.dropped == 29 and "turn 29" in least.text and "turn 28" not in least.text
    assert fitted(item_of(tmp_path, CHOICE), rewritten(), lambda text: False).dropped == 0
    nothing = load([SAMPLE], limit=5)[0].items[4]
    assert fitted(nothing, rewritten(), lambda text: False) == (prompt_of(nothing, rewritten()), 0)


def test_categories_and_files(tmp_path):
    """Older and newer names of memory, JSON lines, the first records, another language."""
    records = [
        {**MEMORY, "meta": {**MEMORY["meta"], "category": f"Individual-MEM{suffix}"}}
        for suffix in ("", "-Short", "-Long")
    ]
    bench = load_file(file_of(tmp_path, *records, name="some.jsonl"))
    assert {item.kind for item in bench.items} == {"Individual-MEM"} and [
        item.category[14:] for item in bench.items
    ] == ["", "-Short", "-Long"]
    assert [dimension(item.category, 55) for item in bench.items] == ["CM Long", "CM Short", "CM Long"] and dimension(
        "Individual-MEM", 39
    ) == "CM Short"
    assert (
        bench.sha256 == hashlib.sha256((tmp_path / "some.jsonl").read_bytes()).hexdigest()
        and bench.items[0].lang == "en"
    )
    assert len(load([tmp_path / "some.jsonl"], limit=2)[0].items) == 2
    assert item_of(tmp_path, {**CHOICE, "meta": {**CHOICE["meta"], "lang": "Fr"}}).lang == "zh"
    assert {dimension(category, 1) for category in CATEGORIES} == set(DIMENSIONS)
    assert (
        dimension("Individual-EP-HumorSarcasmDetect", 1)
        == dimension("Individual-EP-DialogueEmotionDetect", 1)
        == "EP Emo."
    )


def meta(**changes: object) -> dict[str, object]:
    return {**CHOICE, "meta": {**CHOICE["meta"], **changes}}


@pytest.mark.parametrize("record, told", [
    (meta(category="Individual-XX"), r"unknown categories at 1: 'Individual-XX'.*Known: Individual-SA-RoleStyle"), (meta(category=None), "'meta.category': is missing"),
    ({**CHOICE, "choices": {"A": "x"}}, "'choices': has 1 options"), ({**CHOICE, "choices": {}}, "has 0 options"), ({**CHOICE, "choices": None}, "'choices': is missing"),
    ({**CHOICE, "choices": {"A": "x", "I": "y"}}, "'choices.I': is no letter"), ({**CHOICE, "choices": {"A": "x", "AB": "y"}}, "is no letter"), ({**CHOICE, "choices": {"A": "x", "B": 2}}, "'choices.B': is 2, not a string"),
    ({**CHOICE, "label": []}, "'label': is empty"), ({**MEMORY, "label": []}, "'label': is empty"), ({**CHOICE, "label": "A"}, "not a list"), ({**CHOICE, "label": [1]}, "holds what is no text"),
    (meta(name="Bo"), "'meta.profile': has no entry for 'Bo'"), (meta(name=None), "'meta.name': is missing"), (meta(profile=None), "'meta.profile': is missing"), (meta(profile={"Mira": ["x"]}), "'meta.profile.Mira'"),
    ({**MEMORY, "meta": {**MEMORY["meta"], "name": "Bo"}}, "has no entry for 'Bo'"), (meta(category="Group-SAP-Neutral", profile={}), "has no entry"), (meta(lang=None), "'meta.lang': is missing"),
    ({**CHOICE, "dialogue": []}, "'dialogue': is empty"), ({**CHOICE, "dialogue": ["hi"]}, r"'dialogue\[0\]': is 'hi', not an object"), ({**CHOICE, "dialogue": [{"from": "User"}]}, r"'dialogue\[0\].value': is missing"),
    ("text", "is 'text', not an object"), ({**CHOICE, "meta": None}, "'meta': is missing"),
])  # fmt: skip
def test_records_that_cannot_be_asked_or_scored(record, told, tmp_path):
    with pytest.raises(InputError, match=rf"some\.json, record 1.*{told}"):
        load_file(file_of(tmp_path, CHOICE, record))


def test_files_that_are_none(tmp_path):
    for name, text, told in [
        ("a.txt", "[]", "ends in '.txt'"),
        ("a.json", "{}", "is not a JSON list"),
        ("a.json", "[]", "holds no record"),
        ("a.jsonl", "", "holds no record"),
        ("a.json", "[", "is not JSON"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=told):
            load([tmp_path / name])
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"two files are called 'a\.json'"):
        load([file_of(tmp_path, CHOICE, name="a.json"), file_of(tmp_path / "b", CHOICE, name="a.json")])
    (tmp_path / "c.jsonl").write_text(json.dumps({**CHOICE, "instruction": "\ud83d"}) + "\n")
    with pytest.raises(InputError, match="record 0, field 'instruction': holds half of a surrogate pair"):
        load([tmp_path / "c.jsonl"])


def test_a_label_that_is_no_option_is_kept(tmp_path):
    item = item_of(tmp_path, {**CHOICE, "label": ["H"]})
    assert not item.answerable and chance(item) == 0.0 and item_of(tmp_path, CHOICE).answerable


def test_chance(tmp_path):
    """Also by counting all sets of letters."""
    for label, count, wanted in [
        (["A"], 4, 0.25),
        (["H"], 8, 0.125),
        (["A", "B"], 4, 2 / 15),
        (["A", "B", "C"], 5, 4 / 31),
    ]:
        record = {**CHOICE, "choices": {letter: "x" for letter in "ABCDEFGH"[:count]}, "label": label}
        assert chance(item_of(tmp_path, record)) == pytest.approx(wanted)
        if len(label) > 1:
            sets = [s for size in range(1, count + 1) for s in itertools.combinations("ABCDEFGH"[:count], size)]
            scores = [score("Individual-EP-SituationUnderstanding", ",".join(s), label, official) for s in sets]
            assert sum(scores) / len(sets) == pytest.approx(wanted)


def test_options_rotate_with_their_labels(tmp_path):
    item = item_of(tmp_path, {**CHOICE, "label": ["A", "C"]})
    once = item.rotated(1)
    assert once.choices == (("A", "Boats."), ("B", "Aye."), ("C", "As an AI no."), ("D", "dunno")) and once.label == (
        "B",
        "D",
    )
    assert item.rotated(4) == item == item.rotated(0) and once.rotated(3) == item
    for by in range(4):
        texts, moved = dict(item.rotated(by).choices), item.rotated(by).label
        assert {texts[letter] for letter in moved} == {"Aye.", "dunno"}


def rows_of(folder: Path, *replies: tuple[dict, str | None], **how) -> list:
    found = []
    for record, reply in replies:
        item = item_of(folder, record)
        asked = Asked(item, fitted(item, rewritten(), lambda text: True))
        found.append(row_of(asked, reply, "stop", "" if reply is not None else "timeout", official, **how))
    return found


def test_a_row_is_what_it_was_written_as(tmp_path):
    rows = rows_of(tmp_path, (CHOICE, "A."), (MEMORY, "tomas"), (CHOICE, None), (CHOICE, "no"))
    assert [row.score for row in rows] == [1.0, 1.0, None, None] and [row.error for row in rows] == [
        "",
        "",
        "timeout",
        "",
    ]
    assert [row_from(json.loads(json.dumps(row.as_json()))) for row in rows] == rows
    assert (
        rows[0].prompt_sha256 == hashlib.sha256(prompt_of(item_of(tmp_path, CHOICE), rewritten()).encode()).hexdigest()
    )
    cells = aggregate([row.scored for row in rows])
    assert cells["SA Style"] == Cell(100.0, 1, 1, 1) and aggregate([row.scored for row in rows], "zero")[
        "SA Style"
    ] == Cell(50.0, 2, 1, 1)


def test_declared_thoughts_are_left_out_where_it_is_said(tmp_path):
    said = "<think>B or C?</think>\nA"
    assert (
        rows_of(tmp_path, (CHOICE, said))[0].score == 0.0
        and rows_of(tmp_path, (CHOICE, said), thinking=True)[0].score == 1.0
    )
    assert rows_of(tmp_path, (CHOICE, "<think>B"), thinking=True)[0].letters == ("B",)  # it is not closed
    assert rows_of(tmp_path, (MEMORY, "<think>Tomas</think>"), thinking=True)[0].score is None


def test_memory_of_white_space_counts_and_of_nothing_does_not(tmp_path):
    assert [row.score for row in rows_of(tmp_path, (MEMORY, "  "), (MEMORY, ""))] == [0.0, None]


def test_what_else_the_rows_show(tmp_path):
    def group(preference: str, profiles: int) -> dict:
        return meta(category=f"Group-SAP-{preference}", profile={f"p{n}": "x" for n in range(profiles)})

    def memory(turns: int) -> dict:
        return {**MEMORY, "dialogue": [{"from": "User", "value": "x"}] * turns}

    two = {
        **CHOICE,
        "label": ["A", "B"],
        "meta": {**CHOICE["meta"], "category": "Individual-EP-SituationUnderstanding"},
    }
    rows = rows_of(
        tmp_path, (group("Negative", 2), "A"), (group("Negative", 2), "A"), (group("Negative", 5), "B"), (group("Negative", 7), "none"), (group("Positive", 3), "A"), (memory(19), "Tomas"),
        (memory(20), "no"), (memory(79), "Tomas"), (memory(80), ""), (two, "A"), (two, "AB"), (meta(lang="zh"), "C"), (CHOICE, "A"), (CHOICE, None),
    )  # fmt: skip
    shown = {
        name: {group: cell.score for group, cell in own.items()}
        for name, own in analysis.by_profiles(rows, "drop").items()
    }
    assert shown == {
        "SP Neg.": {"2 profiles": 100.0, "4 to 5 profiles": 0.0, "6 or more profiles": None},
        "SP Pos.": {"3 profiles": 100.0},
    }
    (found,) = analysis.drift(rows, "drop")
    assert (found["preference"], found["size"], found["less"], found["difference"]) == (
        "SP Neg.",
        "4 to 5 profiles",
        "2 profiles",
        -100.0,
    )
    assert (found["low"], found["high"]) == (None, None)  # of a single item
    assert "SA Know." not in analysis.intervals(rows[:1], "drop") and len(analysis.intervals(rows, "drop")) == 4
    assert [one["difference"] for one in analysis.drift(rows, "zero")] == [-100.0, -100.0]
    lengths = analysis.by_length(rows, "zero")["CM"]
    assert {name: cell.score for name, cell in lengths.items()} == {
        "0 to 19 utterances": 100.0,
        "20 to 39 utterances": 0.0,
        "40 to 79 utterances": 100.0,
        "80 or more utterances": 0.0,
    }
    assert {name: cell.score for name, cell in analysis.situations(rows, "drop").items()} == {
        "partial": 75.0,
        "strict": 50.0,
    }
    assert aggregate([row.strict.scored for row in rows])["EP Situ."].score == 50.0
    assert analysis.by_language(rows, "drop")["SA Style"] == {"en": Cell(100.0, 1, 0, 1), "zh": Cell(0.0, 1, 0, 0)}
    assert (
        analysis.letters_read(rows)["A"] == {"read first": 6, "right": 9}
        and analysis.letters_read(rows)["C"]["read first"] == 1
    )
    assert list(analysis.by_options(rows, "drop")["options"]) == ["4"] and analysis.by_chance(rows)[
        "EP Situ."
    ] == pytest.approx(200 / 15)
    assert analysis.intervals(rows, "drop")["EP Situ."] == (50.0, 100.0) == analysis.intervals(rows, "drop")["EP Situ."]
    assert analysis.trimmed(rows) == {}


@pytest.mark.parametrize("unparsed, warned", [(1, True), (0.99, False)])
def test_the_warning_begins_at_5_percent(unparsed, warned):
    told = {"items": 21, "incomplete": False, "unparsed": "drop", "avg": {"drop": 1.0}}
    found = role_report.warnings(told, {"SA Style": Cell(50.0, 20, unparsed, 1)})
    assert bool(found) == warned and (not warned or "of 5.0 % of the replies" in found[0])


def test_the_published_means_are_those_of_their_rows():
    """Every row to 0.01; one is printed truncated."""
    assert len(PUBLISHED) == 17 and all(len(one.scores) == 9 for one in PUBLISHED)
    assert {row["agrees to 0.01"] for row in recomputed()} == {"yes"}
    assert {row["model"]: row["re-computed"] for row in recomputed()}["Baichuan-NPC-Turbo"] == "50.5956"
    assert 0.5 < individual_against_group() < 1.0
