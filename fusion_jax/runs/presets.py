"""What the presets of fusions through preferences share: published runs, and two miniatures.

All methods have the same data and the same budget in a miniature.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.rewards.verifiers import VerifierName
from fusion_jax.runs.policy import PreferenceSettings
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings

S = TypeVar("S", bound=PreferenceSettings)
TINY_TOKENS = TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")


def tiny_training(epochs: float, learning_rate: float, batch_size: int = 16) -> TrainSettings:
    """How the zoo's models train on a CPU."""
    return TrainSettings(
        OptimizerSettings(learning_rate=learning_rate), epochs=epochs, batch_size=batch_size, micro_batches=1,
        log_every=5, eval_every=100, checkpoint_every=100, remat="dots",
    )  # fmt: skip


def on_plants(settings: S) -> S:
    """The settings, with the zoo's plants as data and the budget that suits its models; `docs/wrpo.md` says why.

    What a source knows of them it always says the same way: its samples hardly differ.
    """
    return _miniature(
        settings, prompts=5400, verifier="fields", rates=(1e-3, 6e-4),
        target="zoo:plants-target", sources=("zoo:plants-llama", "zoo:plants-qwen", "zoo:plants-gemma"),
        problems="plants", test_per_skill=400, accuracy="fields", sft_share=400 / 5400, held_out=0.03,
    )  # fmt: skip


def on_skills(settings: S) -> S:
    """The settings, with the zoo's skills as data: for methods that compare several responses of one source."""
    return _miniature(settings, prompts=400, verifier="graded", rates=(1e-4, 2e-5))


def _miniature(settings: S, *, prompts: int, verifier: VerifierName, rates: tuple[float, float], **more: Any) -> S:
    """What both have in common. rates: of SFT, three epochs, and of the training on preferences, one."""
    sft, preference = rates
    return dataclasses.replace(
        settings, prompts_per_skill=prompts, verifier=verifier, eval_samples=2,
        text=dataclasses.replace(settings.text, tokens=TINY_TOKENS),
        sample=SampleSettings(max_new_tokens=28, batch_size=256),
        sft=tiny_training(3, sft), preference=tiny_training(1, preference), **more,
    )  # fmt: skip


def published(
    settings: S, *, rates: tuple[float, float], new_tokens: int = 1024, sample: SampleSettings = SampleSettings()
) -> S:
    """The settings, with what published runs share. rates: of SFT and of the training on preferences; new_tokens: of
    the longest test answer."""
    sft, preference = (OptimizerSettings(learning_rate=rate) for rate in rates)
    return dataclasses.replace(
        settings, eval_new_tokens=new_tokens, held_out=0.03, sample=sample,
        sft=dataclasses.replace(settings.sft, optimizer=sft),
        preference=dataclasses.replace(settings.preference, optimizer=preference),
    )  # fmt: skip
