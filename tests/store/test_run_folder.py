"""A run folder from outside: what was made counts only as it was made, one process writes, refusals leave nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fusion_jax import InputError
from fusion_jax.files import replacing_folder
from fusion_jax.jsonl import read_jsonl, write_jsonl
from fusion_jax.runs.opening import open_run
from fusion_jax.store.run_folder import RESULTS

CONFIG = {"out": "", "resume": False, "seed": 1, "data": ""}
RECORDS = [{"n": n} for n in range(6)]


def go(folder: Path, made: list[str], *, config: Any = CONFIG, stop: str = "", resume: bool = True) -> None:
    """An experiment in small: records, a model made from them, another made from both, and results."""

    def note(name: str, value: Any) -> Any:
        made.append(name)
        return value

    with open_run(folder, config, resume=resume) as run:
        drawn = run.stage("drawn.jsonl", lambda: note("drawn", RECORDS))
        best = run.stage("best/a.jsonl", lambda: note("best", drawn[:3]))
        place = run.sub("sft")
        place.made_once("model", lambda path: note("sft", write_model(path, f"{best}")))
        run.made_once("model", lambda path: note("model", write_model(path, place.file("model/weights").read_text())))
        run.stage("answers.jsonl", lambda: note("answers", RECORDS), leaf=True)
        run.file(RESULTS).write_text('{"a": {"loss": [1.0]}}')
        if stop:
            raise KeyboardInterrupt
        run.finish()


def write_model(path: Path, weights: str) -> None:
    with replacing_folder(path) as folder:
        (folder / "weights").write_text(weights)
        (folder / "config").write_text("{}")


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that was interrupted when all was made."""
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", [], stop="end")
    return tmp_path / "run"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "emptied records": (lambda r: (r / "drawn.jsonl").write_text(""), "drawn.jsonl: has 0 bytes, it was written with"),
    "half of the records": (
        lambda r: write_jsonl(r / "best/a.jsonl", RECORDS[:1]), "best/a.jsonl: has 9 bytes, it was written with 27"),
    "an edited record": (
        lambda r: write_jsonl(r / "best/a.jsonl", [*RECORDS[:2], {"n": 7}]), "best/a.jsonl: was changed after it was"),
    "a flipped byte": (lambda r: flip(r / "sft/model/weights"), "sft/model/weights: was changed after it was written"),
    "an empty model": (lambda r: empty_folder(r / "model"), "model/config: is missing"),
    "a lost weight file": (lambda r: (r / "sft/model/weights").unlink(), "sft/model/weights: is missing"),
    "a foreign file": (lambda r: (r / "sft/model/extra").write_text(""), "extra: was not there when the folder was"),
    "a file for a folder": (lambda r: (shutil.rmtree(r / "model"), (r / "model").write_text("")), "model: is a file, not the folder"),
    "no manifest": (lambda r: (r / "manifests/drawn.jsonl.json").unlink(), "drawn.jsonl: is there without its manifest"),
    "a torn manifest": (lambda r: (r / "manifests/model.json").write_text('{"form'), "model.json: is not JSON"),
    "another manifest": (
        lambda r: shutil.copy(r / "manifests/model.json", r / "manifests/drawn.jsonl.json"), "drawn.jsonl"),
    "a list": (lambda r: (r / "manifests/model.json").write_text('{"format": 1, "made": 1, "files": []}'), "no manifest"),
    "a later format": (lambda r: (r / "manifests/model.json").write_text('{"format": 9}'), "has format 9, not 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_as_it_was_made_is_refused_and_deleting_what_the_cure_says_helps(run, name):
    damage, wanted = DAMAGE[name]
    damage(run)
    made: list[str] = []
    with pytest.raises(InputError) as refused:
        go(run, made)
    assert wanted in str(refused.value) and made == []
    assert "\n" not in str(refused.value)
    if "Delete" in str(refused.value):
        for path in ("drawn.jsonl", "best/a.jsonl", "sft/model", "model", "manifests/model.json"):
            if str(run / path) in str(refused.value) or f" {path}" in str(refused.value):
                shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink(missing_ok=True)
        go(run, made)
        assert (run / "model/weights").read_text() == str(RECORDS[:3])
        assert read_jsonl(run / "drawn.jsonl") == RECORDS


def test_the_cure_names_what_was_made_from_a_damaged_stage(run):
    write_jsonl(run / "best/a.jsonl", RECORDS[:1])
    (run / "sft/checkpoints").mkdir()
    with pytest.raises(InputError) as refused:
        go(run, [])
    cure = f"Delete {run / 'best/a.jsonl'} and what was made from it: answers.jsonl, model/, sft/; then resume"
    assert cure in str(refused.value)


def test_a_stage_that_is_gone_comes_again_and_what_was_made_from_it_stays(run):
    (run / "drawn.jsonl").unlink()
    shutil.rmtree(run / "sft")
    made: list[str] = []
    go(run, made)
    assert made == ["drawn", "sft"]


def test_what_was_made_from_another_stage_is_refused(run):
    (run / "drawn.jsonl").unlink()
    RECORDS.append({"n": 6})
    try:
        with pytest.raises(InputError, match=r"best/a\.jsonl: was made from another drawn\.jsonl\. Delete .*best"):
            go(run, [])
    finally:
        RECORDS.pop()


def test_what_a_kill_cut_short_is_made_again(tmp_path, monkeypatch):
    """Between a thing and its manifest, and in the middle of a folder that is written in place."""

    def torn(path: Path, weights: str) -> None:
        path.mkdir(parents=True)
        (path / "weights").write_text(weights[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.store.test_run_folder.write_model", torn)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", [])
    monkeypatch.undo()
    assert json.loads((tmp_path / "run/manifests/sft/model.json").read_text())["made"] is False
    made: list[str] = []
    go(tmp_path / "run", made)
    assert made == ["sft", "model", "answers"]
    assert {p.name for p in (tmp_path / "run/sft/model").iterdir()} == {"weights", "config"}


def test_a_changed_input_is_noticed_and_told(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("1")
    config = CONFIG | {"data": str(data), "model": {"base": str(tmp_path / "base")}}
    write_model(tmp_path / "base", "w" * 5_000_000)
    (tmp_path / "base/config").rename(tmp_path / "base/config.json")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", [], config=config, stop="end")
    data.write_text("2")
    with pytest.raises(InputError, match=r"drawn.jsonl: was made from other content of .*data.jsonl \(--data\)\. Rest"):
        go(tmp_path / "run", [], config=config)
    data.write_text("1")
    flip(tmp_path / "base/config.json")
    with pytest.raises(InputError, match=r"other content of .*base \(--model\.base\)"):
        go(tmp_path / "run", [], config=config)


def test_a_finished_run_says_so_and_does_nothing(run, capsys):
    go(run, [])
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    capsys.readouterr()
    made: list[str] = []
    with pytest.raises(SystemExit) as ended:
        go(run, made)
    assert ended.value.code == 0 and made == []
    assert capsys.readouterr().out.splitlines() == [f"{run}: finished already, nothing to do; model: {run / 'model'}"]
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    with pytest.raises(InputError, match="holds a finished run"):
        go(run, made, resume=False)
    with pytest.raises(InputError, match="field 'seed': the run was started with 1, now it is 2"):
        go(run, made, config=CONFIG | {"seed": 2})


@pytest.mark.parametrize("name", [RESULTS, "model/weights"])
def test_a_finished_run_whose_results_were_changed_is_refused(run, name):
    go(run, [])
    flip(run / name)
    with pytest.raises(InputError, match=rf"{name}: was changed after it was written.*Delete {run}"):
        go(run, [])


def test_a_finished_run_that_lost_its_model_is_not_finished(run):
    go(run, [])
    shutil.rmtree(run / "model")
    made: list[str] = []
    go(run, made)
    assert made == ["model"]


def test_a_run_of_an_older_version_is_told_to_start_anew(run):
    shutil.rmtree(run / "manifests")
    with pytest.raises(InputError, match=r"was begun by an older version.*Start a new run in another folder"):
        go(run, [])


def test_resume_starts_where_there_is_nothing(tmp_path):
    go(tmp_path / "a/b", [], resume=True)
    assert (tmp_path / "a/b/finished.json").exists() and not (tmp_path / "a/b/.lock").exists()


@pytest.fixture
def refused() -> Iterator[None]:
    with pytest.raises(InputError, match="no such data"):
        yield


@pytest.mark.parametrize("resume", [False, True])
def test_a_refused_input_leaves_no_folder(tmp_path, resume):
    def refuse(folder: Path) -> None:
        with pytest.raises(InputError, match="no such data"), open_run(folder, CONFIG, resume=resume) as run:
            run.log("begun")
            run.sub("sft/deep")
            raise InputError("there is no such data")

    refuse(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    refuse(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir() if p.name == ".lock"] == []
    refuse(tmp_path / "mine")  # the folder that was there stays, and can be used


def test_a_second_process_is_refused_and_the_first_loses_nothing(tmp_path):
    with open_run(tmp_path / "run", CONFIG, resume=False) as run:
        run.stage("drawn.jsonl", lambda: RECORDS)
        with pytest.raises(InputError, match=r"run, field '--out': is being written by another process \(\d+ on"):
            open_run(tmp_path / "run", CONFIG, resume=True)
    made: list[str] = []
    go(tmp_path / "run", made)
    assert "drawn" not in made


def test_temporaries_of_a_killed_save_are_swept(run, capsys):
    (run / "sft/.model.4711.tmp").mkdir()
    (run / "sft/.model.4711.tmp/model.safetensors").write_bytes(b"0" * 1000)
    (run / f".drawn.jsonl.{'ab' * 16}.tmp").write_text("{")
    go(run, [])
    assert not list(run.rglob("*.tmp")) and ".model.4711.tmp" in capsys.readouterr().out


@dataclass(frozen=True)
class Tokens:
    length: int = 8
    newer: str = "cut"


@dataclass(frozen=True)
class Settings:
    """`newer` fields are those that a version after the run's begin has added."""

    data: str
    seed: int = 1
    tokens: Tokens = Tokens(length=4)
    mesh_data: int = 1
    newer: float = 0.5


def older(folder: Path, file: Path) -> None:
    """A run that a version without the `newer` fields has begun, and that was interrupted."""
    begun = {"data": str(file), "seed": 1, "tokens": {"length": 4}, "mesh_data": 1}
    with pytest.raises(KeyboardInterrupt):
        go(folder, [], config=begun, stop="end")


def test_a_field_that_is_newer_than_the_run_counts_as_its_default(tmp_path):
    """Nothing is made again, however often the run is resumed; only another value than the default is refused."""
    folder, file = tmp_path / "run", tmp_path / "data.txt"
    file.write_text("abc")
    older(folder, file)
    settings, made = Settings(str(file)), list[str]()
    for other, field in (
        (replace(settings, newer=0.25), "newer"),
        (replace(settings, tokens=Tokens(length=4, newer="fit")), "tokens.newer"),
        (replace(settings, tokens=Tokens(length=5)), "tokens.length"),
        (replace(settings, seed=2), "seed"),
    ):
        with pytest.raises(InputError, match=f"'{field}'.*the run was started with"):
            go(folder, made, config=other)
    with pytest.raises(KeyboardInterrupt):
        go(folder, made, config=replace(settings, mesh_data=2), stop="end")
    go(folder, made, config=settings)
    with pytest.raises(SystemExit) as ended:
        go(folder, made, config=settings)
    assert ended.value.code == 0 and not made
    with pytest.raises(InputError, match="'newer'"):
        go(folder, made, config=replace(settings, newer=0.25))


def test_inputs_still_count_for_a_run_that_an_older_version_began(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "data.txt"
    file.write_text("abc")
    older(folder, file)
    file.write_text("abd")
    with pytest.raises(InputError, match="was made from other content of"):
        go(folder, [], config=Settings(str(file)))
