"""Folders as people and web sites lay them out: each has one right reading, or is refused with all readings."""

import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.rows import parse_split, split_of_name
from flowers_torch.errors import DataError

BOTH = ("a/1.jpg", "b/1.jpg")


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "JPEG")
    return root


def put_in(root: Path, *folders: str, images: tuple[str, ...] = BOTH) -> Path:
    return put(root, *(f"{folder}/{name}" for folder in folders for name in images))


def splits(root: Path, **options: str) -> dict[str, int]:
    found = list(find_images(root, **options).split.values())
    return {split: found.count(split) for split in sorted(set(found))}


TRAIN = "train Train TRAINING train_images train_data Train_Set training_set trainset seg_train trainImages train2017"
VAL = "val VALID validation val_images validation_set dev valid_data"
TEST = "test Testing test_set testset seg_test Test1"


def test_names_of_splits() -> None:
    for split, names in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        for name in names.split():
            assert split_of_name(name) == split, name
    assert split_of_name("1. train") == "train" and split_of_name("Hold-out Set") == "test"
    assert parse_split("flowers_train") == ("train", "flowers")
    for name in "trains contest testament devil validity latest train_test_split value evaluator rose".split():
        assert split_of_name(name) == "", name


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("seg_train/seg_train seg_test/seg_test", {"train": 2, "test": 2}),
        ("training_set/training_set test_set/test_set", {"train": 2, "test": 2}),
        ("1.train 2.val 3.test", {"train": 2, "val": 2, "test": 2}),
        ("flowers_train flowers_valid", {"train": 2, "val": 2}),
        ("data/archive/Train data/archive/Test", {"train": 2, "test": 2}),
        ("train eval", {"train": 2, "test": 2}),
        ("training validation evaluation", {"train": 2, "val": 2, "test": 2}),
        ("train test holdout", {"train": 2, "val": 2, "test": 2}),
        ("train/images test/images", {"train": 2, "test": 2}),
    ],
)
def test_splits_by_folder(tmp_path, folders, expected) -> None:
    root = put_in(tmp_path, *folders.split())
    assert splits(root) == expected
    assert find_images(root).classes == ("a", "b")
    assert len({find_images(root).layout, "one folder per class"}) == 2


def test_splits_inside_of_classes(tmp_path) -> None:
    put(
        tmp_path,
        *(f"{name}/{split}/{i}.jpg" for name in ("rose", "tulip") for split in ("train", "test") for i in (1, 2)),
    )
    dataset = find_images(tmp_path)
    assert dataset.classes == ("rose", "tulip") and splits(tmp_path) == {"train": 4, "test": 4}
    assert dataset.layout == "one folder per class, each with train, test"


