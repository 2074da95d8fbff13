"""Labels from CSV files as written by people and spreadsheets."""

import os

import pytest
from PIL import Image

from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.tables import read_groups, read_table
from flowers_torch.data.splits.assign import group_units, split_dataset
from flowers_torch.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in ("in/1.jpg", "in/2.jpg", "in/10.jpg", "a b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def table(root, text: str, encoding: str = "utf-8"):
    (root / "labels.csv").write_bytes(text.encode(encoding))
    return root / "labels.csv"


GOOD = "file,label\nin/10.jpg,rose\nin/2.jpg,class10\na b.jpg,class2\nin/1.jpg,rose\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t").replace("\n", "\r\n"),
        GOOD.replace("file,label", "\ufeffPath,Class"),
        GOOD.replace("in/", "in\\"),
        'label,other,filename\n"rose",x,in/1.jpg\nrose,,in/10.jpg\nclass10,,in/2.jpg\nclass2,,"a b.jpg"\n\n',
    ],
)
def test_tables_as_they_come(root, text):
    dataset = read_table(table(root, text))
    assert dataset.classes == ("class2", "class10", "rose") and dataset.name == "labels"
    assert dataset.paths == ("a b.jpg", "in/1.jpg", "in/2.jpg", "in/10.jpg")
    assert dataset.labels == (0, 2, 1, 2) and dataset.split == {} and dataset.root == root
    assert open_dataset(root / "labels.csv") == dataset


def test_split_and_group_columns(root):
    text = "file,label,split,group\nin/1.jpg,a,Train,p\nin/2.jpg,b,training,\n"
    text += "in/10.jpg,a,validation,p\na b.jpg,b,dev,q\n"
    dataset = read_table(table(root, text))
    assert dataset.split == {"a b.jpg": "val", "in/1.jpg": "train", "in/2.jpg": "train", "in/10.jpg": "val"}
    assert dataset.groups == {"in/1.jpg": "p", "in/10.jpg": "p", "a b.jpg": "q"}
    assert group_units(dataset) == [0, 1, 2, 1] and group_units(dataset, [[0, 3]]) == [0, 0, 2, 0]


def test_one_class_is_enough_for_an_update(root):
    path = table(root, "file,label\nin/1.jpg,a\n")
    assert open_dataset(path, fewest=1).classes == ("a",)
    with pytest.raises(DataError, match="holds one class only"):
        open_dataset(path)


def test_excluded_photos_are_left_out_and_named(root):
    rows = ["in/1.jpg,a,", "in/2.jpg,b,no", "in/10.jpg,c,YES", "gone.jpg,,true", "a b.jpg,a,1"]
    dataset = read_table(table(root, "\n".join(["file,label,exclude", *rows])))
    assert dataset.paths == ("in/1.jpg", "in/2.jpg") and dataset.classes == ("a", "b")
    assert "3 photos left out by column exclude: in/10.jpg, gone.jpg, a b.jpg" in dataset.notes
    assert "classes left without photos: c" in dataset.notes and dataset.layout == "table with file, label, exclude"
    with pytest.raises(DataError, match="line 2: column Excluded holds 'perhaps': expected yes or no"):
        read_table(table(root, "file,label,Excluded\nin/1.jpg,a,perhaps\nin/2.jpg,b,\n"))
    with pytest.raises(DataError, match="leaves out every photo by its column exclude; fix: change it"):
        read_table(table(root, "file,label,exclude\nin/1.jpg,a,x\n".replace(",x", ",yes")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no photos"),
        ("file,label\n", "no photos"),
        ("where,label\nin/1.jpg,a\n", "no column for the file, only where, label"),
        ("file,what\nin/1.jpg,a\n", "no column for the label"),
        ("file,path,label\nin/1.jpg,x,a\n", "several columns for the file"),
        ("file,label\nin/1.jpg,a\nin/2.jpg,\n", "line 3: no label"),
        ("file,label\nin/1.jpg,a\nin/2.jpg\n", "line 3: no label"),
        ("file,label\n../x.jpg,a\n", "1 of 1 photo .*does not exist"),
        (f"file,label\n{os.path.abspath(__file__)},a\n", "labels.csv is not in its folder, and not a photo"),
        ("file,label\nin/1.jpg,a\nin/3.jpg,b\nin/4.jpg,b\n", "2 of 3 photos.*in/3.jpg"),
        ("file,label\nin/1.jpg,a\nin/1.jpg,b\n", "line 3.*another label or split"),
        ("file,label\nin/1.jpg,a\nin/2.jpg,a\n", "one class|1 class only"),
        ("file,label,split\nin/1.jpg,a,train\nin/2.jpg,b,later\n", "line 3: split 'later'"),
        ("file,label,split\nin/1.jpg,a,train\nin/2.jpg,b,\n", "line 3: split ''"),
        ('file,label\n"in/1.jpg,a\n', "line"),
        ("file,label,split\nin/1.jpg,a,train\nin/2.jpg,b,train\nin/10.jpg,a,val\n", "val.*missing b"),
        ("file,label,split\nin/1.jpg,a,test\nin/2.jpg,b,test\n", "no photo as train"),
    ],
)
def test_errors_name_the_line(root, text, message):
    with pytest.raises(DataError, match=message) as error:
        read_table(table(root, text))
    assert "labels.csv" in str(error.value)


