"""Opening the folder of a run.

A finished run is never overwritten; an unfinished one goes on only with `resume`, and only with the settings it was
started with; one that stopped before it made anything is started anew. One process at a time writes it. A run that is
refused before it made anything leaves no folder behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_jax.errors import DiskError, InputError, quoted
from fusion_jax.failures import NothingToDo
from fusion_jax.files import write_json
from fusion_jax.hosts.agree import agreed, first_host, on_first, seen
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.paths import as_path, check_bucket, files_below, is_remote, listed
from fusion_jax.settings import to_json, with_defaults
from fusion_jax.store import manifest
from fusion_jax.store.lock import acquire, is_trace, sweep
from fusion_jax.store.manifest import Manifests
from fusion_jax.store.run_folder import CONFIG, FINAL, FINISHED, REPORT, RUN, RunFolder, kept_file, remove_unused

if TYPE_CHECKING:
    from rich.console import Console

ELSEWHERE = ("out", "resume", "hosts", "track")  # where a run lies, is computed and is shown is no setting of it
TRIED = ("transport", "failed_again")  # nor is how hard a server is tried, which decides no reply
STOPPING = ("least_coverage",)  # what can only stop a run may be another when it goes on


def open_run(out: str | os.PathLike[str], settings: Any, *, resume: bool) -> RunFolder:
    """Make or reopen a run folder; use it in a `with` statement.

    Args:
      settings: a dataclass, or plain JSON values by name; compared with the folder's own on resume, but for what says
        where it runs, is shown (`out`, `resume`, hosts, mesh, `track`) and is tried (`TRIED`). A field of the dataclass
        that the folder's settings lack, since it is newer than they are, counts there as its default.
      resume: go on with a run that is there; where there is none, start it.

    Raises:
      InputError: the folder holds a finished run and is not resumed, an unfinished one without `resume`, a run of other
        settings, files that are no run or not as they were made; another process writes it; a host does not see it
        or has other settings.
      NothingToDo: after saying so: the run is finished, and `resume` has nothing to do.
    """
    from rich.console import Console

    path, console = as_path(out), Console(quiet=not first_host())
    if "://" in os.fspath(out) and not is_remote(out):
        raise InputError("is no place for a run", file=out, field="--out", cure="Give a folder, or gs://BUCKET/FOLDER")
    opened: list[RunFolder | None] = [None]
    try:
        on_first(lambda: opened.append(_open(path, settings, console, resume=resume)))
        if bool(agreed(np.asarray(first_host() and opened[-1] is None))):
            _say_finished(path, console)
            raise NothingToDo
        seen(path / CONFIG, lambda file: file.exists() and _stored(path, settings) == _kept(settings))
    except BaseException:  # of this host, or what stops the others
        if opened[-1] is not None and opened[-1].lock is not None:
            opened[-1].lock.release()
        raise
    return opened[-1] or RunFolder(path, console)


def _open(path: Path, settings: Any, console: Console, *, resume: bool) -> RunFolder | None:
    """The first host's part of `open_run`; None: the run is finished, and nothing is to be done."""
    check_bucket(path, "--out")
    if path.exists() and not path.is_dir():
        raise InputError("is a file, not a folder", file=path, field="--out", cure="Choose another --out")
    names = [name for name in listed(path) if not is_trace(name)] if path.exists() else []
    if names and not (path / CONFIG).exists():
        raise InputError("holds files but no run", file=path, field="--out", cure="Choose an empty or new folder")
    if names and finished(path):
        _check_same(path, settings, resume=resume)
        check_finished(path)
        return None
    above = () if is_remote(path) else path.parents  # a bucket has no folders to make
    made = tuple(reversed([p for p in (path, *above) if not p.exists()]))
    path.mkdir(parents=True, exist_ok=True)
    lock = acquire(path)  # before this nothing is ours to remove
    try:
        return _begin(RunFolder(path, console, lock=lock, made=made), settings, resume=resume, new=not names)
    except BaseException:
        try:
            with suppress(Exception):  # the error that came first is the one that is raised
                lock.check()
                remove_unused(path, made)
        finally:
            lock.release()
        raise


def _begin(run: RunFolder, settings: Any, *, resume: bool, new: bool) -> RunFolder:
    """Check what a held folder holds and write what a run begins with; new: it holds nothing."""
    path, lock = run.path, run.lock
    assert lock is not None
    swept, kept = sweep(path), _kept(settings)
    begun = not new and not _made_nothing(path, settings)
    if begun:
        _check_same(path, settings, resume=resume)
        kept = _as_begun(kept, read_json(path / CONFIG, cure=RESTORE))
    inputs = _inputs(kept)
    if begun:
        _check_format(path)
        Manifests(path).check_all()
    lock.check()
    write_json(path / CONFIG, kept)
    (path / RUN).parent.mkdir(exist_ok=True)
    write_json(path / RUN, {"format": manifest.FORMAT, "inputs": inputs})
    run = replace(run, manifests=Manifests(path, inputs))
    if lock.note:
        run.log(f"{path}: {lock.note}")
    if swept:
        run.log(f"removed what a killed process had left half-written: {', '.join(p.name for p in swept)}")
    return run