def test_other_folders_beside_splits_are_named(tmp_path) -> None:
    put_in(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
    put(tmp_path, "seg_pred/seg_pred/1.jpg", "seg_pred/seg_pred/2.jpg", "readme.jpg")
    dataset = find_images(tmp_path)
    assert len(dataset) == 4 and "seg_pred" in dataset.unused[0] and "2 photos" in dataset.unused[0]


@pytest.mark.parametrize("inner", ["", "test/", "unknown/"])
def test_a_test_folder_of_unlabeled_photos_is_named_and_left_out(tmp_path, inner) -> None:
    put_in(tmp_path, "train")
    put(tmp_path, f"test/{inner}1.jpg", f"test/{inner}2.jpg")
    dataset = find_images(tmp_path)
    assert dataset.split == {} and len(dataset) == 2  # test is drawn from train
    assert f"flowers-torch predict RUN {tmp_path / 'test'}" in dataset.unused[0] and "2 photos" in dataset.unused[0]
    assert any("no test folder with classes" in note for note in dataset.notes)


def test_train_alone(tmp_path) -> None:
    put_in(tmp_path, "train")
    dataset = find_images(tmp_path)
    assert dataset.classes == ("a", "b") and dataset.layout == "one folder per class in train"


def test_folders_whose_names_say_that_they_are_unlabeled(tmp_path) -> None:
    put(tmp_path, *BOTH, "unlabelled/1.jpg", "to_predict/2.jpg")
    dataset = find_images(tmp_path)
    assert dataset.classes == ("a", "b")
    assert [thing.split()[0] for thing in dataset.unused] == ["to_predict", "unlabelled"]
    assert len(find_images(tmp_path, classes="top").classes) == 4
    put_in(tmp_path / "split", "train", "test")
    put(tmp_path / "split", "train/unlabeled/9.jpg")
    dataset = find_images(tmp_path / "split")
    assert dataset.classes == ("a", "b") and dataset.unused[0].startswith("train/unlabeled")


def test_a_folder_that_may_be_a_class_or_a_split_is_refused(tmp_path) -> None:
    put_in(tmp_path, "train", images=(*BOTH, "test/1.jpg"))
    with pytest.raises(DataError, match="test beside a, b .*--classes top .*--exclude class:test"):
        find_images(tmp_path / "train")


def test_a_hierarchy_is_refused_with_its_readings(tmp_path) -> None:
    put(tmp_path, *(f"{name}/{i}.jpg" for name in ("animals/cat", "animals/dog", "plants/rose") for i in (1, 2)))
    with pytest.raises(DataError) as error:
        find_images(tmp_path)
    for text in ("hierarchy", "2 classes by the outer folders (animals (4), plants (2))", "--classes top", "3 classes"):
        assert text in str(error.value), text
    assert "--classes path" not in str(error.value)  # sorts the photos as leaf does
    assert find_images(tmp_path, classes="leaf").classes == ("cat", "dog", "rose")
    assert find_images(tmp_path, classes="top").counts() == [4, 2]
    assert find_images(tmp_path, classes="path").classes == ("animals_cat", "animals_dog", "plants_rose")
    put(tmp_path, "animals/0.jpg")
    with pytest.raises(DataError, match="several ways"):
        find_images(tmp_path)


def test_folds_are_refused_with_their_readings(tmp_path) -> None:
    put_in(tmp_path, "fold1", "fold2", "fold3")
    with pytest.raises(DataError, match="fold1, fold2, fold3 hold the same folders, as splits and folds do") as error:
        find_images(tmp_path)
    assert "2 classes by the inner folders (a (3), b (3)) with --classes leaf" in str(error.value)
    assert find_images(tmp_path, classes="leaf").labels == (0, 0, 0, 1, 1, 1)
    assert len(find_images(tmp_path, classes="path").classes) == 6


def test_a_hierarchy_in_splits(tmp_path) -> None:
    inner = ("animals/cat/1.jpg", "animals/dog/1.jpg", "plants/rose/1.jpg")
    put_in(tmp_path, "train", "val", images=inner)
    with pytest.raises(DataError, match="train can be read in several ways"):
        find_images(tmp_path)
    assert splits(tmp_path, classes="leaf") == {"train": 3, "val": 3}
    assert find_images(tmp_path, classes="leaf").classes == ("cat", "dog", "rose")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("cats/cats/1.jpg dogs/dogs/1.jpg", ("cats", "dogs")),  # each class in a folder of its own name
        ("cats/images/1.jpg dogs/images/1.jpg", ("cats", "dogs")),
        ("cats/1.jpg dogs/raw/1.jpg", ("cats", "dogs")),
        ("X/X/cats/1.jpg X/X/dogs/1.jpg", ("cats", "dogs")),
        ("X/photos/2024/cats/1.jpg X/photos/2024/dogs/1.jpg", ("cats", "dogs")),
        ("X/cats/1.jpg X/dogs/1.jpg __MACOSX/X/cats/1.jpg .git/1.jpg", ("cats", "dogs")),
        ("X/cats/1.jpg X/dogs/1.jpg loose.jpg", ("cats", "dogs")),
    ],
)
def test_layouts_with_one_reading(tmp_path, names, classes) -> None:
    assert find_images(put(tmp_path, *names.split())).classes == classes


@pytest.mark.parametrize(
    "names",
    [
        "train/cat/1.jpg train/dog/1.jpg extra/1.jpg",
        "rose/plant1/1.jpg rose/plant2/1.jpg tulip/plant3/1.jpg",
        "2023/rose/1.jpg 2023/tulip/1.jpg 2024/rose/1.jpg 2024/tulip/1.jpg",
        "cat/1.jpg dogs/poodle/1.jpg dogs/beagle/1.jpg",
        "apple/healthy/1.jpg apple/rust/1.jpg grape/healthy/1.jpg",
        "test/a/1.jpg test/b/1.jpg val/a/1.jpg val/b/1.jpg",
    ],
)
def test_layouts_with_several_readings_are_refused(tmp_path, names) -> None:
    with pytest.raises(DataError, match="can be read in several ways.*--classes"):
        find_images(put(tmp_path, *names.split()))


