"""The distillation step of Alirector beside the same in PyTorch: the same weights, batch and machine, in turn.

    python experiments/benchmarks/alirector.py
    python experiments/benchmarks/alirector.py --items 16 --source 128 --pair 256 --target 128 --steps 3

Needs requirements-test.txt. Three BART of base size (6 and 6 layers of width 768, feed-forward 3,072, 12 heads, 21,128
entries), random weights, no dropout, float32: a corrector that learns, two frozen alignment models. A batch has `items`
sentences of uneven lengths, the longest ones as the settings say, padded to those. PyTorch's step is written from the
description of the published one: transformers' models, the teachers without gradient, log-softmax over the whole
vocabulary of the rows that have a label, clipping, fused AdamW. Ours is the step of a run, `make_train_step`.

Each is a process of its own; they take their steps in turn, so that what else the machine does slows down both. The
first losses agree to 1e-4 and those of all steps to 1e-3, or the program ends with an error. A row gives the median of
the seconds on the clock and of all processors together, the useful GFLOPs a processor's second beside what a large
matmul makes there, and the peak memory of the process while it steps: in all, less that of its libraries, and less the
three models, two moments and a gradient, which every such step holds. Time: 2 minutes of 2 cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.ops.remat import Remat
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.train.alirector import TEACHERS

ALPHA, BETA, RATE = 0.5, 0.5, 3e-5
HELD = 6  # times the weights: of three models, two moments, a gradient
PAD, CLS, SEP = 0, 101, 102
MODELS = ("student", *TEACHERS)
Step = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """The batch and the models."""

    items: int = 8
    """Sentences of the batch."""
    source: int = 48
    """Tokens of the longest sentence."""
    pair: int = 96
    """Tokens of the longest sentence with its draft."""
    target: int = 48
    """Tokens of the longest correction."""
    shortest: float = 0.5
    """Share of these lengths that the shortest texts have."""
    vocab: int = 21128
    width: int = 768
    layers: int = 6
    """Of the encoder and of the decoder each."""
    inner: int = 3072
    heads: int = 12
    steps: int = 7
    """Of each, timed."""
    remat: Remat = "dots"
    """What ours keeps of a layer."""
    child: str = ""
    """One contender in this process, told on its standard input what to do; for the program itself."""
    folder: str = ""
    """Where the models lie; for the program itself."""

    def __post_init__(self) -> None:
        bounded(self, "items", "layers", "heads", "steps", least=1)
        bounded(self, "source", "pair", "target", least=3)
        bounded(self, "shortest", above=0, most=1)


class Ready(NamedTuple):
    """A contender. step: a call that gives its loss; libraries: MiB of the process before it had a model; weights: MiB
    of one."""

    step: Step
    libraries: float
    weights: float


class Item(NamedTuple):
    """Tokens of a record. inputs: of the corrector and of both alignment models, in this order."""

    inputs: tuple[list[int], list[int], list[int]]
    labels: list[int]


def items_of(s: Settings) -> list[Item]:
    """The batch; the first record has the greatest lengths."""
    rng = np.random.default_rng(0)

    def text(longest: int, number: int) -> list[int]:
        size = longest if number == 0 else int(rng.integers(max(3, round(s.shortest * longest)), longest + 1))
        return [CLS, *rng.integers(SEP + 1, s.vocab, size - 2).tolist(), SEP]

    def item(number: int) -> Item:
        source, first, second = (text(longest, number) for longest in (s.source, s.pair, s.pair))
        return Item((source, first, second), text(s.target, number))

    return [item(number) for number in range(s.items)]


def prepare(s: Settings) -> None:
    """Three models of one architecture, saved."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=s.vocab, d_model=s.width, encoder_layers=s.layers, decoder_layers=s.layers, encoder_ffn_dim=s.inner,
        decoder_ffn_dim=s.inner, encoder_attention_heads=s.heads, decoder_attention_heads=s.heads, dropout=0.0,
        max_position_embeddings=max(512, s.source, s.pair, s.target), pad_token_id=PAD, bos_token_id=CLS,
        eos_token_id=SEP, decoder_start_token_id=SEP, forced_eos_token_id=None,
    )  # fmt: skip
    for number, name in enumerate(MODELS):
        torch.manual_seed(number)
        BartForConditionalGeneration(config).save_pretrained(Path(s.folder) / name)


