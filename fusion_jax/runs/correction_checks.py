"""What a run that trains correctors refuses before its first stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fusion_jax.correction.inputs import marks_of
from fusion_jax.correction.prompts import framing_of
from fusion_jax.errors import InputError
from fusion_jax.models.folder import check_folder, tokenizer_of
from fusion_jax.runs.correcting import MINIATURE, MINIATURE_DECODER, CorrectingSettings
from fusion_jax.zoo import model_path


def check_corrector(s: CorrectingSettings, *, copying: bool) -> None:
    """Refuse, before the first stage, files without their counterpart, and a model that the run cannot train.

    copying: whether one of its correctors copies from its source.
    """
    if bool(s.pairs) != bool(s.tests):
        field, cure = ("tests", "pairs") if s.pairs else ("pairs", "tests")
        raise InputError("is missing", field=field, cure=f"Give it with --{cure}, or neither")
    for name, count in Counter(Path(file).stem for file in s.tests).items():
        if count > 1:
            cure = "Rename one: what is written for each test file is kept under its name"
            raise InputError(f"two files are called '{name}'", field="tests", cure=cure)
    stages = {"corrector": s.corrector, "alignment": s.alignment, "distillation": s.distillation, "further": s.further}
    for name, how in stages.items():
        if how.pack_tokens:
            problem = "packs rows, which are read one by one here"
            raise InputError(problem, field=f"{name}.pack_tokens", cure="Leave it at 0")
        if how.best_of > 1 and (not s.validation or name == "alignment"):
            problem = "needs --validation" if not s.validation else "needs held-out pairs, which alignment has none of"
            raise InputError(problem, field=f"{name}.best_of", cure="Leave it at 1")
    apart = s.model == MINIATURE
    if s.model not in (MINIATURE, MINIATURE_DECODER):
        if s.model.startswith("zoo:"):
            cure = f"Give {MINIATURE}, {MINIATURE_DECODER} or a folder"
            raise InputError(f"'{s.model}' corrects no Chinese", field="model", cure=cure)
        config = check_folder(model_path(s.model, "--model"))
        if not config.decoder:
            raise InputError("is an encoder, which writes nothing", file=s.model, field="--model", cure="Give a BART")
        apart = bool(config.encoder)
        (marks_of if apart else framing_of)(tokenizer_of(model_path(s.model), "--model"))
    if copying and not apart:
        problem = "copies from an encoder's text, and the model is a decoder alone"
        raise InputError(problem, field="--arms", cure="Leave copy out")
    _check_form(s, apart)


def _check_form(s: CorrectingSettings, apart: bool) -> None:
    """Refuse what the model's form, an encoder-decoder (apart) or a decoder alone, does not read."""
    whole = CorrectingSettings()
    if not apart:
        form = "a decoder alone"
        given = {"lengths": s.lengths != whole.lengths, "output.unk_restore": not s.output.unk_restore}
    else:
        compat = {f"loss.{name}": getattr(s.loss, name) for name in ("compat_reverse_mask", "compat_drop_batch")}
        form, given = "an encoder-decoder", {"cutoff": s.cutoff != whole.cutoff, **compat}
    for option in (name for name, differs in given.items() if differs):
        raise InputError(f"is not read by {form}", field=option, cure="Leave it out")