def test_a_missing_table(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.csv"):
        read_table(tmp_path / "none.csv")


def test_a_repeated_line_is_noted(root):
    dataset = read_table(table(root, GOOD + "in/1.jpg,rose\n"))
    assert len(dataset) == 4 and dataset.notes == ("photos that are listed more than once: in/1.jpg",)


def test_groups_for_class_folders(tmp_path):
    for i in range(20):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    dataset = find_images(tmp_path / "set")
    lines = [f"{path},plant{i // 3}" for i, path in enumerate(dataset.paths[:9])]
    (tmp_path / "groups.csv").write_text("\n".join(["file,group", *lines]))
    groups = read_groups(tmp_path / "groups.csv", dataset)
    assert len(set(groups.values())) == 3
    import dataclasses

    grouped = dataclasses.replace(dataset, groups=groups)
    for seed in range(5):
        splits = split_dataset(grouped, seed=seed)
        for name in set(groups.values()):
            members = {i for i, path in enumerate(dataset.paths) if groups.get(path) == name}
            assert sum(bool(members & set(indices)) for indices in splits.values()) == 1
    (tmp_path / "groups.csv").write_text("file,group\na/none.jpg,x\n")
    with pytest.raises(DataError, match="line 2: a/none.jpg is not a photo of"):
        read_groups(tmp_path / "groups.csv", dataset)
    (tmp_path / "groups.csv").write_text("file,plant\na/0.jpg,x\n")
    with pytest.raises(DataError, match="file and group"):
        read_groups(tmp_path / "groups.csv", dataset)


def test_numbers_and_names_of_any_length(root):
    numbers = ["9" * 5000, "10" * 2500, "7"]  # Python converts 4,300 digits at most
    rows = "".join(
        f"{name},{label}\n" for name, label in zip(("in/1.jpg", "in/2.jpg", "a b.jpg"), numbers, strict=True)
    )
    assert read_table(table(root, "file,label\n" + rows)).classes == ("7", "10" * 2500, "9" * 5000)
    with pytest.raises(DataError, match="1 of 2 photos .* does not exist"):
        read_table(table(root, "file,label\nin/1.jpg,a\n" + "x" * 5000 + ",b\n"))
    with pytest.raises(DataError, match="line .*field larger than field limit"):
        read_table(table(root, "file,label\nin/1.jpg,a\n" + "x" * 140_000 + ",b\n"))


@pytest.mark.needs("linux")
def test_a_table_that_is_a_pipe_or_cannot_be_read(root):
    os.mkfifo(root / "pipe.csv")
    (root / "bad.csv").symlink_to("/proc/self/mem")
    for name, reason in (("pipe.csv", "not a regular file"), ("bad.csv", "Input/output error|no photos")):
        with pytest.raises(DataError, match=reason):
            open_dataset(root / name)
