"""Simulates what `--max-error` promises: the true error on new images, with the choice of the threshold included.

    python benchmarks/max_error.py --trials 1000

A row for each wish and accuracy, a column for each number of validation images: mean true error over all trials (one in
which nothing is promised counts as 0), fraction of trials with a promise, and of those whose 95% limit failed.
Probabilities are calibrated; their logits are normal with a standard deviation of 2, or of 1 for a model that hardly
knows which of its predictions are wrong.
"""

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from flowers_torch.errors import UsageError
from flowers_torch.evaluation.selective import choose_threshold, risk_coverage_curve

WISHES = (0.01, 0.02, 0.05)
ACCURACIES = (0.65, 0.8, 0.9, 0.97)
IMAGES = (60, 100, 200, 500, 1000)


def probabilities_of(accuracy: float, deviation: float, draw: np.random.Generator) -> NDArray[np.float64]:
    """Probabilities of being correct of very many images, with this mean."""
    scores, low, high = draw.normal(0, deviation, 200_000), -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        found = 1 / (1 + np.exp(-scores - middle))
        low, high = (middle, high) if found.mean() < accuracy else (low, middle)
    return found


def simulate(
    probabilities: NDArray[np.float64], images: int, wish: float, trials: int, draw: np.random.Generator
) -> tuple[list[float], int]:
    """The true error of each trial with a promise, and in how many the 95% limit failed."""
    order = np.sort(probabilities)[::-1]
    rates = np.cumsum(1 - order) / np.arange(1, len(order) + 1)  # true error of the first k
    errors: list[float] = []
    failed = 0
    for _ in range(trials):
        confidence = draw.choice(probabilities, images)
        correct = draw.random(images) < confidence
        curve = risk_coverage_curve(torch.from_numpy(confidence), torch.from_numpy(correct))
        try:
            chosen = choose_threshold(curve, wish)
        except UsageError:
            continue
        errors.append(float(rates[max(np.searchsorted(-order, -chosen.probability, side="right") - 1, 0)]))
        failed += errors[-1] > chosen.bound()
    return errors, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    print("| wish | accuracy | logits | " + " | ".join(f"{images} photos" for images in IMAGES) + " |")
    print("|" + "---|" * (3 + len(IMAGES)))
    for deviation in (2.0, 1.0):
        for accuracy in ACCURACIES:
            probabilities = probabilities_of(accuracy, deviation, draw)
            for wish in WISHES:
                cells = []
                for images in IMAGES:
                    errors, failed = simulate(probabilities, images, wish, args.trials, draw)
                    counts = (sum(errors), len(errors), failed)
                    error, promised, beyond = (count / args.trials for count in counts)
                    cells.append(f"{error:.2%}, {promised:.0%}, {beyond:.1%}")
                print(f"| {wish:.0%} | {accuracy:.2f} | {deviation:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
