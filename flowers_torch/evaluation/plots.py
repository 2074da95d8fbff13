"""Figures as files. Matplotlib is an extra; without it the numbers are still in history.csv."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.files import atomic_write


def plot_curves(history: list[dict[str, Any]], path: Path) -> bool:
    """Draws loss and accuracy over the epochs, with a line where a stage begins.

    Returns:
        Whether it drew: False where Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    epochs = range(1, len(history) + 1)
    starts = [i for i in range(1, len(history)) if history[i]["stage"] != history[i - 1]["stage"]]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", "tab:grey"), ("val", "tab:blue")):
            values = [row[f"{part}_{quantity}"] for row in history]
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=part)
        for start in starts:
            axes.axvline(start + 0.5, color="black", linewidth=0.8, linestyle=":")
            axes.text(
                start + 0.55, 0.98, history[start]["stage"], transform=axes.get_xaxis_transform(), va="top"
            )
        axes.set_xlabel("epoch")
        axes.set_title(quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def plot_sweep(rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Path) -> bool:
    """Draws the loss over growing learning rates, with a line at the one suggested.

    Returns:
        Whether it drew: False where Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses, color="tab:blue")
    axes.axvline(suggestion, color="black", linewidth=0.8, linestyle=":")
    axes.text(suggestion, 0.98, f" {suggestion:g}", transform=axes.get_xaxis_transform(), va="top")
    axes.set_ylim(top=2 * losses[0] - min(losses))  # the blow-up at the end must not flatten the rest
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, smoothed")
    axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True
