"""The published table (arXiv 2403.13679, zero-shot, percent), to check the mean and to set results beside."""

from __future__ import annotations

from typing import NamedTuple

from scipy import stats

from fusion_jax.evals.socialbench.aggregate import DIMENSIONS, Cell, average


class Published(NamedTuple):
    """A model's row. scores: in the order of `DIMENSIONS`. mean: as printed."""

    model: str
    scores: tuple[float, ...]
    mean: float


# fmt: off
PUBLISHED = tuple(Published(model, tuple(scores), mean) for model, *scores, mean in (
    ("LLaMA-2-7B-Chat", 48.76, 51.23, 31.23, 28.91, 25.38, 21.89, 44.98, 24.19, 27.67, 33.80),
    ("LLaMA-2-13B-Chat", 57.62, 65.51, 37.12, 32.56, 30.43, 29.82, 66.38, 42.25, 26.27, 43.11),
    ("LLaMA-2-70B-Chat", 67.61, 70.78, 35.74, 38.47, 45.57, 26.74, 69.87, 45.29, 39.37, 48.83),
    ("Mistral-7B-Instruct-v0.2", 50.12, 61.17, 36.48, 31.72, 31.78, 25.42, 65.67, 46.34, 28.96, 41.96),
    ("Qwen-7B-Chat", 66.44, 71.16, 41.68, 40.68, 67.45, 53.45, 75.61, 52.78, 43.11, 56.93),
    ("Qwen-14B-Chat", 77.06, 86.15, 45.71, 43.78, 65.32, 51.37, 78.32, 58.25, 59.21, 62.80),
    ("Qwen-72B-Chat", 83.87, 90.64, 53.10, 52.89, 83.29, 73.15, 91.53, 73.44, 63.82, 73.97),
    ("GPT-4-Turbo", 84.57, 93.11, 56.48, 53.05, 81.39, 80.11, 89.73, 81.69, 75.10, 77.25),
    ("GPT-3.5-Turbo", 73.17, 73.82, 52.44, 45.49, 73.03, 59.72, 81.59, 76.79, 54.16, 65.58),
    ("Qwen-Max", 82.04, 93.34, 61.14, 52.36, 76.45, 72.65, 87.22, 72.14, 52.19, 72.17),
    ("Xingchen-Plus", 85.43, 91.60, 55.44, 60.73, 82.43, 80.69, 94.27, 86.69, 77.26, 79.39),
    ("Baichuan-NPC-Turbo", 53.69, 61.67, 52.14, 43.34, 76.47, 22.40, 62.09, 48.97, 34.59, 50.59),
    ("Baichuan-2-Turbo", 77.75, 83.35, 55.70, 47.38, 80.11, 78.91, 87.37, 74.71, 68.50, 72.64),
    ("CharGLM-3", 74.70, 79.41, 26.23, 41.27, 81.16, 68.29, 84.40, 70.45, 36.36, 62.47),
    ("GLM-3-Turbo", 77.85, 84.62, 35.58, 53.05, 74.64, 71.68, 84.41, 67.47, 54.55, 67.09),
    ("Minimax-abab5.5s", 36.09, 42.11, 28.15, 47.97, 29.55, 19.30, 44.59, 41.04, 22.45, 34.58),
    ("Minimax-abab6", 82.92, 87.45, 35.90, 51.38, 83.60, 80.26, 89.12, 79.55, 74.65, 73.87),
))
# fmt: on
INDIVIDUAL = 6  # dimensions that are of one role; the others are of groups


def recomputed() -> list[dict[str, str]]:
    """Each row's mean by `average` beside the printed one."""
    rows = []
    for one in PUBLISHED:
        mean = average({name: Cell(score, 1, 0, 0) for name, score in zip(DIMENSIONS, one.scores, strict=True)})
        assert mean is not None
        told = {"model": one.model, "Avg printed": f"{one.mean:.2f}", "re-computed": f"{mean:.4f}"}
        rows.append(told | {"agrees to 0.01": "yes" if abs(mean - one.mean) <= 0.01 else "no"})
    return rows


def individual_against_group() -> float:
    """Spearman's rank correlation of the mean individual with the mean group score, over the published models."""
    alone = [sum(one.scores[:INDIVIDUAL]) / INDIVIDUAL for one in PUBLISHED]
    together = [sum(one.scores[INDIVIDUAL:]) / (len(DIMENSIONS) - INDIVIDUAL) for one in PUBLISHED]
    return float(stats.spearmanr(alone, together).statistic)
