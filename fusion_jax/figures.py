"""The look of all figures: one hue from light to dark for what follows on each other, grey for what is compared with.

Colours are told apart by people who see few of them: blues differ in lightness, several equals take Okabe and Ito's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PALE = "#333333", "#d9d9d9"
EQUALS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito 2008
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_LIGHT, _DARK = np.array([0.64, 0.80, 0.93]), np.array([0.07, 0.28, 0.58])


def new_figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its panels from left to right and top to bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def tidy(axes: Axes, title: str = "", *, x: str = "", y: str = "", legend: bool | None = None) -> None:
    """Labels that can be read, a faint grid, no frame; a legend where there are several lines.

    Args:
      legend: whether there is one; None: where more than one thing has a label.
    """
    axes.set_title(title, fontsize=12, loc="left", color=INK)
    axes.set_xlabel(x, fontsize=10.5)
    axes.set_ylabel(y, fontsize=10.5)
    axes.tick_params(labelsize=10, colors=INK, length=3)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend if legend is not None else len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=9.5, frameon=False)


def hue(count: int) -> list[str]:
    """So many blues from light to dark; one alone is a middle one."""
    from matplotlib.colors import to_hex

    at = np.array([0.6]) if count == 1 else np.linspace(0, 1, count)
    return [to_hex(_LIGHT + (_DARK - _LIGHT) * t) for t in at]


def greys(count: int) -> list[str]:
    """So many greys from light to dark."""
    from matplotlib.colors import to_hex

    return [to_hex((g, g, g)) for g in ([0.7] if count == 1 else np.linspace(0.82, 0.5, count))]


def smoothed(values: Sequence[float]) -> np.ndarray:
    """The running mean over a tenth of a curve, centred; at its ends over what is there."""
    curve = np.asarray(values, float)
    half = max(len(curve) // 20, 1)
    sums = np.concatenate([[0.0], np.cumsum(curve)])
    low = np.clip(np.arange(len(curve)) - half, 0, None)
    high = np.clip(np.arange(len(curve)) + half + 1, None, len(curve))
    return (sums[high] - sums[low]) / (high - low)


def training_curve(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, label: str) -> None:
    """A noisy curve: light as it is, its running mean over it; few points as points."""
    if len(values) < 8:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=4, label=label)
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, smoothed(values), color=colour, linewidth=1.8, label=label)


def measured_curve(
    axes: Axes,
    at: Sequence[float],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    label: str,
) -> None:
    """A curve of measurements with the intervals they have, as a band."""
    axes.plot(at, values, color=colour, linewidth=1.4, linestyle="--", marker="o", markersize=4, label=label)
    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
