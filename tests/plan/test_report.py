"""What a page says of times that cannot be, of what bounds a program, and of programs that cannot be planned."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from fusion_jax.errors import InputError
from fusion_jax.plan import command, report
from fusion_jax.plan.compile import Compiled, Memory
from fusion_jax.plan.cost import Times
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.programs import Decode, TeacherStep, TrainStep
from fusion_jax.plan.report import Result, limit, line, page
from fusion_jax.plan.requests import Request, useful_flops
from fusion_jax.plan.runs import Ask, Planned
from fusion_jax.slices import slice_of
from tpu_scripts import plan as script

GIB = 2**30
STEP = TrainStep("sft", 16, 2048)


def result(program=STEP, times=Times(compute=10.0), place="v5e-16", mesh=(1, -1, 1), peak=10 * GIB):
    request = Request(place, PUBLIC["llama3-8b"], program, mesh)
    memory = Memory(4 * GIB, peak - 4 * GIB, peak, int(15.75 * GIB), ())
    return Result(Planned("one", request), Compiled(memory, "", (), False, 1.0), times, 0)


def test_times_that_miss_work_are_doubted():
    chip = slice_of("v5e-16").chip
    least = useful_flops(result().planned.request) / 16 / chip.flops
    sound = result(times=Times(compute=1.01 * least))
    assert sound.doubts == () and "Doubt" not in page(sound) and "doubtful" not in line(sound)["ms"]
    short = result(times=Times(compute=0.99 * least))
    assert f"below that of the useful FLOPs at the full peak, {least * 1e3:,.1f} ms" in page(short)
    unknown = result(times=Times(compute=2 * least, unknown=3))
    assert "Doubt: the program does not tell the rounds of 3 of its loops" in page(unknown)
    assert line(short)["ms"].endswith("(doubtful)") and line(unknown)["ms"].endswith("(doubtful)")


def test_waiting_for_the_host_is_a_row_and_a_limit():
    found = result(times=Times(compute=4.0, host=6.0))
    assert "| waited for the host's memory | 6,000.0 ms | estimate |" in page(found)
    assert limit(found) == 'the link to the host, 60% of the time. Try remat "full", which keeps everything on the chip'
    assert "host's memory |" not in page(result())


@pytest.mark.parametrize(("place", "model", "said"), [
    ("v5e-16", "llama3-8b", "mesh-tensor 8)"), ("v5e-4", "llama3-8b", "mesh-tensor 4)"),
    ("v5e-8", "qwen2.5-7b", "mesh-tensor 4)"), ("v5e-1", "llama3-8b", "gathers the weights"),
])  # fmt: skip
def test_decoding_is_to_be_split_by_as_many_heads_as_slice_and_model_have(place, model, said):
    found = result(Decode(32, 1024, 512), Times(exposed=90.0), place)
    request = dataclasses.replace(found.planned.request, model=PUBLIC[model])
    found = dataclasses.replace(found, planned=dataclasses.replace(found.planned, request=request))
    assert limit(found).endswith(said)


def test_more_rows_are_advised_where_there_is_room_for_them():
    times = Times(exposed=9.0, compute=8.0)
    assert "6.8 GiB are free: try more rows at once" in limit(result(times=times, peak=9 * GIB))
    assert "More rows at once do not fit" in limit(result(times=times, peak=14 * GIB))


def planned(*places):
    return [Planned(f"at {place}", Request(place, PUBLIC["llama3-8b"], STEP)) for place in places]


def refusing(one, *, full=False):
    if one.request.slice == "v5e-8":
        raise InputError("too short of memory", field="--plan")
    return dataclasses.replace(result(), planned=one)


def test_programs_are_planned_side_by_side_and_told_in_order(monkeypatch, capsys):
    """The first is done only after the second has begun."""
    begun = threading.Event()

    def slow(one, *, full=False):
        if one.request.slice == "v5e-16":
            assert begun.wait(30)
        begun.set()
        return refusing(one)

    monkeypatch.setattr(report.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(report, "plan", slow)
    command.show(planned("v5e-16", "v5e-64", "v5e-256"), Ask("v5e-16"))
    told = capsys.readouterr().out
    assert told.index("## at v5e-16") < told.index("## at v5e-64") < told.index("## at v5e-256")


def test_a_program_that_cannot_be_planned_is_told_and_ends_with_one(monkeypatch, capsys):
    monkeypatch.setattr(report, "plan", refusing)
    with pytest.raises(SystemExit) as end:
        command.show(planned("v5e-16", "v5e-8", "v5e-64"), Ask("v5e-16"))
    assert end.value.code == 1
    told = capsys.readouterr().out
    assert "not planned: " in told and "too short of memory" in told and "## at v5e-64" in told


def test_a_table_of_failures_alone_ends_with_one(monkeypatch, capsys):
    monkeypatch.setattr(report, "plan", refusing)
    monkeypatch.setattr(script, "check_compiler", lambda: None)
    script.main(script.Settings(slices=("v5e-8", "v5e-16"), programs=("sft",)))
    assert "too short of memory" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        script.main(script.Settings(slices=("v5e-8",), programs=("sft", "teacher")))
    assert end.value.code == 1
    with pytest.raises(InputError, match="mesh_tensors"):
        script.Settings(mesh_tensors=(8, -1))


def test_a_mesh_that_does_not_fit_is_a_row_of_the_table():
    """Even one with more tensor ways than chips has a program, which is then refused."""
    (one,) = script.programs(script.Settings(slices=("v5e-4",), programs=("teacher",), mesh_tensors=(8,)))
    assert one.request.mesh == (1, -1, 8) and one.request.program == TeacherStep(1, 2048)
