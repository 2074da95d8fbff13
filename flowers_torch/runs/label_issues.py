"""What the features of all photos tell about the data: doubtful labels, and what more photos would bring.

The features come from the network as it was before training. After training it knows its training photos by
heart, wrong labels included.
"""

import dataclasses
from typing import Any

import torch

from flowers_torch.data.splits.assign import group_units
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.learning_curve import learning_curve, more_photos_help, out_of_fold
from flowers_torch.evaluation.label_issues import find_label_issues
from flowers_torch.files.atomic import write_json
from flowers_torch.runs.feature_cache import pooled_features
from flowers_torch.models.checkpoint import build
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.runs.experiment import Run, open_filtered
from flowers_torch.report.run_summary import LABEL_ISSUES_FILE
from flowers_torch.log import log


def find_run_label_issues(run: Run) -> dict[str, Any]:
    """Computes the features of all photos once and writes `insight.json` into the run folder.

    Args:
        run: Finished, from `results.open_run`.

    Returns:
        `curve` and `more_photos` (would they help?), `suspects` (most doubtful first), `photos` (in all).
    """
    admission = open_filtered(run.config)
    photos = admission.photos
    torch.manual_seed(run.config.seed)  # fresh weights as training began with
    model = build(run.info)
    plan = plan_weights(run.config.arch, run.config.weights or "imagenet", run.config.keras_input)
    told = load_weights(model, run.config.arch, plan)
    log.info(f"features of {len(photos)} photos; {told}")
    untrained = dataclasses.replace(run, model=run.runtime.place(model), photos=photos)
    features, labels = pooled_features(untrained, range(len(photos))), torch.tensor(photos.labels)
    if features is None:
        what = f"{run.info.arch} cannot be cut in front of its classifier, or features exceed cache_gib"
        raise UsageError(what, "train another network on these photos")
    units, classes = group_units(photos, admission.duplicates), len(photos.classes)
    curve = learning_curve(features, labels, classes, units=units)
    probabilities = out_of_fold(features, labels, classes, units=units)
    found = {
        "photos": len(photos),
        "curve": [dataclasses.asdict(point) for point in curve],
        "more_photos": more_photos_help(curve),
        "suspects": [
            {
                "file": photos.paths[suspect.index],
                "label": photos.classes[suspect.label],
                "looks_like": photos.classes[suspect.better],
                "probability": suspect.other,
                "probability_of_label": suspect.own,
            }
            for suspect in find_label_issues(probabilities, labels)
        ],
    }
    write_json(run.folder / LABEL_ISSUES_FILE, found)
    return found