def ours(s: Settings) -> Ready:
    """The step of a run on its own batch."""
    import jax

    import fusion_jax as fj
    from fusion_jax.data.batches import Data, Example, buckets_for
    from fusion_jax.models.compute import Compute
    from fusion_jax.train.alirector import AlirectorSettings, alirector
    from fusion_jax.train.batching import step_batch
    from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
    from fusion_jax.train.step import make_train_step, shard_batch

    libraries = memory("VmRSS")
    data = Data([
        Example(((*one.inputs[0], SEP, *one.labels),), (len(one.inputs[0]) + 1,), number,
                beside=dict(zip(TEACHERS, map(np.asarray, one.inputs[1:]), strict=True)))
        for number, one in enumerate(items_of(s))
    ])  # fmt: skip
    models = {name: fj.load(Path(s.folder) / name) for name in MODELS}
    student, arrays = models["student"], {name: models[name].params for name in TEACHERS}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(student.params))
    optimizer = make_optimizer(OptimizerSettings())
    objective = alirector(AlirectorSettings(BETA, ALPHA))
    train = make_train_step(student.config, objective, optimizer, Compute(remat=s.remat))
    state = init_state(student.params, optimizer)
    for leaf in jax.tree.leaves(student.params):  # a run keeps them beside the step, PyTorch does not
        leaf.delete()
    micro, buckets = np.arange(s.items)[None], buckets_for(data.extents)

    def once() -> float:
        nonlocal state
        batch = shard_batch(step_batch(data, micro, buckets, None), None)
        state, metrics = train(state, batch, Pace(100, RATE), None, arrays)
        return float(metrics["loss"])

    return Ready(once, libraries, weights / 2**20)


