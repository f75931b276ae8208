"""Folders on a bucket do what local ones do, on an emulator of Cloud Storage."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import generate, sft
from fusion_jax import InputError, copies, paths
from fusion_jax.data.documents import TeacherRow
from fusion_jax.data.loaders import load_records, write_array_record
from fusion_jax.files import DiskError, replacing, write_json
from fusion_jax.json_files import read_json
from fusion_jax.jsonl import read_jsonl, write_jsonl
from fusion_jax.merge.executor.merging import merge
from fusion_jax.models.folder import Model, check_folder, load, save
from fusion_jax.models.safetensors_io import open_folder
from fusion_jax.store.appending import Appending
from fusion_jax.store.lock import LOCK, acquire
from fusion_jax.store.manifest import Manifests, signature
from fusion_jax.store.parts import Job, Stored, make_parts
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.teachers.store import StoreIdentity, TeacherStore, write_store
from fusion_jax.train.checkpoints import Checkpoints, finishing, restore_state, save_state
from fusion_jax.train.state import OptimizerSettings, TrainState, init_state, make_optimizer
from tests import gcs
from tests.programs import Program, finished
from tests.small import attempt, pairs, script, small_model

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: Path) -> Path:
    """The same test on a disk and on a bucket."""
    return tmp_path / "folder" if request.param == "local" else bucket


@pytest.fixture(scope="module")
def model(quick_compiler: None) -> Model:
    return small_model(vocab_size=400)


def test_paths_offer_the_same_on_both(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "b").mkdir(exist_ok=True)
    paths.write_text(folder / "b" / "c.txt", "hé\n")
    paths.write_bytes(folder / "d", b"0123456789")
    assert paths.listed(folder) == ["b", "d"]
    assert paths.sizes_below(folder) == {"b/c.txt": 4, "d": 10}
    assert paths.sizes_below(folder / "d") == {"": 10} and paths.size_of(folder / "d") == 10
    assert sorted(map(str, paths.files_below(folder))) == [str(folder / "b" / "c.txt"), str(folder / "d")]
    assert paths.read_range(folder / "d", 2, 5) == b"234" and paths.read_range(folder / "d", 8, 20) == b"89"
    assert (folder / "b").is_dir() and not (folder / "d").is_dir() and (folder / "d").is_file()
    assert paths.exists(folder / "b") and not paths.exists(folder / "none")
    assert paths.stamp(folder / "d")[1] == 10
    with paths.opened(folder / "b" / "c.txt") as file:
        assert file.read() == "hé\n".encode()
    with pytest.raises(FileNotFoundError):
        paths.listed(folder / "none")
    with pytest.raises(FileNotFoundError):
        paths.sizes_below(folder / "none")
    with pytest.raises(NotADirectoryError):
        paths.listed(folder / "d")
    with copies.Fetched(folder) as here:
        assert (here / "b" / "c.txt").read_text(encoding="utf-8") == "hé\n"
    with copies.staged(folder / "new") as here:
        here.mkdir(exist_ok=True)
        (here / "x").write_text("1")
    assert paths.listed(folder / "new") == ["x"]
    paths.remove(folder / "d")
    paths.remove(folder / "none")
    paths.remove(folder)
    assert not folder.exists()


def test_names_cost_no_look_at_the_files(tmp_path, monkeypatch):
    manifests = Manifests(tmp_path)
    for name in ("a", "b"):
        paths.write_text(tmp_path / name, name)
        manifests.file(name).parent.mkdir(exist_ok=True)
        manifests.seal(name, made_from=())
    looked: list[str] = []
    stat = Path.stat

    def noted(self: Path, **options: Any) -> Any:
        looked.append(self.name)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", noted)
    assert manifests.names() == ["a", "b"] and not {"a.json", "b.json"} & set(looked)


def test_a_copy_goes_with_its_object_and_errors_name_the_original(bucket):
    paths.write_text(bucket / "a.json", "{")
    copy = copies.Fetched(bucket)
    place = copy.path
    assert (place / "a.json").exists()
    del copy
    assert not place.exists()
    with pytest.raises(InputError, match=str(bucket / "a.json")), copies.Fetched(bucket) as here:
        read_json(here / "a.json")


def test_a_file_is_replaced_whole_or_not_at_all(folder):
    write_json(folder / "a.json" if paths.is_remote(folder) else _made(folder) / "a.json", {"a": 1})
    with pytest.raises(RuntimeError), replacing(folder / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(folder / "a.json") == {"a": 1} and paths.listed(folder) == ["a.json"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_record_files(folder, tmp_path):
    records = pairs(5)
    write_jsonl(_made(folder) / "pairs.jsonl", records)
    write_array_record(folder / "pairs.array_record", records)
    assert load_records(str(folder / "pairs.jsonl")) == load_records(str(folder / "pairs.array_record")) == records
    paths.write_text(folder / "broken.jsonl", '{"a": 1}\n{\n')
    with pytest.raises(InputError, match=re.escape(f"{folder / 'broken.jsonl'}, record 2: is not valid JSON")):
        read_jsonl(folder / "broken.jsonl")
    with pytest.raises(InputError, match=re.escape(f"{folder / 'none.jsonl'}: there is no such file")):
        read_jsonl(folder / "none.jsonl")
    with pytest.raises(InputError, match="is a folder, not a file"):
        read_jsonl(folder)


def test_a_data_set_folder(bucket, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(pairs(3)).save_to_disk(str(tmp_path / "set"))
    for file in paths.files_below(tmp_path / "set"):
        paths.upload(file, bucket / file.name)
    assert load_records(str(bucket)) == pairs(3)
    assert signature(bucket) == signature(tmp_path / "set")


def test_logs_go_on_where_they_ended(folder):
    log = _made(folder) / "log.txt"
    for first in (0, 3):
        appending = Appending()
        for number in range(first, first + 3):
            appending.add(log, f"line {number}\n")
        appending.flush()
    with paths.opened(log) as file:
        assert file.read().decode() == "".join(f"line {number}\n" for number in range(6))


# What is made once


def test_manifests(folder):
    manifests = Manifests(folder)
    assert manifests.state("a.jsonl") == "missing"
    manifests.begin("a.jsonl")
    write_jsonl(folder / "a.jsonl", pairs(2))
    assert Manifests(folder).state("a.jsonl") == "begun"
    manifests.seal("a.jsonl")
    manifests.begin("part/b")
    paths.write_text(_made(folder / "part" / "b") / "one", "1")
    manifests.seal("part/b")
    again = Manifests(folder)
    assert [again.state(name) for name in ("a.jsonl", "part/b")] == ["made", "made"]
    assert again.names() == ["a.jsonl", "part/b"]
    paths.write_text(folder / "part" / "b" / "one", "2")
    with pytest.raises(InputError, match=r"part/b/one: was changed after it was written .* Delete"):
        Manifests(folder).state("part/b")
    again.begin("part/b")
    assert not (folder / "part" / "b").exists()


def test_a_model_folder(bucket, tmp_path, model):
    save(model, tmp_path / "model", shard_bytes=50_000)
    save(model, bucket / "model", shard_bytes=50_000)
    local, remote = load(tmp_path / "model"), load(bucket / "model")
    assert check_folder(str(bucket / "model")) == local.config == remote.config
    assert remote.folder == remote.tokenizer.name_or_path == str(bucket / "model")
    assert remote.tokenizer("Reverse a b")["input_ids"] == local.tokenizer("Reverse a b")["input_ids"]
    mine, theirs = paths.sizes_below(tmp_path / "model"), paths.sizes_below(bucket / "model")
    assert mine == theirs and len([n for n in mine if n.endswith(".safetensors")]) > 1
    assert signature(tmp_path / "model") == signature(bucket / "model")
    others = open_folder(tmp_path / "model")
    for name, entry in open_folder(bucket / "model").items():
        other = others[name]
        np.testing.assert_array_equal(entry.read(), other.read())
        np.testing.assert_array_equal(entry.read((slice(3, 7),)), other.read((slice(3, 7),)))
        out = np.empty(entry.shape, np.float32)
        entry.read_into(out)
        np.testing.assert_array_equal(out, other.read())
    with pytest.raises(InputError, match="exists already"):
        save(model, bucket / "model")
    save(model, bucket / "model", overwrite=True)
    assert paths.listed(bucket / "model").count("model.safetensors") == 1 and len(paths.listed(bucket / "model")) < len(
        mine
    )


def test_a_model_that_could_not_be_written_is_none(bucket, model):
    broken = dataclasses.replace(model, tokenizer=type("Broken", (), {"save_pretrained": lambda self, folder: 1 / 0})())
    with pytest.raises(ZeroDivisionError):
        save(broken, bucket / "model")
    assert not (bucket / "model").exists()
    with pytest.raises(InputError, match="there is no such folder"):
        load(bucket / "model")


def rows(wanted: range) -> list[TeacherRow]:
    def one(i: int) -> TeacherRow:
        rng, tokens = np.random.default_rng(i), 3 + i % 4
        return TeacherRow(
            ids=rng.integers(0, 50, tokens), offsets=rng.integers(0, 9, (tokens, 2)),
            topk_ids=rng.integers(0, 50, (tokens, 2)), topk_logprobs=rng.normal(size=(tokens, 2)),
            logsumexp=rng.normal(size=tokens), tail=rng.random(tokens), metric=rng.random(2),
        )  # fmt: skip

    return [one(i) for i in wanted]


def test_a_teacher_store_goes_on_at_its_missing_parts(bucket, tmp_path):
    identity = StoreIdentity("model", "tokenizer", "documents", k=2, records=7, part_size=2)
    assert write_store(tmp_path / "store", identity, rows) == 0
    assert write_store(bucket, identity, rows) == 0
    (bucket / "part-00002.array_record").unlink()
    with pytest.raises(InputError, match=r"part-00002.array_record: is missing"):
        TeacherStore(bucket, identity)
    asked: list[range] = []
    assert write_store(bucket, identity, lambda wanted: asked.append(wanted) or rows(wanted)) == 3
    assert asked == [range(4, 6)] and write_store(bucket, identity, rows) == 4
    local, remote = TeacherStore(tmp_path / "store", identity), TeacherStore(bucket, identity)
    for i in range(7):
        for mine, theirs in zip(local[i], remote[i], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(InputError, match=r"gs://.*store.json, field 'model': the store was written with another model"):
        TeacherStore(bucket, dataclasses.replace(identity, model="other"))
    assert LOCK not in paths.listed(bucket)


class Lengths:
    def one(self, item: int) -> int:
        return item

    def pack(self, results: list[int]) -> dict[str, np.ndarray]:
        lengths = np.ones(len(results), np.int32)
        return {"lengths": lengths, "values": np.asarray(results, np.int64)}


def test_parts(bucket):
    job = Job(bucket, {"of": "numbers"}, records=5, part_size=2)
    make_parts(job, Lengths(), lambda wanted: [i * i for i in wanted], 0, lambda done: None)
    stored = Stored(job, lambda part, number: int(part.some("values", part.lengths, number)[0]))
    assert list(stored) == [0, 1, 4, 9, 16]
    make_parts(job, Lengths(), lambda wanted: 1 / 0, 0, lambda done: None)  # all are there
    with pytest.raises(InputError, match="was made with another of"):
        make_parts(job._replace(made_of={"of": "letters"}), Lengths(), list, 0, lambda done: None)


def test_a_merge_from_a_bucket_to_a_bucket(bucket, tmp_path, model):
    for seed, name in enumerate("ab"):
        embedding = {"embedding": model.params["embed"]["embedding"] + seed}
        other = dataclasses.replace(model, params={**model.params, "embed": embedding})
        save(other, tmp_path / name)
        save(other, bucket / name)

    def recipe(root: Path) -> dict:
        return {"merge_method": "linear", "dtype": "float32", "tokenizer_source": "union",
                "models": [{"model": str(root / name), "parameters": {"weight": 0.5}} for name in "ab"]}  # fmt: skip

    merge(recipe(tmp_path), tmp_path / "out", shard_bytes=20_000)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int, name: str) -> None:
        if done > total / 2:
            raise Killed

    with pytest.raises(Killed):
        merge(recipe(bucket), bucket / "out", shard_bytes=20_000, progress=kill)
    assert "config.json" not in paths.listed(bucket / "out")
    finished = {f"{n}.jsonl" for n in paths.listed(bucket / "out") if n.startswith("model-")}
    assert (
        finished == set(paths.listed(bucket / "out" / "records")) and paths.size_of(bucket / "out/tensors.jsonl") == 0
    )
    begun = {name: paths.stamp(bucket / "out" / name) for name in paths.listed(bucket / "out") if "safetensors" in name}
    assert begun
    summary = merge(recipe(bucket), bucket / "out", shard_bytes=20_000)
    assert summary.folder == bucket / "out"
    assert begun.items() <= {name: paths.stamp(bucket / "out" / name) for name in begun}.items()
    mine, theirs = (paths.listed(root / "out") for root in (tmp_path, bucket))
    assert mine == theirs
    for name in mine:
        if name not in ("merge.json", "report.md", "tensors.jsonl", "tensors.png"):
            assert paths.read_range(tmp_path / "out" / name, 0, 10**6) == paths.read_range(
                bucket / "out" / name, 0, 10**6
            )
    with pytest.raises(InputError, match="exists already"):
        merge(recipe(bucket), bucket / "out")


# What goes wrong


def _error(work) -> str:
    with pytest.raises(InputError) as caught:
        work()
    return str(caught.value)


def test_a_missing_bucket_or_object_is_told_in_one_line(server):
    for work in (
        lambda: load("gs://nobody/model"),
        lambda: read_jsonl("gs://nobody/a.jsonl"),
        lambda: load_records("gs://nobody/a.jsonl"),
        lambda: write_store("gs://nobody/store", StoreIdentity("", "", "", 1, 1), rows),
        lambda: merge(
            {"merge_method": "linear", "models": [{"model": "zoo:target", "parameters": {"weight": 1}}]},
            "gs://nobody/out",
        ),
    ):
        assert "there is no bucket 'nobody'. Check the name, or make it: gcloud storage buckets create" in _error(work)
    assert "gs://runs/none: there is no such folder" in _error(lambda: load("gs://runs/none"))
    assert "gs://runs/none.jsonl: there is no such file" in _error(lambda: load_records("gs://runs/none.jsonl"))
    assert "names no bucket" in _error(lambda: load("gs://"))


def test_a_lost_permission_is_told_in_one_line(server, model):
    for work in (
        lambda: load("gs://forbidden/model"),
        lambda: read_jsonl("gs://forbidden/a.jsonl"),
        lambda: acquire(paths.as_path("gs://readonly/run")),
        lambda: write_jsonl("gs://readonly/a.jsonl", []),
        lambda: write_json("gs://readonly/a.json", {}),
        lambda: save(model, "gs://readonly/model"),
    ):
        told = _error(work)
        assert "no permission. Give this machine's account rights on the bucket" in told and "gs://" in told


def test_without_the_package_the_cure_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    paths._files.cache_clear()
    assert _error(lambda: load("gs://runs/model")) == (
        "a gs:// path needs the package gcsfs, which is not installed. Install it with: pip install gcsfs."
    )
    paths._files.cache_clear()


def test_other_places_than_buckets_are_refused():
    assert "is no folder of this machine" in _error(lambda: paths.refuse_remote("gs://runs/a", "--out"))


# Whole programs


def test_a_checkpoint_without_permission_is_told_in_one_line(server, model):
    checkpoints = Checkpoints(RunFolder(paths.as_path("gs://readonly/run"), Console(quiet=True)))
    state = init_state(model.params, make_optimizer(OptimizerSettings()), None)
    told = "gs://readonly/run/checkpoints: a checkpoint cannot be written: no permission"
    with pytest.raises(DiskError, match=told), finishing(checkpoints):
        save_state(checkpoints, state._replace(step=state.step + 1))


@pytest.mark.parametrize("status, problem", [
    (403, "no permission. Give this machine's account rights"), (400, r"the bucket's server refused \(.*400\). Run the"),
])  # fmt: skip
@pytest.mark.parametrize("file", ["default/_METADATA", "default/manifest.ocdbt", "default/d/"])
def test_a_checkpoint_that_the_bucket_does_not_give_is_not_called_damaged(server, monkeypatch, file, status, problem):
    folder = paths.as_path(f"gs://runs/{status}-{file.rpartition('/')[2]}")
    like = TrainState(jnp.asarray(3), jnp.asarray(False), {"w": jnp.ones(5)}, {"m": jnp.ones(5)})
    with finishing(checkpoints := Checkpoints(RunFolder(folder, Console(quiet=True)))):
        save_state(checkpoints, like)
    checkpoints = Checkpoints(RunFolder(folder, Console(quiet=True)))
    monkeypatch.setattr(gcs, "refusal", lambda command, bucket, name: status if file in name else None)
    wanted = f"{folder / 'checkpoints'}: checkpoint 3 cannot be read: {problem}"
    assert re.search(wanted, _error(lambda: restore_state(checkpoints, like)))


def test_a_folder_that_orbax_would_not_find_again_gets_no_checkpoints(bucket, tmp_path):
    for folder in (bucket, tmp_path):
        with pytest.raises(InputError, match=r"holds a bracket.*Rename it"):
            Checkpoints(RunFolder(folder / "run[1]", Console(quiet=True)))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_a_run_that_was_killed_ends_as_a_local_one(bucket, server, tmp_path, capsys):
    train = ["--train.epochs", "1", "--train.checkpoint-every", "4"]
    on_bucket = [*train, "--out", str(bucket)]
    first = Program(script("sft", *on_bucket), os.environ | server)
    while first.poll() is None and not any(f.name == "commit_success.txt" for f in paths.files_below(bucket)):
        time.sleep(0.1)
    assert first.poll() is None, first.communicate()[0]
    first.kill()
    first.communicate()
    finished(script("sft", *on_bucket, "--resume"), os.environ | server)
    attempt(sft, [*train, "--out", str(tmp_path / "run")])
    for name in ("metrics.jsonl", "results.json", "model/model.safetensors", "config.json", "model/tokenizer.json"):
        with paths.opened(bucket / name) as mine, open(tmp_path / "run" / name, "rb") as theirs:
            assert mine.read() == theirs.read(), name
    assert set(paths.listed(tmp_path / "run")) == set(paths.listed(bucket))
    capsys.readouterr()
    attempt(sft, [*on_bucket, "--resume"])
    assert "finished already" in " ".join(capsys.readouterr().out.split())
    asked = ["--model", str(bucket / "model"), "--prompt", "Reverse a b"]
    attempt(generate, [*asked, "--out", str(bucket / "answers.jsonl")])
    assert len(read_jsonl(bucket / "answers.jsonl")) == 1
    with paths.opened(bucket / "manifests" / "model.json") as file:
        assert json.load(file)["made"]
