"""SocialBench by one command: who knows all answers, servers, kills, other readings of the same replies, bad input."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from experiments import role_interact
from experiments.sweeps.files import EXPERIMENTS, read_sweep
from fusion_jax.asking.contract import Question
from fusion_jax.evals.socialbench.aggregate import DIMENSIONS
from fusion_jax.evals.socialbench.prompts import prompt_of, rewritten
from fusion_jax.evals.socialbench.records import SAMPLE, load
from fusion_jax.jsonl import read_jsonl
from fusion_jax.plan.runs import Ask
from fusion_jax.settings import parse
from tests.asking.chat_server import chat, refusal, serving
from tests.multihost.test_teacher_store import free_address
from tests.programs import Program
from tests.small import attempt, fails, script, small_folder, virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")
SWEEPS = sorted((EXPERIMENTS / "sweeps/role_interact").glob("*.yaml"))
RECORDS = json.loads(SAMPLE.read_text(encoding="utf-8"))
RIGHT = {prompt_of(item, rewritten()): ", ".join(item.label) for item in load([SAMPLE])[0].items}


def facts(run: Path) -> dict:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def run(out: Path, *args: str) -> dict:
    attempt(role_interact, ["--out", str(out), *args])
    return facts(out)


def bench(folder: Path, *records: object, name: str = "records.json") -> str:
    (folder / name).write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Path:
    """A run of who knows all answers."""
    out = tmp_path_factory.mktemp("oracle") / "run"
    run(out, "--baseline", "oracle")
    return out


def test_who_knows_the_answers_has_100_everywhere(oracle):
    found = facts(oracle)
    for policy in ("drop", "zero"):
        cells = found["dimensions"][policy]
        assert list(cells) == list(DIMENSIONS) and {one["score"] for one in cells.values()} == {100.0}
        assert {(one["unparsed"], one["errors"]) for one in cells.values()} == {(0, 0)} and found["avg"][
            policy
        ] == 100.0
    assert sum(one["counted"] for one in cells.values()) == found["items"] == 20 and not found["incomplete"]
    assert (found["wording"], found["parser"], found["model"]) == ("rewritten-v1", "official", "oracle")
    assert list(found["files"]) == ["sample.json"] and len(found["files"]["sample.json"]["sha256"]) == 64
    rows = read_jsonl(oracle / "rows.jsonl")
    assert len(rows) == 20 and {row["score"] for row in rows} == {1.0} and rows[4]["letters"] == ["A", "B"]
    report = (oracle / "report.md").read_text(encoding="utf-8")
    row = "| Oracle | left out | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 |"
    for part in (
        row,
        "| SA Style | 100.00 | 100.00 to 100.00 | 25.00 | 2 | 0 | 0 | 0 of 2 |",
        "## By language",
        "| Baichuan-NPC-Turbo | 50.59 | 50.5956 | yes |",
        "dimensions.png",
    ):
        assert part in report, part
    assert json.loads((oracle / "results.json").read_text())["Oracle"]["Avg"] == [100.0] and "WARNING" not in report


def test_a_label_that_is_no_option_is_kept_and_listed(tmp_path, capsys):
    odd = {**RECORDS[8], "label": ["E, or so"]}
    found = run(tmp_path / "run", "--baseline", "oracle", "--files", bench(tmp_path, RECORDS[9], odd))
    assert found["not answerable"] == ["records.json 1"] and found["dimensions"]["drop"]["EP Emo."]["score"] == 50.0
    assert found["avg"]["drop"] is None and "note: 1 labels are no option" in capsys.readouterr().out
    assert "Avg is undefined" in (tmp_path / "run/report.md").read_text()


def test_echo_and_guesses_are_the_same_every_time(tmp_path, oracle):
    one, two = (run(tmp_path / name, "--baseline", "echo") for name in ("one", "two"))
    assert (tmp_path / "one/report.json").read_bytes() == (tmp_path / "two/report.json").read_bytes()
    assert one["letters"]["A"]["read first"] == 16 and one["dimensions"]["drop"]["CM Short"]["score"] == 0.0
    assert (tmp_path / "one/prompts.jsonl").read_bytes() == (oracle / "prompts.jsonl").read_bytes()
    guess, again, other = (
        run(tmp_path / f"random{n}", "--baseline", "random", "--seed", seed) for n, seed in enumerate("778")
    )
    assert (
        guess == again
        and guess["letters"] != other["letters"]
        and one["chance"]["EP Emo."] == pytest.approx((12.5 * 2 + 100 / 3 + 25) / 4)
    )


def test_seeds_share_their_replies_and_each_is_read_again(tmp_path):
    files = ["--files", bench(tmp_path, RECORDS[0])]
    attempt(role_interact, ["--out", str(tmp_path / "run"), "--baseline", "oracle", "--seeds", "2", *files])
    assert len((tmp_path / "run/replies/0.jsonl").read_text().splitlines()) == 1
    again = run(tmp_path / "again", "--rescore", str(tmp_path / "run/seed-43"), *files)
    assert again["dimensions"]["drop"]["SA Style"]["score"] == 100.0


def test_several_right_letters_have_both_scores_whichever_counts(tmp_path):
    found = run(tmp_path / "run", "--baseline", "echo", "--partial", "False", "--files", bench(tmp_path, RECORDS[4]))
    scores = {name: one["score"] for name, one in found["situations"]["EP Situ."].items()}
    assert scores == {"partial": 50.0, "strict": 0.0} and found["dimensions"]["drop"]["EP Situ."]["score"] == 0.0


def test_options_in_other_places(tmp_path):
    """Always A is right once in four rotations of four options."""
    found = run(
        tmp_path / "run", "--baseline", "echo", "--rotations", "4", "--files", bench(tmp_path, RECORDS[0], RECORDS[1])
    )
    assert found["items"] == 2 and found["rotations"]["SA Style"] == {"mean": 25.0, "worst": 0.0, "rotations": 4.0}
    assert len(read_jsonl(tmp_path / "run/rows.jsonl")) == 8
    assert "| SA Style | 25.00 | 0.00 |" in (tmp_path / "run/report.md").read_text()
    all_right = run(
        tmp_path / "oracle",
        "--baseline",
        "oracle",
        "--rotations",
        "4",
        "--files",
        bench(tmp_path, RECORDS[0], RECORDS[1]),
    )
    assert all_right["rotations"]["SA Know."]["worst"] == 100.0


def server(url: str, *more: str) -> list[str]:
    return [
        "--server",
        url,
        "--served",
        "small",
        "--transport.first-wait",
        "0.01",
        "--transport.longest-wait",
        "0.02",
        "--transport.retries",
        "1",
        *more,
    ]


def test_a_server_is_asked_once_and_its_replies_are_read_again(tmp_path, monkeypatch, oracle):
    """Another reading of the same replies asks nobody; the same reading gives the same bytes."""
    monkeypatch.setenv("BENCH_KEY", "sk-Bench-Key")
    with serving(lambda text, _: chat(f"A good answer is {RIGHT[text]} sk-Bench-Key")) as log:
        found = run(tmp_path / "run", *server(log.url), "--transport.key-variable", "BENCH_KEY")
    assert set(log.asked().values()) == {1} and sum(log.asked().values()) == 20 and set(log.asked()) == set(RIGHT)
    limits = {body["messages"][0]["content"]: body["max_tokens"] for body in log.bodies}
    assert sorted(limits.values()) == [16] * 20 and {len(body["messages"]) for body in log.bodies} == {1}
    assert found["letters"]["A"]["read first"] == 16 and found["model"] == f"small at {log.url}"  # the article
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kept and not any(b"sk-Bench-Key" in content for content in kept.values())
    again = run(tmp_path / "again", "--rescore", str(tmp_path / "run"))
    assert (
        again == found and (tmp_path / "again/report.json").read_bytes() == (tmp_path / "run/report.json").read_bytes()
    )
    strict = run(tmp_path / "strict", "--rescore", str(tmp_path / "run"), "--parser", "strict")
    choices = {name: one["score"] for name, one in strict["dimensions"]["drop"].items() if not name.startswith("CM")}
    assert strict["parser"] == "strict" and choices["SA Style"] == 100.0 and set(choices.values()) == {100.0}
    assert {path: path.read_bytes() for path in kept} == kept  # the earlier run is as it was


def test_a_run_that_is_killed_goes_on_and_gives_the_same_report(tmp_path):
    """The second start asks only what has no reply."""

    def slowly(text: str, _: int):
        time.sleep(0.1)
        return chat(RIGHT[text])

    with serving(slowly) as log:
        args = ["--out", str(tmp_path / "run"), *server(log.url), "--transport.concurrency", "1"]
        killed = Program(script("role_interact", *args), os.environ)
        file, end = tmp_path / "run/replies/0.jsonl", time.monotonic() + 300
        while (not file.exists() or file.read_bytes().count(b"\n") < 4) and time.monotonic() < end:
            time.sleep(0.01)
        killed.send_signal(9)
        killed.communicate()
        kept = file.read_bytes().count(b"\n")
        assert 4 <= kept < 20 and not (tmp_path / "run/report.json").exists()
        resumed = run(tmp_path / "run", *server(log.url), "--resume", "True", "--transport.request-seconds", "30")
        asked = log.asked()
        assert run(tmp_path / "whole", *server(log.url)) == resumed
    assert sum(asked.values()) <= 21 and set(asked) == set(RIGHT)


def test_prompts_without_a_reply_make_the_row_incomplete(tmp_path, capsys):
    """They count in neither mean; asked again in another run that shares the replies."""
    state = {"down": True}
    first = next(iter(RIGHT))

    def answer(text: str, _: int):
        return refusal(500) if state["down"] and text == first else chat("?" if text == list(RIGHT)[1] else RIGHT[text])

    with serving(answer) as log:
        found = run(tmp_path / "run", *server(log.url, "--log", str(tmp_path / "shared")))
        assert log.asked()[first] == 2
        told = " ".join(capsys.readouterr().out.split())
        assert (
            found["incomplete"]
            and found["errors"] == {"HTTP 500": 1}
            and "INCOMPLETE: 1 prompts have no reply (HTTP 500 1)" in told
        )
        cells = {policy: found["dimensions"][policy] for policy in ("drop", "zero")}
        assert (
            cells["drop"]["SA Style"]
            == {"score": 100.0, "counted": 1, "unparsed": 0, "errors": 1}
            == cells["zero"]["SA Style"]
        )
        assert cells["drop"]["SA Know."] == {"score": 100.0, "counted": 1, "unparsed": 1, "errors": 0}
        assert (
            cells["zero"]["SA Know."]["score"] == 50.0
            and found["avg"]["drop"] == 100.0
            and found["avg"]["zero"] == pytest.approx(100 - 50 / 9)
        )
        report = (tmp_path / "run/report.md").read_text()
        assert (
            "WARNING: nothing could be read of 5.3 % of the replies" in report
            and "small (incomplete)" in report
            and "(HTTP 500 1); for instance HTTP 500: no" in report
            and "| HTTP 500 | 1 |" in report
        )
        state["down"] = False
        shared = ["--log", str(tmp_path / "shared")]
        same = run(tmp_path / "same", *server(log.url, *shared))
        whole = run(tmp_path / "again", *server(log.url, *shared, "--failed-again", "True"))
        shutil.copytree(tmp_path / "run", tmp_path / "stopped")  # behind rows.jsonl, whose replies are others by now
        for name in ("report.md", "report.json", "results.json", "finished.json", "manifests/results.json.json"):
            (tmp_path / "stopped" / name).unlink()
        resumed = run(tmp_path / "stopped", *server(log.url, *shared), "--resume", "True", "--failed-again", "True")
        wanted = ("field '--failed-again': is finished", f"--log {tmp_path / 'shared'} --failed-again True")
        again = ["--out", str(tmp_path / "run"), *server(log.url, *shared), "--resume", "True", "--failed-again", "True"]
        fails(role_interact, again, capsys, *wanted)
    assert same == found and not whole["incomplete"] and sum(log.asked().values()) == 22 and resumed == whole


def test_processes_that_share_a_log_give_the_same_report(tmp_path):
    """Two that are not connected, each with a folder of its own."""
    with serving(lambda text, _: chat(RIGHT[text])) as log:
        two = [
            Program(script("role_interact", "--out", str(tmp_path / str(n)), *server(log.url, "--log", str(tmp_path / "log")), "--share.count", "2", "--share.index", str(n)), os.environ)
            for n in range(2)
        ]  # fmt: skip
        outputs = [one.communicate(timeout=400) for one in two]
    assert [one.returncode for one in two] == [0, 0], outputs
    assert (tmp_path / "0/report.json").read_bytes() == (tmp_path / "1/report.json").read_bytes()
    assert set(log.asked().values()) == {1} and len(log.asked()) == 20


def test_a_model_answers_and_what_does_not_fit_is_cut(tmp_path, capsys):
    """A small model of random weights: two records as they are, one whose oldest turns are left out, one that is too long."""
    model = small_folder(tmp_path / "model", initializer_range=0.5)
    turns = [{"from": "User", "value": f"turn {n} " + "and so on " * 6} for n in range(12)]
    long = {**RECORDS[0], "dialogue": turns}
    huge = {**RECORDS[9], "dialogue": [{"from": "User", "value": "so " * 900}]}
    args = [
        "--model",
        str(model),
        "--files",
        bench(tmp_path, RECORDS[9], long, huge),
        "--window",
        "900",
        "--choice-tokens",
        "4",
    ]
    found = run(tmp_path / "run", *args)
    assert found["trimmed"]["SA Style"]["items"] == 1 and 0 < found["trimmed"]["SA Style"]["utterances"] < 12
    assert found["errors"] == {"longer than the model's window": 1} and found["model"].startswith("model@")
    rows = read_jsonl(tmp_path / "run/rows.jsonl")
    assert [row["reply"] is None for row in rows] == [False, False, True] and rows[1]["dropped"] == found["trimmed"][
        "SA Style"
    ]["utterances"]
    assert "the oldest utterances of 1 prompts were left out" in capsys.readouterr().out
    (part,) = role_interact.parts(parse(role_interact.PRESETS, args))
    planned = part.plan(Ask("v5e-8", 20, 100, False, "tiny"))
    assert planned and all(one.title.startswith("replies") for one in planned)
    assert not role_interact.parts(parse(role_interact.PRESETS, ["--baseline", "echo"]))


@pytest.mark.slow
def test_hosts_of_one_mesh_give_what_one_gives(tmp_path):
    """A model split over two processes, and a server that the first of them asks."""
    model = small_folder(tmp_path / "model", initializer_range=0.5, num_key_value_heads=2)
    small = [
        "--files",
        bench(tmp_path, *RECORDS[8:12]),
        "--choice-tokens",
        "4",
        "--memory-tokens",
        "4",
        "--window",
        "900",
    ]

    def both(out: str, *more: str) -> None:
        address = free_address()
        hosts = [
            Program(
                script("role_interact", "--out", str(tmp_path / out), *small, *more, "--hosts.coordinator", address, "--hosts.count", "2", "--hosts.index", str(index)),
                os.environ | virtual_devices(1),
            ) for index in range(2)
        ]  # fmt: skip
        outputs = [host.communicate(timeout=400) for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], [errors[-3000:] for _, errors in outputs]

    both("two", "--model", str(model))
    run(tmp_path / "one", *small, "--model", str(model))
    assert (tmp_path / "two/report.json").read_bytes() == (tmp_path / "one/report.json").read_bytes()
    assert len((tmp_path / "two/replies/0.jsonl").read_text().splitlines()) == 4
    with serving(lambda text, _: chat(RIGHT[text])) as log:
        both("served", *server(log.url))
    assert (
        set(log.asked().values()) == {1} and len(log.asked()) == 4 and facts(tmp_path / "served")["avg"]["drop"] is None
    )


def test_the_prompts_are_asked_as_one_turn_of_the_user(oracle):
    lines = read_jsonl(oracle / "replies/0.jsonl")
    prompts = read_jsonl(oracle / "prompts.jsonl")
    assert {line["prompt_sha256"] for line in lines} == {Question.of(prompt["prompt"]).digest for prompt in prompts}
    assert {line["decoding"]["max_tokens"] for line in lines} == {16} and {line["model"] for line in lines} == {
        "oracle"
    }


def test_bad_input_is_refused(tmp_path, capsys, oracle, monkeypatch):
    def refused(*args: str, told: str | tuple[str, ...]) -> None:
        fails(
            role_interact, ["--out", str(tmp_path / "run"), *args], capsys, *([told] if isinstance(told, str) else told)
        )
        assert not (tmp_path / "run").exists()

    refused("--server", "http://127.0.0.1:1/v1", told=("field '--served'", "is missing"))
    refused("--served", "small", told=("field '--server'", "is missing"))
    refused("--server", "127.0.0.1:1", "--served", "small", told="is no address")
    refused(
        "--server", "http://127.0.0.1:1/v1", "--served", "small", "--baseline", "echo", told="stands beside --server"
    )
    refused("--baseline", "echo", "--rescore", str(oracle), told="stands beside --baseline")
    refused("--own-wording", "True", told=("field '--templates'", "is missing"))
    refused("--share.count", "2", told=("field '--log'", "is missing"))
    refused("--share.index", "1", told="out of range")
    refused("--model", str(tmp_path / "none"), told="there is no such folder")
    refused("--baseline", "echo", "--files", str(tmp_path / "none.json"), told="there is no such file")
    refused(
        "--baseline",
        "echo",
        "--files",
        bench(tmp_path, {**RECORDS[0], "label": []}),
        told=("record 0", "field 'label'"),
    )
    refused("--baseline", "echo", "--language", "zh", "--limit", "2", told="no record is in zh")
    refused("--rescore", str(tmp_path), told=("prompts.jsonl", "there is no such file"))
    refused("--rescore", str(oracle), "--profile", "False", told="has another prompt for sample.json 0")
    refused("--rescore", str(oracle), "--rotations", "2", told="has no prompt for sample.json 0")
    refused("--rescore", str(oracle), "--choice-tokens", "5", told="has no reply to sample.json 0 that was decoded so")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    refused(
        "--server",
        "http://127.0.0.1:1/v1",
        "--served",
        "small",
        "--transport.key-variable",
        "NO_SUCH_KEY",
        told="NO_SUCH_KEY is not set or empty",
    )
    shutil.copytree(oracle, tmp_path / "other")
    lines = (tmp_path / "other/replies/0.jsonl").read_text().splitlines()
    (tmp_path / "other/replies/1.jsonl").write_text(
        lines[0].replace('"oracle"', '"echo"').replace('"key": "', '"key": "0') + "\n"
    )
    refused("--rescore", str(tmp_path / "other"), told="holds replies of 2 answerers (echo, oracle)")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_accepted(path):
    sweep = read_sweep(path)
    assert sweep.experiment == "role_interact" and sweep.about and len(sweep.cells) > 1
    assert len({sweep.settings(cell, 1) for cell in sweep.cells}) == len(sweep.cells)


def test_the_sweeps_are_those_of_the_specification():
    assert {path.stem for path in SWEEPS} == {
        "wording",
        "parser",
        "unparsed",
        "language",
        "strata",
        "profile",
        "rotation",
        "temperature",
        "partial",
    }
