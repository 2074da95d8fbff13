"""A packed model: what is given away loads, tells the truth about itself, and is noticed when it changes."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import to_toml
from flowers_torch.data.splits.split_file import SPLIT_FORMAT
from flowers_torch.deploy.hub import flowers_classifier
from flowers_torch.deploy.pack import card_text
from flowers_torch.errors import ModelFileError
from flowers_torch.evaluation.predictions import Predictions, save_predictions
from flowers_torch.files.atomic import write_json
from flowers_torch.models.checkpoint import save_classifier
from flowers_torch.report.provenance import code


def test_a_packed_model_loads_through_torch_hub(small: Any, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "packed"
    assert main(["pack", str(small.file), "--out", str(folder)]) == 0
    assert len(re.findall("^pack ", capsys.readouterr().out, re.M)) == 4
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "README.md",
        "hubconf.py",
        "SHA256SUMS",
    }
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    images = torch.randn(2, 3, 32, 32)
    loaded = torch.hub.load(str(folder), "classifier", source="local", trust_repo=True)
    with torch.inference_mode():
        expected = small.network(images)
        assert torch.equal(loaded(images), expected)
        assert torch.equal(flowers_classifier(checkpoint=str(folder))(images), expected)
    assert loaded.classes == small.info.classes
    assert loaded.transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)

    changed = {name: value + 1 for name, value in small.network.state_dict().items()}
    save_classifier(changed, small.info, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match="has sha256 .* expected"):
        torch.hub.load(str(folder), "classifier", source="local", trust_repo=True)


def test_the_card_tells_what_was_measured_and_no_more(small: Any, tmp_path: Path) -> None:
    run = finished(small, tmp_path / "run")
    assert main(["pack", str(run)]) == 0
    text = (run / "packed" / "README.md").read_text()
    for told in (
        "`garden`: 3 training, 2 validation and 4 test photos",
        "0.7500 on 4 test photos (95% interval 0.301 to 0.954)",
        "## Lowest recalls",
        "license `mit`",
        "## Limits",
        hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
    ):
        assert told in text
    assert "/a/private/place" not in text and str(tmp_path) not in text
    assert "Not measured" in card_text(small.info, "0" * 64)


def test_names_in_a_card_are_shown_as_they_are(small: Any) -> None:
    text = card_text(small.info, "0" * 64)
    assert "`</script><img src=x onerror=window.hacked=1>`" in text and "\x1b" not in text and "\u202e" not in text
    assert code("a`b|c\nd") == "`a'b/c\\nd`"


def test_other_things_are_left_alone(small: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["pack", str(small.file), "--out", str(tmp_path)]) == 2
    assert "holds other things; fix: name a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert main(["pack", str(small.file), "--out", str(tmp_path / "thesis.tex")]) == 2


def test_an_unfinished_run_has_no_card(small: Any, tmp_path: Path, capsys: Any) -> None:
    run = finished(small, tmp_path / "run")
    (run / "metrics.json").unlink()
    assert main(["pack", str(run)]) == 3
    assert "the card needs a finished run" in capsys.readouterr().err and not (run / "packed").exists()


def finished(small: Any, folder: Path) -> Path:
    """A run folder whose test was right three times out of four."""
    save_classifier(small.network.state_dict(), small.info, folder / "model.safetensors")
    stages = [Stage(name="head", train="head")]
    (folder / "config.toml").write_text(to_toml(Config(arch="cifar_resnet", size=32, stages=stages), "test"))
    names = {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f", "g", "h", "i"]}
    write_json(
        folder / "split.json",
        {
            **{"format": SPLIT_FORMAT, "data": "garden", "seed": 0, "classes": list(small.info.classes)},
            "splits": {split: dict.fromkeys(paths, "0") for split, paths in names.items()},
        },
    )
    write_json(folder / "metrics.json", json.loads("{}"))
    logits = torch.eye(3)[[0, 1, 2, 0]] * 5
    predictions = {"val": Predictions(logits[:2].clone(), torch.tensor([0, 1]), torch.empty(2, 0))}
    predictions["test"] = Predictions(logits, torch.tensor([0, 1, 2, 2]), torch.empty(4, 0))
    splits = {split: (names[split], found) for split, found in predictions.items()}
    save_predictions(folder, small.info.classes, 0.5, splits)
    return folder