def test_photos_without_folders(tmp_path) -> None:
    flat = put(tmp_path / "flat", *(f"{name}{i}.jpg" for name in ("cat.", "dog_", "n0144_") for i in range(3)))
    with pytest.raises(DataError, match=r"3 classes by the file names \(.*--classes name"):
        find_images(flat)
    dataset = find_images(flat, classes="name")
    assert dataset.classes == ("cat", "dog", "n0144") and dataset.counts() == [3, 3, 3]
    put(tmp_path / "split", *(f"train/{name}.{i}.jpg" for name in ("cat", "dog") for i in range(3)), "test1/1.jpg")
    dataset = find_images(tmp_path / "split", classes="name")
    assert dataset.classes == ("cat", "dog") and "test1 (1 photo without a class" in dataset.unused[0]
    (tmp_path / "pets/annotations").mkdir(parents=True)
    shutil.copytree(flat, tmp_path / "pets/images")
    with pytest.raises(DataError, match=r"pets.images holds photos but no class folders.*--classes name"):
        find_images(tmp_path / "pets")
    assert len(find_images(tmp_path / "pets", classes="name")) == 9
    bare = put(tmp_path / "bare", *(f"IMG_{i:04}.jpg" for i in range(5)))
    with pytest.raises(DataError, match="no class folders; expected FOLDER/<class>/<photo>"):
        find_images(bare)
    (tmp_path / "labels.csv").write_text("image_id,label\nIMG_0000,a\nIMG_0001,b\n")
    (tmp_path / "sample_submission.csv").write_text("")
    with pytest.raises(DataError, match=r"fix: name the table of their labels if it is --data \S+labels.csv$"):
        find_images(bare)
    assert len(open_dataset(tmp_path / "labels.csv")) == 2


def test_accents_in_the_names_of_splits_meet(tmp_path) -> None:
    """macOS writes e + accent, other systems one letter."""
    put(tmp_path, "train/\xe9/1.jpg", "train/b/1.jpg", "test/e\u0301/1.jpg", "test/b/1.jpg")
    dataset = find_images(tmp_path)
    assert dataset.classes == ("b", "\xe9") and splits(tmp_path) == {"train": 2, "test": 2}


def test_one_class_is_enough_where_photos_are_added(tmp_path) -> None:
    put(tmp_path, "new/orchid/1.jpg", "again/again/orchid/1.jpg", "deep/orchid/2023/1.jpg", "deep/orchid/2024/1.jpg")
    assert find_images(tmp_path / "new", fewest=1).classes == ("orchid",)
    for name in ("again", "deep"):
        with pytest.raises(DataError, match="several ways"):
            find_images(tmp_path / name, fewest=1)
    assert find_images(tmp_path / "again", fewest=1, classes="leaf").classes == ("orchid",)
    assert find_images(tmp_path / "deep", fewest=1, classes="top").classes == ("orchid",)


@pytest.mark.parametrize(
    ("names", "classes", "unused"),
    [
        (
            "images/001.Crow/1.jpg images/002.Gull/1.jpg parts/x.txt meta/y.txt",
            ("001.Crow", "002.Gull"),
            2,
        ),  # CUB, Food-101
        ("train/n01/images/1.jpg train/n02/images/1.jpg val/images/1.jpg test/images/1.jpg", ("n01", "n02"), 2),
        ("Images/n02-pug/1.jpg Images/n02-hound/1.jpg Annotation/n02-pug/1", ("n02-hound", "n02-pug"), 1),
    ],
)
def test_sets_of_the_web(tmp_path, names, classes, unused) -> None:
    put(tmp_path, *(name for name in names.split() if name.endswith("jpg")))
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    dataset = find_images(tmp_path)
    assert dataset.classes == classes and len(dataset.unused) == unused and dataset.split == {}


def test_archives_are_read_as_folders(tmp_path) -> None:
    put_in(tmp_path / "in", "x/seg_train/seg_train", "x/seg_test/seg_test")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as content:
        for path in (tmp_path / "in").rglob("*.jpg"):
            content.write(path, path.relative_to(tmp_path / "in"))
    dataset = open_dataset(tmp_path / "x.zip", tmp_path / "cache")
    assert dataset.classes == ("a", "b") and set(dataset.split.values()) == {"train", "test"}
    put(tmp_path / "deep", "p/a/1.jpg", "p/b/1.jpg", "q/c/1.jpg")
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as content:
        for path in (tmp_path / "deep").rglob("*.jpg"):
            content.write(path, path.relative_to(tmp_path))
    with pytest.raises(DataError, match="several ways"):
        open_dataset(tmp_path / "deep.zip", tmp_path / "cache")
    assert open_dataset(tmp_path / "deep.zip", tmp_path / "cache", classes="leaf").classes == ("a", "b", "c")
