"""Where a model comes from: settings to repeat the run, what trained, and the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowers_torch.errors import plural, printable
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.models.freeze import apply_rules, decay_by_layer, freeze_table, rules_for, set_train_mode
from flowers_torch.report.run_summary import RunSummary

CARD_CLASSES = 100  # listed in the model card
LIMITS = (
    "The model always answers with one of its classes, whatever a photo shows. With `--max-error 2%`, "
    '`flowers-torch predict` answers "unsure" instead of guessing. The numbers hold for photos like the test '
    "photos. Other cameras, seasons or surroundings can lower them. The model has not been tested for "
    "decisions about people or health."
)
LICENCE = "The publisher chooses one that the licenses of the pretrained weights and of the photos allow."


def model_card(info: ModelInfo, run: RunSummary | None = None) -> dict[str, str]:
    """Sections of the model card, by heading; without the run the card states that nothing was measured.

    Names are Markdown code spans.
    """
    names = ", ".join(code(name) for name in info.classes[:CARD_CLASSES])
    more = len(info.classes) - CARD_CLASSES
    size, license = info.preprocessing.size, f", license {code(info.license)}" if info.license else ""
    weights = "Random" if info.weights == "none" else code(Path(info.weights).name)
    card = {
        "Task": f"Image classification into {plural(info.classes, 'class')}.",
        "Classes": names + (f" and {more} more" if more > 0 else ""),
        "Network": f"{code(info.arch)}, images of {size} x {size} pixels.",
        "Initial weights": f"{weights}{license}.",
    }
    unknown = {"Accuracy": "Not measured: these weights came without their run."}
    return card | (_measured(info, run) if run else unknown) | {"Limits": LIMITS, "License": LICENCE}


def _measured(info: ModelInfo, run: RunSummary) -> dict[str, str]:
    scores = run.scores
    low, high = scores.interval()
    recalls = zip(scores.by_class()["recall"].tolist(), run.classes, strict=True)
    known = sorted(pair for pair in recalls if pair[0] >= 0)  # NaN for a class without test photos
    weakest = ", ".join(f"{code(name)} {recall:.2f}" for recall, name in known[:3])
    error, temperature = scores.calibration_error, info.temperature
    return {
        "Data": f"{code(run.data)}: {split_counts(run)}.",
        "Accuracy": f"{scores.accuracy:.4f} on {plural(scores.images, 'test photo', form=',')} "
        f"(95% interval {low:.3f} to {high:.3f}).",
        "Lowest recalls": f"{weakest}.",
        "Calibration": f"Expected calibration error {error:.3f} at temperature {temperature:.2f}.",
    }


def code(name: str) -> str:
    """A name from outside as a Markdown code span."""
    return f"`{printable(name, 80).replace('`', chr(39)).replace('|', '/')}`"


def split_counts(run: RunSummary) -> str:
    """How many photos each split has."""
    train, val, test = (len(run.split[split]) for split in ("train", "val", "test"))
    return (
        f"{train:,} training, {val:,} validation and {plural(test, 'test photo', form=',')}; no photo is in two splits"
    )


def settings(run: RunSummary) -> dict[str, list[list[Any]]]:
    """Tables of settings: a name, then its values."""
    names = dict.fromkeys(key for stage in run.stages for key in stage)
    others = {k: v for k, v in run.config.items() if k not in ("stages", "model_options")}
    return {
        "Stages": [[name, *(stage.get(name, "") for stage in run.stages)] for name in names],
        "Other settings": [*map(list, others.items())],
        "Versions and machine": [*map(list, run.environment.items())],
    }


def freeze_tables(stages: Sequence[dict[str, Any]], model: nn.Module) -> dict[str, str]:
    """What trains in each stage, as training printed it; the network is left in inference mode."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    tables = {}
    for stage in stages:
        rules = [(pattern, rate) for pattern, rate in stage.get("rules", [])]
        groups = apply_rules(model, rules or rules_for(model, stage["train"]))
        groups = decay_by_layer(groups, stage.get("layer_decay", 1.0))
        set_train_mode(model, stage.get("batch_norm", "trained"))
        tables[stage["name"]] = freeze_table(model, groups, stage.get("lr"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    model.eval()
    return tables
