"""The package from Python: train, load, predict."""

from pathlib import Path

import pytest

from flowers_torch import load, predict, train
from flowers_torch.errors import DataError, UsageError


def test_from_photos_to_predictions(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(
        photo_folder, "test_resnet", "none", out=tmp_path / "run", size=32, epochs=(1, 3), quiet=True,
        **{"stages.finetune.lr": 0.01, "device": "cpu", "batch_size": 8},
    )  # fmt: skip
    assert result.folder == tmp_path / "run" and result.test.accuracy > 0.6
    assert [(row["stage"], row["epoch"]) for row in result.history] == [
        ("head", 1), ("finetune", 1), ("finetune", 2), ("finetune", 3)
    ]  # fmt: skip
    assert result.history[1]["lr"] <= 0.01 and "plan" not in capsys.readouterr().out
    model = load(result.folder, "cpu")
    assert model.info.classes == ("blue", "green", "red")
    predictions = predict(model, photo_folder / "red", top=2)
    assert len(predictions) == 20 and {len(one.classes) for one in predictions} == {2}
    one, other = predict(result.folder, [photo_folder / "red/0.png", str(photo_folder / "blue/1.png")])
    assert one.file.endswith("red/0.png") and other.file.endswith("blue/1.png")
    assert one.probabilities[:2] == pytest.approx(predictions[0].probabilities, abs=1e-5)


def test_head_only_and_recipes(photo_folder: Path, tmp_path: Path) -> None:
    result = train(photo_folder, "test_resnet", "none", head_only=True, out=tmp_path / "a", size=32)
    assert [row["stage"] for row in result.history] == ["head"]
    result = train(photo_folder, recipe="five_animals_convnet", out=tmp_path / "b", size=24, epochs=[1])
    assert "small_convnet" in (tmp_path / "b" / "config.toml").read_text()
    with pytest.raises(UsageError, match="not empty"):
        train(photo_folder, "test_resnet", "none", out=tmp_path / "a")


def test_errors_are_those_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown field batchsize"):
        train("demo", batchsize=3)
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "nothing", "test_resnet", "none")
    with pytest.raises(UsageError, match="top=0"):
        predict(tmp_path, "x.jpg", top=0)
