"""What the served and the offline page know about a model, so that both are unsure of the same photos."""

from collections.abc import Iterable
from typing import Any

from flowers_torch.errors import printable
from flowers_torch.evaluation.prediction_sets import set_threshold, set_thresholds
from flowers_torch.evaluation.selective import choose_threshold, read_curve, thresholds


def page_model(
    classes: Iterable[str], selective: dict[str, Any], max_error: float | None = None, coverage: float | None = None
) -> dict[str, Any]:
    """JSON values for `photo_page.js`: the classes, and what can be promised for new photos.

    Args:
        selective: `curve` and `sets` of the weights file; a model may lack them.
        max_error: The error rate that is selected at first; by default the lowest one that can be promised.
        coverage: The coverage of the sets that are shown at first; by default there are none.

    Raises:
        UsageError: `max_error` or `coverage` cannot be promised.
    """
    curve, sets = selective.get("curve"), selective.get("sets") or {}
    rates = thresholds(read_curve(selective)) if curve else {}
    default = min(rates, default=None)
    coverages = set_thresholds(sets)
    if max_error is not None:
        rates[max_error] = choose_threshold(read_curve(selective), max_error)
    if coverage is not None:
        coverages[coverage] = set_threshold(sets, coverage)
    return {
        "classes": [printable(name) for name in classes],
        "rates": [
            {"rate": rate, "probability": found.probability, "text": found.describe()}
            for rate, found in sorted(rates.items())
        ],
        "rate": default if max_error is None else max_error,
        "coverages": [{"coverage": level, "probability": least} for level, least in sorted(coverages.items())],
        "coverage": coverage,
    }