def finished(path: Path) -> bool:
    """Whether a folder holds a run that came to its end, and what it ended with."""
    if not (path / FINISHED).exists():
        return False
    checked = Manifests(path)
    return all(checked.whole(name) for name in FINAL if checked.file(name).exists())


def check_finished(path: Path, names: Iterable[str] = FINAL) -> None:
    """Compare what a finished run ended with with its manifests, and the sizes of everything else that is there.

    A run of an older version has none, and is taken as it is.

    Raises:
      InputError: names the first file that differs and what is to be deleted.
    """
    checked = Manifests(path)
    checked.check_all()
    for name in names:
        if checked.file(name).exists() and checked.whole(name):
            checked.compare(name)


def _say_finished(path: Path, console: Console) -> None:
    found = [f"{what}: {path / what}" for what in (REPORT, "model") if (path / what).exists()]
    message = "; ".join([f"{path}: finished already, nothing to do", *found])
    console.print(message, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _check_format(path: Path) -> None:
    if not (path / RUN).exists():
        raise InputError(
            "was begun by an older version, and nothing says which of its files are whole", file=path,
            cure="Start a new run in another folder",
        )  # fmt: skip


def _inputs(kept: dict[str, Any]) -> dict[str, str]:
    """What everything in the folder depends on: the settings, and the files and models that they name."""
    out = {"settings": manifest.digest({"": json.dumps(_comparable(kept), sort_keys=True)})}
    for name, value in _texts(kept):
        try:
            found = manifest.signature(as_path(value)) if value else None
        except DiskError:  # a bucket that does not answer now: without this input every later start would be refused
            raise
        except (OSError, ValueError):
            continue
        if found:
            out[f"{value} (--{name.replace('_', '-')})"] = found
    return out


def _texts(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Every text of the settings, with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, name)


def _comparable(config: Any) -> Any:
    """Settings without those of the mesh, which only say where it runs."""
    if not isinstance(config, dict):
        return config
    return {k: _comparable(v) for k, v in config.items() if k not in ("mesh_data", "mesh_fsdp", "mesh_tensor")}


def _made_nothing(path: Path, settings: Any) -> bool:
    """Whether a run of this experiment stopped before its first file, for instance at a wrong path in its settings."""
    before = _stored(path, settings)
    ours = isinstance(before, dict) and before.keys() == _kept(settings).keys()
    return ours and not any(kept_file(file, path) for file in files_below(path))


def _kept(settings: Any) -> dict[str, Any]:
    """What the folder keeps of the settings."""
    config = to_json(settings) if is_dataclass(settings) else settings
    return {k: _untried(v) for k, v in config.items() if k not in ELSEWHERE + TRIED + STOPPING}


def _untried(value: Any) -> Any:
    """A setting without how hard a server is tried, such as that of --helper."""
    return {k: _untried(v) for k, v in value.items() if k not in TRIED} if isinstance(value, dict) else value


def _stored(path: Path, settings: Any) -> Any:
    """What the folder kept, with the defaults of what is newer."""
    stored = with_defaults(read_json(path / CONFIG, cure=RESTORE), settings)
    return _kept(stored) if isinstance(stored, dict) else stored


def _as_begun(kept: Any, before: Any) -> Any:
    """Settings without what those of the run's begin lack, so that everything in the folder still depends on the
    same."""
    if not isinstance(kept, dict) or not isinstance(before, dict):
        return kept
    return {k: _as_begun(v, before[k]) for k, v in kept.items() if k in before}


def _check_same(path: Path, settings: Any, *, resume: bool) -> None:
    """Refuse a run that is not to be resumed, or of other settings."""
    if not resume:
        state = "a finished run" if (path / FINISHED).exists() else "an unfinished run"
        cure = "Choose another --out" + ("" if (path / FINISHED).exists() else " or continue it with --resume")
        raise InputError(f"holds {state}", file=path, field="--out", cure=cure)
    check_settings(path, settings)


def check_settings(path: Path, settings: Any) -> None:
    """Refuse a run that was started with other settings; see `open_run`.

    Raises:
      InputError: names the first setting that differs.
    """
    before, kept = (_flat(_comparable(x)) for x in (_stored(path, settings), _kept(settings)))
    changed = sorted(k for k in before.keys() | kept.keys() if before.get(k) != kept.get(k))
    if changed:
        name = changed[0]
        raise InputError(
            f"the run was started with {quoted(before.get(name))}, now it is {quoted(kept.get(name))}",
            file=path / CONFIG, field=name, cure="Resume with the same settings or choose another --out",
        )  # fmt: skip


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    if not isinstance(values, dict):
        return {name: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{name}.{key}" if name else str(key))
    return found
