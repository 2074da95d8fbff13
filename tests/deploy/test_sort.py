"""Sorting of images by predicted class."""

import os
from pathlib import Path

import pytest

from flowers_torch.deploy.predictor import OUT_OF_DISTRIBUTION, Prediction
from flowers_torch.deploy.sort import check_folder, folder_name, folder_names, sort_into
from flowers_torch.errors import ResourceError, UsageError

NAMES = {name: name for name in ("rose", "iris", "a")}


def test_links_by_class_and_again(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_text(folder)
    out = tmp_path / "out"
    predictions = [
        Prediction(str(tmp_path / "a" / "1.jpg"), ("rose",), (0.9,)),
        Prediction(str(tmp_path / "b" / "1.jpg"), ("rose",), (0.9,)),
        Prediction(str(tmp_path / "b" / "1.jpg"), ("iris",), (0.4,), reason=OUT_OF_DISTRIBUTION),
        Prediction("https://example.org/x/2.jpg", ("iris",), (0.8,)),
        Prediction(str(tmp_path / "a" / "gone.jpg"), error="it is gone"),
    ]
    paths = [sort_into(out, prediction, NAMES) for prediction in predictions]
    assert [str(path.relative_to(out)) for path in paths] == [
        "rose/1.jpg",
        "rose/1-2.jpg",
        "unsure/1.jpg",
        "iris/2.jpg.txt",
        "unreadable/gone.jpg",
    ]
    assert paths[1].read_text() == "b" and paths[1].is_symlink()
    assert paths[3].read_text() == "https://example.org/x/2.jpg\n"
    assert [sort_into(out, prediction, NAMES) for prediction in predictions[:2]] == paths[:2]  # already linked


@pytest.mark.needs("links")
def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, elsewhere, out = tmp_path / "1.jpg", tmp_path / "elsewhere", tmp_path / "out"
    photo.write_text("photo")
    elsewhere.mkdir()
    out.mkdir()
    (out / "rose").symlink_to(elsewhere)
    (out / "unsure").symlink_to(tmp_path / "none")
    for prediction in (Prediction(str(photo), ("rose",), (0.9,)), Prediction(str(photo), ("a",), (0.1,), reason="x")):
        with pytest.raises(ResourceError, match="is a link to another folder"):
            sort_into(out, prediction, NAMES)
    assert not list(elsewhere.iterdir()) and not (tmp_path / "none").exists()

    def made_in_this_moment(image: Path, path: Path) -> None:
        real(elsewhere / "new", path)
        real(image, path)

    real = os.symlink
    monkeypatch.setattr(os, "symlink", made_in_this_moment)
    with pytest.raises(ResourceError, match="cannot sort"):
        sort_into(out, Prediction(str(photo), ("iris",), (0.9,)), NAMES)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("rose", "rose"),
        ("../../etc", "_.._etc"),
        ("a/b\x1b", "a_b_"),
        ("unsure", "unsure_class"),
        ("..", "_"),
        ("Lílium ×", "Lílium ×"),
    ],
)
def test_class_names_stay_inside_the_folder(label: str, name: str, tmp_path: Path) -> None:
    assert folder_name(label) == name
    path = sort_into(tmp_path, Prediction(__file__, (label,), (1.0,)), folder_names([label]))
    assert path.parent.parent == tmp_path and ".." not in path.relative_to(tmp_path).parts


def test_the_photos_own_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_text("x")
    with pytest.raises(UsageError, match="the photos themselves"):
        check_folder(tmp_path, [tmp_path / "1.jpg"])
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "1.jpg", [])
    check_folder(tmp_path / "sorted", [tmp_path / "1.jpg"])


def test_classes_with_similar_names_have_folders_of_their_own() -> None:
    classes = ["rose/red", "rose:red", "L" * 300, "L" * 200, "Rose", "rose", "\xe9", "e\u0301", "rose-2", "..", "..."]
    folders = folder_names(classes)
    assert len({name.casefold() for name in folders.values()}) == len(classes)
    assert folders["rose/red"] == "rose_red" and folders["rose:red"] == "rose_red-2"
    assert folders["rose"] == "rose-2" and folders["rose-2"] == "rose-2-2"
