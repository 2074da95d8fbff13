"""Tables of spreadsheets, web sites and databases: read, or refused with the reason; what is not used is named."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.tables import read_groups, read_table
from flowers_torch.errors import DataError

FILES = [f"p/{name}/{name}{i}.jpg" for name in "ab" for i in range(8)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file in FILES:
        (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / file)
    return tmp_path / "set"


def write(root: Path, text: str, encoding: str = "utf-8", name: str = "labels.csv") -> Path:
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def rows(head: str = "file,label", form: str = "{file},{label}", **more: object) -> str:
    """A table with a line for each photo."""
    lines = [
        form.format(file=f, label=f[2], name=f[4:], stem=f[4:-4], i=int(f[-5]), even=int(f[-5]) % 2, one=f[2] == "a")
        for f in FILES
    ]
    return "\n".join([head, *lines]) + "\n"


GERMAN = rows().replace(",a\n", ",Gänseblümchen\n").replace(",b\n", ",Löwenzahn\n")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "utf-8"),
        (GERMAN, "cp1252"),
        (GERMAN.replace(",", "\t"), "utf-16"),
        (GERMAN.replace(",", "\t"), "utf-16-le"),
        ("\ufeff" + GERMAN.replace(",", ";"), "utf-8"),
        ("sep=;\n" + GERMAN.replace(",", ";"), "utf-8"),
        (GERMAN.replace(",", "|"), "utf-8"),
        (unicodedata.normalize("NFD", GERMAN), "utf-8"),
    ],
)
def test_encodings_and_delimiters(root, text, encoding) -> None:
    dataset = read_table(write(root, text, encoding))
    assert dataset.classes == ("Gänseblümchen", "Löwenzahn") and len(dataset) == 16 and dataset.root == root
    assert any("Windows-1252" in note and "Gänseblümchen" in note for note in dataset.notes) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("head", "form"),
    [
        ("id,breed", "{file},{label}"),
        ("image_id,label", "{name},{label}"),  # in folders below the table
        ("image_id,label", "{stem},{label}"),
        ("image,label", "p/{label}/{stem},{label}"),
        ("Image Name,Class Label", "{file},{label}"),
        ("lesion_id,image_id,dx,age,sex", "x{i},{stem},{label},40,f"),
        ("file,label_id,label", "{file},{one},{label}"),
        ("file,label", " ./{file} ,{label}"),
        ("file,label", "{stem}.JPG,{label}"),
    ],
)
def test_names_of_columns_and_files(root, head, form) -> None:
    dataset = read_table(write(root, rows(head, form)))
    assert sorted(dataset.paths) == sorted(FILES) and dataset.classes == ("a", "b") and dataset.counts() == [8, 8]


def test_files_anywhere(root, tmp_path) -> None:
    absolute = rows(form=f"{root}/{{file}},{{label}}")
    assert read_table(write(root, absolute)).paths == tuple(FILES)
    (tmp_path / "csv").mkdir()
    for text in (absolute, rows(form="../set/{file},{label}"), rows(form="..\\set\\{file},{label}")):
        dataset = read_table(write(tmp_path / "csv", text))
        assert dataset.root == tmp_path and dataset.paths == tuple(f"set/{file}" for file in FILES)
        assert any(f"outside of its folder, in {tmp_path}" in note for note in dataset.notes)


def test_names_of_files_in_the_other_encoding_of_accents(root) -> None:
    (root / FILES[0]).rename(root / "p/a/e\u0301.jpg")
    dataset = read_table(write(root, rows().replace(FILES[0], "p/a/\xe9.jpg")))
    assert all((root / path).is_file() for path in dataset.paths)


@pytest.mark.parametrize(
    ("form", "prefix"),
    [("C:\\Users\\me\\{file},{label}", r"C:\\Users\\me\\ "), ("/data/{file},{label}", "/data/ ")],
)
def test_paths_of_another_computer(root, form, prefix) -> None:
    with pytest.raises(DataError, match=f"16 of 16 photos.*remove {prefix}from the paths"):
        read_table(write(root, rows(form=form)))


def test_ids_in_several_folders(root) -> None:
    """train.csv means train_images; another table does not say which."""
    for folder, image in (("train_images", 1), ("test_images", 1), ("test_images", 2)):
        (root / folder).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / folder / f"{image}.png")
    text = "id,label\n1,a\na0,b\n"
    dataset = read_table(write(root, text, name="train.csv"))
    assert dataset.paths == ("p/a/a0.jpg", "train_images/1.png")
    with pytest.raises(DataError, match="1 of .* may be any of t.*_images/1.png"):
        read_table(write(root, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rows("file,label,spilt", "{file},{label},train"), "column spilt, which nothing reads.*meant as split"),
        (rows("flie,label", "{file},{label}"), "column flie.*meant as file"),
        (rows("file,lable", "{file},{label}"), "column lable.*meant as label"),
        (rows("file,label,grup", "{file},{label},1"), "column grup.*meant as group"),
        (rows("file,target", "{file},{one}.7{i}").replace("True", "3").replace("False", "7"), "holds 16 .*regression"),
        (rows("image,MEL,NV", "{file},{one},0"), "MEL, NV of zeros and ones"),
        ("image,MEL,NV\np/a/a0.jpg,1.0,0.0\np/b/b0.jpg,0.0,1.0\n", "one column for each class.*MEL, NV"),
        ("image,MEL,NV\np/a/a0.jpg,1,1\np/b/b0.jpg,0,1\n", "multi-label.*MEL, NV"),
        ("file,label\np/a/a0.jpg,red round\np/a/a1.jpg,red\np/b/b0.jpg,round\n", "such as red round: .*multi"),
        ("file,label\np/a/a0.jpg,x|y\np/a/a1.jpg,y|z\np/b/b0.jpg,x\n", "such as x|y"),
        ('file,label\np/a/a0.jpg,"[\'x\']"\np/b/b0.jpg,"[\'x\', \'y\']"\n', "multi-label"),
        ("file,label,xmin,ymin\np/a/a0.jpg,a,1,2\np/a/a0.jpg,a,3,4\np/b/b0.jpg,b,1,1\n", "marks objects.*xmin, ymin"),
        ("\n".join(f"{f},{f[2]}" for f in FILES), "has no header: its first line is p/a/a0.jpg,a"),
        ("file,label\np/a/a0.jpg,a\np/b/b0.jpg,NaN\n", "line 3: no label for p/b/b0.jpg"),
        ("file,label,label\np/a/a0.jpg,a,b\n", "two columns label"),
        ("file,label\nhttps://example.org/1.jpg,a\n", "download them"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(root, text, message) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(root, text))


@pytest.mark.parametrize(
    "label",
    ["tulip, red;tulip, yellow", "1;2", "1.0;2.0", "sea lion;lion", "red apple;green apple", "size;sex", "-1;+1"],
)
def test_names_of_classes_that_are_allowed(root, label) -> None:
    first, second = label.split(";")
    text = rows().replace(",a\n", f',"{first}"\n').replace(",b\n", f',"{second}"\n')
    assert set(read_table(write(root, text)).classes) == {first, second}


def test_columns_that_nothing_reads_are_named(root) -> None:
    head, form = "file,label,patient_id,sample_weight,sex,fold", "{file},{label},pat{i},2,f,{even}"
    dataset = read_table(write(root, rows(head, form)))
    patient, weight, sex, fold = dataset.unused
    assert "patient_id (8 values; --groups column:patient_id keeps" in patient and dataset.group_columns == (
        "patient_id",
    )
    assert (weight, sex) == ("column sample_weight", "column sex")
    assert "crossval draws its own folds" in fold and "--groups column:fold" in fold
    grouped = open_dataset(root / "labels.csv", groups="column:patient_id")
    assert grouped.groups["p/a/a3.jpg"] == grouped.groups["p/b/b3.jpg"] == "pat3" and len(grouped.unused) == 3
    with pytest.raises(DataError, match="no column plant, only file, label"):
        open_dataset(root / "labels.csv", groups="column:plant")
    with pytest.raises(DataError, match="--groups column:plant needs a table"):
        open_dataset(root / "p", groups="column:plant")


@pytest.mark.parametrize(
    ("column", "train", "other", "split"),
    [
        ("is_valid", "False", "True", "val"),
        ("is_test", "0", "1", "test"),
        ("phase", "train", "eval", "test"),
        ("Usage", "Training", "Testing", "test"),
    ],
)
def test_splits_under_other_names(root, column, train, other, split) -> None:
    text = rows(f"file,label,{column}", "{file},{label},{i}")
    for i in range(8):
        text = text.replace(f",{i}\n", f",{train if i < 6 else other}\n")
    dataset = read_table(write(root, text))
    assert list(dataset.split.values()).count("train") == 12 and set(dataset.split.values()) == {"train", split}
    assert any(f"column {column} is read as the split" in note for note in dataset.notes)


def test_tables_of_other_splits_and_similar_labels_are_named(root) -> None:
    for name in ("test.csv", "sample_submission.csv", "val.tsv"):
        (root / name).write_text("id\n1\n")
    dataset = read_table(write(root, rows().replace("a0.jpg,a\n", "a0.jpg,A\n"), name="train.csv"))
    assert dataset.unused == ("test.csv beside it (its lines may go into this table, with a column split)",)
    assert dataset.classes == ("A", "a", "b") and "nearly the same name stay separate: 'A', 'a'" in dataset.notes[0]


def test_a_column_of_ids_that_are_all_different_names_no_groups(root) -> None:
    dataset = read_table(write(root, rows("file,label,uuid,split_id", "{file},{label},{stem},{i}")))
    assert dataset.group_columns == ("split_id",) and dataset.unused[0] == "column uuid"


@pytest.mark.parametrize("name", ["labels.xlsx", "labels.ods", "labels.parquet", "metadata.jsonl"])
def test_other_formats_say_what_to_save(root, name) -> None:
    (root / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=f"{name} is a table in another format than CSV.*save it as a CSV file"):
        open_dataset(root / name)
    (root / "really.csv").write_bytes(b"PK\x03\x04[Content_Types].xml")
    with pytest.raises(DataError, match=r"really.csv is a table in another format"):
        open_dataset(root / "really.csv")


def test_a_table_with_a_long_header_and_short_rows_takes_no_memory(root) -> None:
    """Its missing cells are not stored, and each of them is not looked at for each column."""
    head = ",".join(["file", "label", *(f"c{i}" for i in range(5000))])
    lines = "".join(f"p/{name}/{name}{i}.jpg,{name}\n" for name in "ab" for i in range(8)) * 2000
    dataset = read_table(write(root, f"{head}\n{lines}"))
    assert len(dataset) == 16 and dataset.unused[-1] == "4950 more columns"
    with pytest.raises(DataError, match="more than 10,000 columns"):
        read_table(write(root, f"{head * 3}\n{lines}"))


def test_groups_of_a_spreadsheet(root) -> None:
    dataset = open_dataset(root / "p")
    text = "file;group\n" + "".join(f"{path.replace('/', chr(92))};Größe {i}\n" for i, path in enumerate(dataset.paths))
    groups = read_groups(write(root, text, "cp1252", "groups.csv"), dataset)
    assert groups[dataset.paths[3]] == "Größe 3" and len(groups) == 16
