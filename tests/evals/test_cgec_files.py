"""Files of corrections: written and read again, and what is wrong with them told by file, line, field and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_jax.errors import InputError
from fusion_jax.evals.cgec import NA, NOOP, Annotated, Edit, edits, read_m2, write_m2
from fusion_jax.evals.cgec.task_files import read_para, read_task, write_para

SENTENCE = "S 他 去 学校 。\n"
EDIT = "A 1 1|||M|||昨天|||REQUIRED|||-NONE-|||0\n"


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_m2_files_are_read_and_written(tmp_path):
    """Blank lines in a row, Windows' ends of lines, a byte order mark, the lines of corrected sentences; annotators by
    their numbers."""
    text = (
        f"\ufeff{SENTENCE}T0-A0 他 昨天 去 学校 。\nA 0 1|||S:PRON|||她||我|||REQUIRED|||-NONE-|||2\n{EDIT}"
        "A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||1\n\n\nS 好\r\n\r\nS 坏\nA 0 1|||R|||-NONE-|||REQUIRED|||-NONE-|||0\n"
        "\nS 难\nA -1 -1|||NA|||-NONE-|||REQUIRED|||-NONE-|||0"
    )
    found = read_m2(written(tmp_path / "a.m2", text))
    assert found == [
        Annotated(
            ("他", "去", "学校", "。"), ((Edit(1, 1, "M", "昨天"),), (NOOP,), (Edit(0, 1, "S:PRON", "她||我"),)), 1
        ),
        Annotated(("好",), ((NOOP,),), 8),
        Annotated(("坏",), ((Edit(0, 1, "R", ""),),), 10),
        Annotated(("难",), ((NA,),), 13),
    ]
    write_m2(tmp_path / "b.m2", found)
    again = read_m2(tmp_path / "b.m2")
    assert [(one.tokens, one.annotators) for one in again] == [(one.tokens, one.annotators) for one in found]


def test_character_files_have_the_official_form(tmp_path):
    source, target = "我学习每天中文，他的。", "我每天学习中文，他。"
    sentence = Annotated(tuple(source), (edits(source, target),))
    write_m2(tmp_path / "c.m2", [sentence], by_character=True)
    assert (tmp_path / "c.m2").read_text(encoding="utf-8") == (
        "S 我 学 习 每 天 中 文 ， 他 的 。\n"
        "A 1 5|||W|||每 天 学 习|||REQUIRED|||-NONE-|||0\n"
        "A 9 10|||R|||-NONE-|||REQUIRED|||-NONE-|||0\n\n"
    )


M2_FAULTS = [
    (b"", "holds no sentence"),
    ("他去学校。\n", "record 1, field 'S': is '他去学校。', no line of an M2 file"),
    (EDIT, "record 1, field 'S': is an edit without a sentence"),
    (SENTENCE + "\n" + EDIT, "record 3, field 'S': is an edit without a sentence"),
    (SENTENCE + "A 1 1 M 昨天 0\n", "record 2, field 'span': has no separator '|||'"),
    (SENTENCE + EDIT.replace("|||REQUIRED", ""), "record 2, field 'annotator': has 5 fields apart by '|||', not 6"),
    (SENTENCE + EDIT.replace("\n", "|||1\n"), "record 2, field 'annotator': has 7 fields"),
    (SENTENCE + EDIT.replace("1 1", "1"), "record 2, field 'span': '1' is no span"),
    (SENTENCE + EDIT.replace("1 1", "1 eins"), "field 'span': '1 eins' is no span"),
    (SENTENCE + EDIT.replace("1 1", "1 99999999999"), "'1 99999999999' is no span"),
    (SENTENCE + EDIT.replace("1 1", "3 1"), "field 'span': '3 1' is reversed. Write 1 3"),
    (SENTENCE + EDIT.replace("1 1", "3 5"), "'3 5' is out of range: the sentence has 4 tokens. Write spans from 0 to 4"),
    (SENTENCE + EDIT.replace("1 1", "-1 1"), "'-1 1' is out of range"),
    (SENTENCE + EDIT.replace("1 1|||M", "1 1|||noop"), "'1 1' is no span of noop. Write -1 -1"),
    (SENTENCE + EDIT.replace("M", ""), "field 'type': is empty"),
    (SENTENCE + EDIT.replace("||0", "||eins"), "field 'annotator': 'eins' is no number of an annotator"),
    (SENTENCE + EDIT + EDIT.replace("1 1|||M", "-1 -1|||noop"), "record 3, field 'type': annotator 0 has edits and says"),
    (SENTENCE.encode() + b"A 1 1|||M|||\xff\xfe|||R|||N|||0\n", r"record 2: is not UTF-8 text \(byte 12 of the line\)"),
]  # fmt: skip


@pytest.mark.parametrize("text, told", M2_FAULTS, ids=[told[:40] for _, told in M2_FAULTS])
def test_broken_m2_files(tmp_path, text, told):
    with pytest.raises(InputError, match=told.replace("|||", r"\|\|\|")) as raised:
        read_m2(written(tmp_path / "a.m2", text))
    line = str(raised.value)
    assert "a.m2" in line and "\n" not in line and raised.value.cure


def test_no_m2_file(tmp_path):
    for path, told in [(tmp_path / "none.m2", "there is no such file"), (tmp_path, "is a folder")]:
        with pytest.raises(InputError, match=told):
            read_m2(path)


def test_para_files_are_written_and_read(tmp_path):
    write_para(tmp_path / "a.para", ["他去", "好"], [["他去了", ""], ["好"]])
    assert (tmp_path / "a.para").read_text(encoding="utf-8") == "1\t他去\t他去了\t\n2\t好\t好\n"
    assert [(line.id, line.source, line.texts) for line in read_para(tmp_path / "a.para")] == [
        ("1", "他去", ("他去了", "")), ("2", "好", ("好",)),
    ]  # fmt: skip
    with pytest.raises(InputError, match="record 1, field 'text': holds a tab or a line break"):
        write_para(tmp_path / "b.para", ["他\t去"], [["他"]])
    assert not (tmp_path / "b.para").exists()


PARA = "1\t他去 了\t他去了\n2\t好\t好\t很好\n"
TASKS = {
    "para": ("1\t他去了\t他去\n2\t好\t\n", PARA, ""),
    "lines beside para": ("他去\n\n", PARA, ""),
    "lines beside lines": ("他去\n\n", "他去了\n好\n", "0\t他去 了\n1\t好\n"),
    "JSON lines": ('{"id": 1, "source": "他去了", "pred": "他去"}\n\n{"source": "好", "pred": ""}', PARA, ""),
    "one file of JSON lines": (
        '{"source": "他去了", "target": "他去了", "pred": "他去"}\n{"source": "好", "references": ["好", "很好"], "pred": ""}',
        "", "",
    ),
    "M2": ("他去\n\n", "S 他 去 了\n\nS 好\nA 0 0|||M|||很|||REQUIRED|||-NONE-|||0\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_form_is_the_same_task(tmp_path, name):
    ours, gold, sources = TASKS[name]
    hypothesis = written(tmp_path / ("hyp.jsonl" if ours.startswith("{") else "hyp"), ours)
    references = written(tmp_path / "gold", gold) if gold else ""
    task = read_task(hypothesis, references, written(tmp_path / "src", sources) if sources else "")
    assert task.hypotheses == ["他去", ""]
    assert ["".join(source.split()) for source in task.sources] == ["他去了", "好"]
    if name == "M2":
        assert task.annotated is not None and len(task.annotated) == 2
    else:
        assert task.references == [("他去了",), ("好",) if name == "lines beside lines" else ("好", "很好")]


FAULTS = [
    ("他去\n", PARA, "", "hyp, field 'sentences': holds 1 sentences, .*gold holds 2"),
    ("1\t他去了\t他\n3\t好\t好\n", PARA, "", "hyp, record 2, field 'id': is '3', .*gold has '2' in line 2"),
    ("1\t他去了\t他\n2\t坏\t好\n", PARA, "", "hyp, record 2, field 'source': is '坏', .*gold has '好'"),
    ("1\t他去了\t他\t她\n2\t好\t好\n", PARA, "", "hyp, record 1, field 'text': has 2 hypotheses"),
    ("1\t他去了\n2\t好\t好\n", PARA, "", "hyp, record 1, field 'text': has 2 of three fields"),
    ("1\t他去了\t他\n\n", PARA, "", "hyp, record 2, field 'source': is blank"),
    ("他\n好\t好\n", PARA, "", "hyp, record 2, field 'text': holds a tab, other lines do not"),
    ("", PARA, "", "hyp: holds no sentence"),
    ("他\n好\n", "他去了\n好\n", "", "gold, record 1, field 'source': has no source. Give --source FILE"),
    ("他\n好\n", PARA, "他去了\n", "src, field 'sentences': holds 1 sentences, .*gold holds 2"),
    ("他\n好\n", PARA, "他去了\n坏\n", "src, record 2, field 'source': is '坏'"),
    ("S 他\n\n", PARA, "", "hyp, field 'hypothesis': is an M2 file"),
    (b"\xff\n", PARA, "", "hyp, record 1: is not UTF-8 text"),
    ('{"source": "他去了"}', PARA, "", "hyp.jsonl, record 1, field 'pred'"),
    ('{"source": "他去了", "pred": "他", "references": []}', "", "", "record 1, field 'references': is list of 0, no list of"),
    ('{"source": "他去了", "pred": "他", "references": [7]}', "", "", "record 1, field 'references'"),
]  # fmt: skip


@pytest.mark.parametrize("ours, gold, sources, told", FAULTS, ids=[fault[3][:40] for fault in FAULTS])
def test_files_that_do_not_fit_or_are_broken(tmp_path, ours, gold, sources, told):
    hypothesis = written(tmp_path / ("hyp.jsonl" if str(ours).startswith("{") else "hyp"), ours)
    references = written(tmp_path / "gold", gold) if gold else ""
    with pytest.raises(InputError, match=told) as raised:
        read_task(hypothesis, references, written(tmp_path / "src", sources) if sources else "")
    assert raised.value.cure and "\n" not in str(raised.value)
