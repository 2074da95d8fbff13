"""`train` and `resume`: from any data, with any network, with callbacks."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset

from flowers_torch import Classifier, StopTraining, TrainResult, list_models, resume, train
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.python_data import write_dataset
from flowers_torch.errors import DataError, FlowersError, ModelFileError, UsageError
from flowers_torch.models.own import register_module
from flowers_torch.models.registry import REGISTRY, build_network, find_entry

NAMES = ("blue", "green", "red")


def test_from_photos_to_predictions(
    photo_folder: Path, tmp_path: Path, small: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    changes = {"head_only": False, "epochs": (1, 3), "stages.finetune.lr": 0.01}
    result = train(photo_folder, out=tmp_path / "run", callbacks=rows.append, **(small | changes))
    assert result.folder == tmp_path / "run" and result.accuracy > 0.6
    assert result.interval[0] < result.accuracy <= result.interval[1]
    assert [(row["stage"], row["epoch"]) for row in result.history] == [
        ("head", 1), ("finetune", 1), ("finetune", 2), ("finetune", 3)
    ]  # fmt: skip
    assert rows == result.history and result.history[1]["lr"] <= 0.01
    assert capfd.readouterr() == ("", "")  # quiet
    assert len(result.classifier(photo_folder / "red", top=2)) == 20
    assert resume(result.folder, quiet=True) is None


def test_recipes(photo_folder: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    changes = {"model": "", "weights": "", "head_only": False, "size": 24, "epochs": [1]}
    train(photo_folder, recipe="five_animals_convnet", out=tmp_path / "b", **(small | changes))
    assert "small_convnet" in (tmp_path / "b" / "config.toml").read_text()


def test_a_callback_ends_training(
    photo_folder: Path, tmp_path: Path, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def stop(epoch: dict[str, Any]) -> None:
        epoch["val_loss"] = None  # a copy, so this changes nothing
        if epoch["stage"] == "finetune" and epoch["epoch"] == 2:
            raise StopTraining

    caplog.set_level(logging.INFO, "flowers_torch")
    changes = {"head_only": False, "epochs": (1, 9)}
    result = train(photo_folder, out=tmp_path / "run", callbacks=[stop], **(small | changes))
    assert [row["epoch"] for row in result.history] == [1, 1, 2] and result.history[-1]["val_loss"] > 0
    assert (result.folder / "report.html").is_file() and not list(result.folder.glob("resume*"))
    assert "a callback ends training; the best weights are tested" in caplog.text

    def fail(epoch: dict[str, Any]) -> None:
        raise KeyError("a bug of the callback")

    with pytest.raises(KeyError, match="a bug of the callback"):
        train(photo_folder, out=tmp_path / "failed", callbacks=fail, **(small | changes))
    again = resume(tmp_path / "failed", quiet=True, callbacks=stop)
    assert isinstance(again, TrainResult) and len(again.history) == 3


class Photos(Dataset[Any]):
    """A dataset of some other program."""

    def __init__(self, files: list[Path], kind: str) -> None:
        self.files, self.kind = files, kind

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        image = Image.open(self.files[index])
        label: Any = NAMES.index(self.files[index].parent.name)
        if self.kind == "PIL":
            return image, label
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        return (pixels, torch.tensor(label)) if self.kind == "uint8" else (pixels / 255, float(label))


def labels_of(files: list[Path]) -> list[str]:
    return [file.parent.name for file in files]


@pytest.mark.parametrize("kind", ["paths", "texts", "PIL", "uint8", "float", "arrays", "bytes", "subset", "splits"])
def test_data_of_programs(kind: str, files: list[Path], tmp_path: Path) -> None:
    """Every kind gives the same pixels and labels; files are not copied, and the same data gives the same folder."""
    labels: Any = labels_of(files)
    if kind == "paths":
        data: Any = (files, labels)
    elif kind == "texts":
        data = ([os.path.relpath(file) for file in files], np.array(labels))
    elif kind == "arrays":
        data = (np.stack([np.asarray(Image.open(file)) for file in files]), np.arange(60) // 20)
    elif kind == "bytes":
        data = ([file.read_bytes() for file in files], labels)
    elif kind == "subset":
        whole = Photos([*files[::-1]], "PIL")
        data = Subset(Subset(whole, range(59, -1, -1)), range(60))  # type: ignore[arg-type]
    elif kind == "splits":
        groups = {"train": slice(None), "validation": slice(0, None, 3), "test": slice(1, None, 3)}
        data = {name: ([*files[chosen]], labels[chosen]) for name, chosen in list(groups.items())[1:]}
        data["train"] = ([*files[2::3]], labels[2::3])
    else:
        data = Photos(files, kind)
    table = write_dataset(data, tmp_path)
    found = open_dataset(table)
    assert len(found) == 60 and found.counts() == [20, 20, 20]
    names = [found.root / path for path in found.paths]
    if kind in ("paths", "texts", "splits"):
        assert sorted(names) == sorted(files) and not list((table.parent / "images").iterdir())
    else:
        order = np.argsort([path.name for path in names])
        for place, file in zip(order.tolist(), files, strict=True):
            assert np.array_equal(np.asarray(Image.open(names[place])), np.asarray(Image.open(file)))
            assert found.labels[place] == NAMES.index(file.parent.name)
    splits = {"train": 20, "val": 20, "test": 20} if kind == "splits" else {}
    assert {split: list(found.split.values()).count(split) for split in splits} == splits
    assert write_dataset(data, tmp_path) == table and len(list((tmp_path / "datasets").iterdir())) == 1


def test_image_folders_of_torchvision_are_read_without_their_transform(photo_folder: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    found = open_dataset(write_dataset(ImageFolder(photo_folder, transform=lambda image: 1 / 0), tmp_path))
    assert found.classes == NAMES and found.root / found.paths[0] == photo_folder / "blue/0.png"


def test_data_frames(files: list[Path], tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"species": labels_of(files), "plant": range(60), "path": files, "note": [None] * 60})
    found = open_dataset(write_dataset(frame, tmp_path), groups="column:plant")
    assert len(set(found.groups.values())) == 60 and found.classes == NAMES
    frame.loc[3, "species"] = None
    with pytest.raises(DataError, match="no label"):
        open_dataset(write_dataset(frame, tmp_path))
    with pytest.raises(DataError, match="the DataFrame"):
        write_dataset(frame.drop(columns="path"), tmp_path)


class Endless(IterableDataset[Any]):
    """A dataset that only yields."""

    def __iter__(self) -> Iterator[Any]:
        yield None, 0


class DataFrame:
    """Whatever the library."""

    columns = ("file", "label")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (3, "is not a dataset"),
        (([], []), "no images"),
        ((["a.png"], ["x", "y"]), "1 image and 2 labels"),
        ({"trian": ([], [])}, "not the name of a split"),
        (([object()], ["x"]), "is not an image"),
        ((["a.png"], [["x"]]), "is not a class"),
        (([np.full((4, 4, 3), 300)], ["x"]), "values from 300"),
        ((iter(["a.png"]), ["x", "y"]), "1 image and 2 labels"),
        (Endless(), "Endless has no length"),
        ({"train": DataFrame(), "test": DataFrame()}, "a dict of DataFrames is not a dataset"),
    ],
)
def test_data_that_is_none(data: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, UsageError), match=f"{problem}.*; fix: "):
        write_dataset(data, tmp_path)
    assert not list((tmp_path / "datasets").glob("*"))


def test_files_that_do_not_exist(tmp_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="not exist"):
        train((["a.png", "b.png"], ["x", "y"]), out=tmp_path / "run", **small)


@pytest.mark.slow
def test_hugging_face_datasets(files: list[Path], tmp_path: Path, small: dict[str, Any]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    rows = {"image": [str(file) for file in files], "label": [NAMES.index(name) for name in labels_of(files)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    found = open_dataset(write_dataset(data, tmp_path))
    assert found.classes == NAMES and found.counts() == [20, 20, 20]
    both = datasets.DatasetDict({"train": data, "test": data.select([])})
    both.save_to_disk(str(tmp_path / "saved"))
    again = open_dataset(f"hf:{tmp_path / 'saved'}", tmp_path)
    assert again.classes == NAMES and {*again.split.values()} <= {"train"}
    assert open_dataset(f"hf:{tmp_path / 'saved'}", tmp_path).root == again.root
    classes = features["label"]
    two = datasets.Features({"image": datasets.Image(), "fine": classes, "coarse": classes})
    twice = {"image": rows["image"], "fine": rows["label"], "coarse": rows["label"]}
    with pytest.raises(DataError, match=r"several columns of classes; fix: name one of fine, coarse"):
        write_dataset(datasets.Dataset.from_dict(twice, features=two), tmp_path)
    with pytest.raises(FlowersError, match="hf:.*nowhere cannot be loaded"):
        open_dataset(f"hf:{tmp_path / 'nowhere'}", tmp_path)


class OwnNet(nn.Module):
    """A network of some other program, with its last layer in the middle of its attributes."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({"out": nn.Linear(8, classes), "stem": nn.Conv2d(3, 8, 3, stride=2)})
        self.norm, self.unused = nn.BatchNorm2d(8), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.stages["stem"](x)))
        return self.stages["out"](maps.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_network_of_one_s_own(
    photo_folder: Path,
    tmp_path: Path,
    small: dict[str, Any],
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flowers_torch")
    torch.manual_seed(0)
    module = OwnNet()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    out, changes = tmp_path / "run", {"model": module, "head_only": False, "epochs": (1, 2)}
    result = train(photo_folder, out=out, **(small | changes | {"weights": "", "stages.finetune.train": "body.stages"}))
    assert "own:OwnNet, 273 parameters, input 32 px; the weights that it came with" in caplog.text
    trained: Any = result.classifier.network
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(trained.module()(images), trained(images))
    assert set(trained.module().state_dict()) == set(before)
    assert result.classifier.explain(files[0]).size == (32, 32)
    assert Classifier.load(out, "cpu", network=OwnNet())(files[0]).label
    monkeypatch.delitem(REGISTRY, "own:OwnNet")  # as in another process
    with pytest.raises(ModelFileError, match=r"own:OwnNet is a network of a Python program.*network=NETWORK"):
        Classifier.load(out)


def test_a_network_with_the_contract_of_timm_is_used_as_it_is() -> None:
    import timm

    module = timm.create_model("test_resnet", num_classes=5)
    name = register_module(module)
    assert name == "own:ResNet" and find_entry(name).preprocessing.size == 160
    built = build_network(name, 3)
    assert type(built) is type(module) and built(torch.randn(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), "does not compute images of 224 pixels"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "is not linear"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1)), "is not linear"),
    ],
)
def test_modules_that_are_no_classifiers(module: nn.Module, problem: str) -> None:
    with pytest.raises(UsageError, match=f"{problem}.*; fix: "):
        register_module(module)


def test_names_of_networks_by_pattern() -> None:
    assert list_models("resnet5?") == ["resnet50"] and "timm:resnet50" in list_models("*resnet50")
    with_weights = list_models("*vgg1*", pretrained=True)
    assert "vgg16" in with_weights and "vgg11" in with_weights and "happy_model" not in list_models(pretrained=True)


def test_errors_are_those_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown field batchsize"):
        train("demo", batchsize=3)
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "nothing", "test_resnet", "none")
