"""Scoring of corrections as a user runs it, and its benchmark."""

from __future__ import annotations

import json

import pytest

from experiments import score_cgec
from experiments.benchmarks import cgec
from fusion_jax.jsonl import read_jsonl
from tests.small import attempt, fails, run

REFERENCES = "1\t他去了学校昨天。\t他昨天去了学校。\n2\t图书馆今天开门。\t图书馆今天开门。\n3\t妹妹喜欢吃果苹。\t妹妹喜欢吃苹果。\t妹妹爱吃苹果。\n"
HYPOTHESES = "他昨天去了学校。\n图书馆开门。\n妹妹喜欢吃苹果。\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "ref.para").write_text(REFERENCES, encoding="utf-8")
    (tmp_path / "hyp.txt").write_text(HYPOTHESES, encoding="utf-8")
    return tmp_path


def test_characters_by_the_command(files):
    done = run(
        "score_cgec", "--hypothesis", "hyp.txt", "--references", "ref.para", "--out", "scores.json", "--sentences",
        "each.jsonl", "--show", "5", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "| cherrant | no_dict | 0.6667 | 1.0000 | 0.7143 | 2 | 1 | 0 |" in done.stdout
    assert "100.0000 % (1 of 1 error-free)" in done.stdout
    assert "| W | 2 | 0 | 0 | 1.0000 | 1.0000 | 1.0000 |" in done.stdout and "3-5 R" in done.stdout
    told = json.loads((files / "scores.json").read_text(encoding="utf-8"))
    assert (told["tp"], told["fp"], told["fn"], told["f"]) == (2, 1, 0, 0.7143)
    assert (
        told["mode"] == "no_dict"
        and told["over_correction"] == 1.0
        and told["types"]["R"] == {"tp": 0, "fp": 1, "fn": 0}
    )
    each = read_jsonl(files / "each.jsonl")
    assert [record["fp"] for record in each] == [0, 1, 0] and each[2]["edits"] == [[5, 7, "W", "苹果"]]


def test_words_by_the_command(files, capsys):
    """Given words, jieba's, and characters against a character-level file."""
    (files / "gold.m2").write_text("S 他 去 学校 。\nA 1 1|||M|||昨天|||REQUIRED|||-NONE-|||0\n", encoding="utf-8")
    (files / "by.m2.char").write_text("S 他 去 学 校\nA 1 1|||M|||昨 天|||REQUIRED|||-NONE-|||0\n", encoding="utf-8")
    for text, gold, segment in [
        ("他 昨天 去 学校 。\n", "gold.m2", "given"), ("他昨天去 学校。\n", "gold.m2", "jieba"),
        ("他昨天去学校", "by.m2.char", "characters"),
    ]:  # fmt: skip
        (files / "words.txt").write_text(text, encoding="utf-8")
        args = ["--hypothesis", str(files / "words.txt"), "--references", str(files / gold), "--scorer", "m2"]
        attempt(score_cgec, [*args, "--segment", segment])
        assert f"| m2 | words {segment} | 1.0000 | 1.0000 | 1.0000 | 1 | 0 | 0 |" in capsys.readouterr().out
    args[args.index("m2")] = "cherrant"
    attempt(score_cgec, args)
    assert "| cherrant | no_dict | 1.0000 | 1.0000 | 1.0000 | 1 | 0 | 0 |" in capsys.readouterr().out


def test_dictionaries_by_the_command(files, capsys):
    (files / "cilin.txt").write_text("Aa01A01= 他 她\n", encoding="utf-8")
    (files / "confused.txt").write_text("在 再\n", encoding="utf-8")
    args = ["--hypothesis", str(files / "hyp.txt"), "--references", str(files / "ref.para")]
    known = ["--thesaurus", str(files / "cilin.txt"), "--confusions", str(files / "confused.txt")]
    for mode, more, told in [
        ("official_all", known, "official_all"), ("first_path", known, "first_path with dictionaries"),
        ("first_path", [], "first_path without dictionaries"),
    ]:  # fmt: skip
        attempt(score_cgec, [*args, "--mode", mode, *more])
        assert f"| cherrant | {told} | 0.6667 |" in capsys.readouterr().out
    fails(score_cgec, [*args, "--mode", "official_all"], capsys, "field '--mode': official_all needs dictionaries")
    fails(score_cgec, [*args, *known], capsys, "field '--mode': no_dict takes no dictionaries")
    fails(score_cgec, [*args, *known[:2]], capsys, "field '--confusions': is missing")


def test_what_is_missing_is_told(files, capsys):
    args = ["--hypothesis", str(files / "hyp.txt"), "--references", str(files / "ref.para")]
    fails(score_cgec, [], capsys, "field '--hypothesis': is missing")
    fails(score_cgec, args[:2], capsys, "hyp.txt, record 1, field 'source': has no source")
    fails(score_cgec, [*args, "--scorer", "m2"], capsys, "field '--scorer': m2 needs annotated edits")
    fails(score_cgec, [*args, "--beta", "0"], capsys, "out of range")
    fails(score_cgec, [*args, "--out", str(files / "no/scores.json")], capsys, "no/scores.json: there is no such place")
    (files / "hyp.txt").write_text("他\n", encoding="utf-8")
    fails(
        score_cgec, args, capsys, "field 'sentences': holds 1 sentences", "holds 3", "Give one line for each sentence"
    )


def test_the_benchmark_runs(capsys):
    attempt(cgec, ["--sentences", "30", "--repeats", "1", "--far", "10"])
    told = capsys.readouterr().out
    assert "| ChERRANT, no_dict | 30 |" in told and "| M2 | 30 |" in told
