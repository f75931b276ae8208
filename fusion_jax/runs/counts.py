"""What each stage of a run used and dropped, and what to do where too little is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fusion_jax.data.examples import NOTHING_LEFT, SAME_TOKENS, TEXT_LOST
from fusion_jax.data.ranked import NO_WORSE
from fusion_jax.errors import InputError
from fusion_jax.hosts.agree import first_host
from fusion_jax.markdown import markdown_table
from fusion_jax.paths import write_text
from fusion_jax.rewards.revision import REFUSES
from fusion_jax.rewards.reward_data import ALIKE
from fusion_jax.rewards.reward_data import TOO_LONG as LONG_CONVERSATION
from fusion_jax.runs.reading import TOO_LONG
from fusion_jax.store.run_folder import REPORT, RunFolder
from fusion_jax.train.settings import TrainSettings


def counts_table(counts: Mapping[str, Counter[str]]) -> str:
    """What each stage used and dropped, and why."""
    lines = [(stage, what, n) for stage, counter in counts.items() for what, n in counter.items() if n]
    return markdown_table([{"stage": stage, "what": what, "count": n} for stage, what, n in lines])


def check_enough(
    run: RunFolder, counts: Mapping[str, Counter[str]], examples: int, settings: TrainSettings, option: str
) -> None:
    """Refuse a stage whose examples do not fill one batch; report.md then says what was dropped before it.

    Args:
      counts: of each stage before: what was used and, under the names of `CURES`, what was dropped and why.
      option: of the stage's settings, for instance "--preference".

    Raises:
      InputError: names the batch size or, where nothing is left, what most records were dropped for and its cure.
    """
    if examples >= settings.batch_size:
        return
    if counts and first_host():
        run.secure()
        write_text(run.file(REPORT), f"# Too few examples for {option}\n\n{counts_table(counts)}\n")
    listed = {stage: ", ".join(f"{what} {n}" for what, n in c.items() if n) for stage, c in counts.items()}
    before = "; ".join(f"{stage}: {what}" for stage, what in listed.items() if what)
    before = f" ({before})" if before else ""
    dropped = [Counter({what: n for what, n in c.items() if n and what in CURES}) for c in counts.values()]
    reasons = next((one for one in reversed(dropped) if one), None)  # of the latest stage that dropped any
    cure = "Give more data"
    if reasons:  # what happened to whole prompts tells more than what happened to single responses
        cure = CURES[max(reasons, key=lambda what: (what.startswith("prompt:"), reasons[what]))]
    if examples == 0:
        raise InputError(f"0 examples are left to train on{before}", field=option, cure=cure)
    problem = f"{examples} examples do not fill one batch of {settings.batch_size}{before}"
    cure += ". Otherwise give more data or a smaller batch size" if reasons else " or a smaller batch size"
    raise InputError(problem, field=f"{option}.batch-size", cure=cure)


SHARED = "prompt: among the preferences, too"
CURES = {
    SHARED: "Give records for SFT to other prompts than those of the preferences, or leave --sft-data out",
    REFUSES: "Set --drop-refusals to False if refusals are to be learnt",
    LONG_CONVERSATION: "Raise --max-length, or give shorter conversations",
    ALIKE: "Give pairs of different responses",
    NO_WORSE: "Give answers that are clearly worse: of rank 3 or lower, or a point below the best",
    "prompt: tie of best and worst": "The responses to a prompt have equal rewards, so none is preferred: use another "
    "--verifier or a --reward-model, lower --tolerance, or draw more samples (--sample.num-samples)",
    "prompt: identical responses": "Draw more varied samples (--sample.temperature, --sample.num-samples)",
    "prompt: all responses blank": "The model writes nothing: look at its responses, its chat template and "
    "--sample.max-new-tokens",
    "prompt: fewer than two usable responses": "Give two responses to a prompt at least (--sample.num-samples)",
    "reward not finite": "Give finite rewards, or leave them to a verifier",
    "response to another prompt": 'Give prompts and responses the same "prompt_id" or "prompt"',
    "chosen equals rejected": "Give pairs of different responses",
    "blank response": "Give responses that are not blank",
    TEXT_LOST: "Use a chat template that keeps the text of the answers, or write the answers as the template does",
    NOTHING_LEFT: "Raise --text.tokens.max-length, or shorten the prompts",
    TOO_LONG: "Raise --text.tokens.max-length, or give shorter answers",
    SAME_TOKENS: "Raise --text.tokens.max-length: what differs is cut off",
    "source: equal rewards": "A source's responses to a prompt have equal rewards: use another --verifier or a "
    "--reward-model, or draw more varied samples (--sample.temperature, --sample.num-samples)",
    "prompt: no pair": "Look at the reasons beside: widen --rules.least-gap and --rules.most-gap to the units of these "
    "rewards, or draw more varied samples (--sample.temperature, --sample.num-samples)",
    "prompt: no source gives a preference": "The responses of each source to a prompt are equally good: draw more "
    "varied samples (--sample.temperature, --sample.num-samples), or lower --weights.min-gap",
    "prompt: no response passed": "No response is right by the checker: use better sources, more samples, or leave "
    "out --check-answers or --code-tests",
    "scored by too few sources": "Look at how many responses each source could score, and why not the others",
    "no source response": "Give quadruples with the sources' responses",
}  # what a drop that is counted under this name calls for