def pytorch(s: Settings) -> Ready:
    """The published step by hand."""
    import torch
    from torch.nn.functional import kl_div
    from transformers import BartForConditionalGeneration

    libraries, records = memory("VmRSS"), items_of(s)

    def padded(rows: list[list[int]], fill: int) -> Any:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, fill)

    texts = dict(zip(MODELS, (padded([r.inputs[n] for r in records], PAD) for n in range(3)), strict=True))
    labels = padded([r.labels for r in records], -100)
    models = {
        name: BartForConditionalGeneration.from_pretrained(Path(s.folder) / name, dtype=torch.float32)
        for name in MODELS
    }
    student = models["student"].train()
    for name in TEACHERS:
        models[name].eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)

    def read(name: str) -> Any:
        return models[name](input_ids=texts[name], attention_mask=texts[name] != PAD, labels=labels)

    def once() -> float:
        own = read("student")
        with torch.no_grad():
            theirs = [read(name).logits for name in TEACHERS]
        active = labels != -100
        logprobs = own.logits[active].log_softmax(-1)
        apart = [kl_div(logprobs, one[active].softmax(-1), reduction="none").sum(-1).mean() for one in theirs]
        loss = own.loss + BETA * (ALPHA * apart[0] + (1 - ALPHA) * apart[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    weights = sum(parameter.nbytes for parameter in student.parameters())
    return Ready(once, libraries, weights / 2**20)


PEAKS = {"in all": "peak", "less libraries": "beyond", "the step's own": "own"}
CONTENDERS: dict[str, Callable[[Settings], Ready]] = {"ours": ours, "PyTorch": pytorch}


def memory(name: str) -> float:
    """MiB of this process that Linux knows by a name, VmRSS or VmHWM."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) / 1024


def serve(s: Settings) -> None:
    """What a child does: for each line of its input a step, whose figures it answers as a line of JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is none of them
    step, libraries, weights = CONTENDERS[s.child](s)
    print(json.dumps({"matmul": matmul_rate(s.child)}), file=out, flush=True)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        wall, work = time.perf_counter(), time.process_time()
        loss = step()
        figures = {"loss": loss, "seconds": time.perf_counter() - wall, "work": time.process_time() - work}
        peak = memory("VmHWM")
        figures |= {"peak": peak, "beyond": peak - libraries, "own": peak - libraries - HELD * weights}
        print(json.dumps(figures), file=out, flush=True)


def matmul_rate(name: str) -> float:
    """FLOPs a processor's second of a large float32 matmul, by the library of a contender."""
    size = 1536
    if name == "ours":
        import jax
        import jax.numpy as jnp

        one = jnp.ones((size, size))
        product = jax.jit(jnp.matmul)

        def once() -> None:
            product(one, one).block_until_ready()
    else:
        import torch

        whole = torch.ones(size, size)

        def once() -> None:
            whole @ whole

    once()
    rates = []
    for _ in range(5):
        start = time.process_time()
        once()
        rates.append(2.0 * size**3 / (time.process_time() - start))
    return max(rates)


def useful_flops(s: Settings) -> float:
    """FLOPs that the mathematics of a step needs, padding of the batch included, nothing computed again."""
    from fusion_jax.models.folder import check_folder
    from fusion_jax.plan.programs import DistilStep, TrainStep

    step = DistilStep(TrainStep("sft", s.items, s.target, s.source), s.pair)
    return step.flops(check_folder(Path(s.folder) / "student"))


class Child:
    """A contender in a process of its own."""

    def __init__(self, s: Settings, name: str) -> None:
        words = [sys.executable, "-m", "experiments.benchmarks.alirector", "--child", name]
        for field in dataclasses.fields(s):
            if field.name != "child":
                words += [f"--{field.name}", str(getattr(s, field.name))]
        environment = {"JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "PASSIVE"} | os.environ  # to wait is no work
        self.name, self.steps = name, list[dict[str, float]]()
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
            env=environment,
        )  # fmt: skip
        self.matmul = self.answer()["matmul"]

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError("ended before its time; what it said is above", field=self.name)
        found: dict[str, float] = json.loads(line)
        return found

    def step(self) -> float:
        """A step, and its loss."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.steps.append(self.answer())
        return self.steps[-1]["loss"]

    def timed(self, what: str) -> list[float]:
        """A figure of the timed steps: all but the first two, which compile and warm up."""
        return [one[what] for one in self.steps[2:]]

    def median(self, what: str) -> float:
        return statistics.median(self.timed(what))


def row(child: Child, flops: float) -> dict[str, str]:
    """A contender's line of the table."""
    seconds, rate = child.timed("seconds"), flops / child.median("work")
    return {
        "contender": child.name, "median s": f"{child.median('seconds'):.3f}",
        "range": f"{min(seconds):.3f}-{max(seconds):.3f}", "of processors": f"{child.median('work'):.3f}",
        "GFLOPs a processor's second": f"{rate / 1e9:.1f}", "of a large matmul": f"{rate / child.matmul:.2f}",
        "first loss": f"{child.steps[0]['loss']:.6f}",
    } | {f"peak MiB, {name}": f"{child.median(what):.0f}" for name, what in PEAKS.items()}  # fmt: skip


def main(s: Settings) -> None:
    if s.child:
        serve(s) if s.child in CONTENDERS else prepare(s)
        return
    with tempfile.TemporaryDirectory() as folder:
        s = dataclasses.replace(s, folder=folder)
        prepare(s)
        flops, children = useful_flops(s), [Child(s, name) for name in CONTENDERS]
        try:
            for number in range(s.steps + 2):
                own, theirs = (child.step() for child in children)
                if abs(own - theirs) > (1e-3 if number else 1e-4) * max(1.0, abs(own)):
                    raise InputError(f"step {number + 1}: the losses are {own} and {theirs}", field="losses")
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()
    print(markdown_table([row(child, flops) for child in children]))
    us, other = children
    times = [other.median(what) / us.median(what) for what in ("seconds", "work")]
    peaks = [us.median(what) / other.median(what) for what in PEAKS.values()]
    print(
        f"\nours is {times[0]:.2f} times as fast by the clock, {times[1]:.2f} times by processors' seconds; of the "
        f"memory it takes {peaks[0]:.2f} in all, {peaks[1]:.2f} less the libraries, {peaks[2]:.2f} of what is its own. "
        f"A step needs {flops / 1e9:,.0f} GFLOPs."
    )


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
