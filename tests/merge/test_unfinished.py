"""What is there of a merge before it is whole: kill and resume, one process at a time, faults of the disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from experiments import merge as merge_experiment
from fusion_jax import InputError
from fusion_jax.merge import merge
from fusion_jax.merge.executor import merging
from fusion_jax.models.safetensors_io import write_shard
from tests.merge.folders import BF16, VOCAB, make_models, read_model, ties
from tests.programs import Program
from tests.small import attempt, script

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture
def models(tmp_path):
    make_models(tmp_path, 3)
    return tmp_path


def test_a_killed_merge_goes_on(models, monkeypatch):
    merge(ties(models), models / "whole", shard_bytes=4000)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(merging, "write_shard", interrupted_after(3))
        merge(ties(models), models / "out", shard_bytes=4000)
    place = models / ".out.unfinished"
    finished = {p.name: p.stat().st_mtime_ns for p in place.glob("model-*.safetensors")}
    assert len(finished) == 3 and not (models / "out").exists()
    log = place / "tensors.jsonl"
    log.write_text(log.read_text() + '{"name": "torn')
    merge(ties(models), models / "out", shard_bytes=4000)
    for name, written in finished.items():
        assert (models / "out" / name).stat().st_mtime_ns == written
    same_folders(models / "whole", models / "out")
    with pytest.raises(InputError, match=r"out.*exists already"):
        merge(ties(models), models / "out")


def interrupted_after(count: int, error: BaseException | None = None) -> Any:
    left = [count]

    def write(*args: Any, **options: Any) -> None:
        if not left[0]:
            raise error or KeyboardInterrupt
        left[0] -= 1
        write_shard(*args, **options)

    return write


def same_folders(one: Path, other: Path) -> None:
    """The same files with the same bytes."""
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_unfinished_work_of_another_recipe_is_not_used(models, monkeypatch):
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(merging, "write_shard", interrupted_after(2))
        merge(ties(models), models / "out", shard_bytes=4000)
    other = ties(models, parameters={"normalize": False})
    merge(other, models / "out", shard_bytes=4000)
    merge(other, models / "new", shard_bytes=4000)
    same_folders(models / "new", models / "out")


def interrupted(models: Path, count: int, given: dict[str, Any], out: str = "out") -> Path:
    """A merge stopped behind so many files; the unfinished folder."""
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "write_shard", interrupted_after(count))
        merge(given, models / out, shard_bytes=4000)
    return models / f".{out}.unfinished"


def written(place: Path) -> dict[str, int]:
    """When each weight file was written."""
    return {p.name: p.stat().st_mtime_ns for p in place.glob("model-*.safetensors")}


def test_records_are_on_the_disk_before_a_resumed_merge_begins(models, monkeypatch):
    place = interrupted(models, 3, ties(models))
    before = (place / "tensors.jsonl").read_text()
    assert len(before.splitlines()) > 3

    def killed(*args: Any) -> Iterator[Any]:
        assert (place / "tensors.jsonl").read_text() == before
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(merging, "merged_tensors", killed)
        merge(ties(models), models / "out", shard_bytes=4000)


def test_a_file_without_all_of_its_records_is_made_again(models):
    merge(ties(models), models / "whole", shard_bytes=4000)
    place = interrupted(models, 3, ties(models))
    lines = (place / "tensors.jsonl").read_text().splitlines(keepends=True)
    (place / "tensors.jsonl").write_text("".join(lines[1:]))
    finished = written(place)
    merge(ties(models), models / "out", shard_bytes=4000)
    same_folders(models / "whole", models / "out")
    kept = {name for name, when in written(models / "out").items() if finished.get(name) == when}
    assert kept == set(sorted(finished)[1:])


def test_a_kill_at_the_last_moment_costs_nothing(models, monkeypatch):
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(source).is_dir():
            raise KeyboardInterrupt
        replace(source, target)

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        merge(ties(models), models / "out", shard_bytes=4000)
    finished = written(models / ".out.unfinished")
    merge(ties(models), models / "out", shard_bytes=4000)
    assert written(models / "out") == finished and len(finished) > 3
    assert not {".lock", "identity.json"} & {p.name for p in (models / "out").iterdir()}


def write_words(folder: Path, words: list[str]) -> None:
    Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0])).save(str(folder / "tokenizer.json"))


def test_work_of_another_tokenizer_is_not_used(models):
    words = [f"w{i}" for i in range(VOCAB)]
    for name in ("base", "m1", "m2", "m3"):
        write_words(models / name, words)
    given = ties(models, tokenizer_source="union")
    interrupted(models, 3, given)
    write_words(models / "m1", [*words[:3], words[9], *words[4:9], words[3], *words[10:]])
    merge(given, models / "out", shard_bytes=4000)
    merge(given, models / "new", shard_bytes=4000)
    same_folders(models / "new", models / "out")


@pytest.mark.parametrize("changes", [{}, {"seed": 1}])
def test_one_process_at_a_time(models, monkeypatch, changes):
    told = []

    def write(*args: Any, **options: Any) -> None:
        with pytest.raises(InputError) as caught:
            merge(ties(models, **changes), models / "out")
        told.append(str(caught.value))
        write_shard(*args, **options)

    monkeypatch.setattr(merging, "write_shard", write)
    merge(ties(models), models / "out", shard_bytes=4000)
    assert len(told) > 3 and all("out, field '--out': is being written by another process" in t for t in told)
    assert read_model(models / "out").keys() == read_model(models / "base").keys()


def test_a_disk_without_locks_is_written_to(models, monkeypatch):
    def flock(*args: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fusion_jax.store.lock.fcntl.flock", flock)
    assert merge(ties(models), models / "out").folder == models / "out"


@pytest.mark.slow
def test_sigkill_and_the_same_command(tmp_path):
    make_models(tmp_path, 3, BF16)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps(ties(tmp_path, merge_method="della")))

    def words(out: str) -> list[str]:
        return [str(recipe), "--shard-gb", "0.000001", "--out", str(tmp_path / out)]

    attempt(merge_experiment, words("whole"))
    place = tmp_path / ".out.unfinished"
    for wanted in (2, 9):
        process = Program(script("merge", *words("out")), os.environ | {"JAX_PLATFORMS": "cpu"})
        while len(list(place.glob("model-*"))) < wanted and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.communicate() and process.returncode == -signal.SIGKILL
    attempt(merge_experiment, words("out"))
    whole, out = read_model(tmp_path / "whole"), read_model(tmp_path / "out")
    assert whole.keys() == out.keys() and all((whole[n] == out[n]).all() for n in whole)
    report = [(tmp_path / name / "report.md").read_text() for name in ("whole", "out")]
    assert report[0] == report[1]


def test_a_disk_that_fills_up_loses_no_finished_file(models, monkeypatch):
    merge(ties(models), models / "whole", shard_bytes=4000)
    error = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_shard", interrupted_after(5, error))
        with pytest.raises(InputError, match=r"'--out': the disk is full. Free space.*run the same again; .* \d"):
            merge(ties(models), models / "out", shard_bytes=4000)
    finished = written(models / ".out.unfinished")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: type("U", (), {"free": 10}))
    with pytest.raises(InputError, match=r"GB are needed, 0.00 GB are free"):
        merge(ties(models), models / "out", shard_bytes=4000)
    monkeypatch.undo()
    merge(ties(models), models / "out", shard_bytes=4000)
    same_folders(models / "whole", models / "out")
    assert sum(written(models / "out").get(name) == when for name, when in finished.items()) >= 4


def test_full_disk_is_told_before_anything_is_written(models, monkeypatch):
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: type("U", (), {"free": 10}))
    with pytest.raises(InputError, match=r"GB are needed, 0.00 GB are free"):
        merge(ties(models), models / "out")
    assert not (models / ".out.unfinished").exists()


def test_what_can_be_told_is_told_before_a_tensor_is_merged(models, monkeypatch):
    monkeypatch.setattr(merging, "merged_tensors", lambda *args: pytest.fail("too late"))
    with pytest.raises(InputError, match="'chat_template': is 'auto', but no model has one"):
        merge(ties(models, chat_template="auto"), models / "out")
    assert not (models / ".out.unfinished").exists()


def test_links_are_followed_and_mounted_folders_refused(models, monkeypatch):
    (models / "disk").mkdir()
    (models / "link").symlink_to(models / "disk")
    merge(ties(models), models / "link")
    assert (models / "link").is_symlink() and (models / "disk/model.safetensors").exists()
    (models / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: Path(path).name == "empty")
        with pytest.raises(
            InputError, match=r"empty, field '--out': is a mounted folder.*Give a new folder in it, as .*/empty/"
        ):
            merge(ties(models), models / "empty")
    monkeypatch.chdir(models / "empty")
    with pytest.raises(InputError, match=r"\., field '--out': .*the current one.*as merged"):
        merge(ties(models), ".")
    merge(ties(models), "merged")
    assert read_model(models / "empty/merged").keys() == read_model(models / "base").keys()
