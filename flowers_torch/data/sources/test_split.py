"""A test split that is not in the source of the other images."""

from dataclasses import replace

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.rows import dataset_from_rows, listed
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.system import common_folder


def val_as_test(dataset: ImageDataset) -> ImageDataset:
    """The dataset with its val split as test, if it has no test; training then draws val from the others."""
    if "val" not in dataset.split.values() or "test" in dataset.split.values():
        return dataset
    split = {path: name.replace("val", "test") for path, name in dataset.split.items()}
    count = plural(list(split.values()).count("test"), "photo")
    note = f"{count} of val are the test; val is drawn from train"
    return replace(dataset, split=split, notes=(*dataset.notes, note))


def with_test(dataset: ImageDataset, test: ImageDataset) -> ImageDataset:
    """The images of two datasets under the folder of both, with those of the second one as the test split.

    The test split of the first one is left out, and so is all but the test of the second one if that has splits. Notes
    say so.

    Raises:
        DataError: other classes, images that are in both, or no folder that holds both.
    """
    roots = dataset.root.absolute(), test.root.absolute()
    root = common_folder(roots)
    places = [f"{own.relative_to(root).as_posix()}/".removeprefix("./") for own in roots]
    left_out: list[str] = []
    rows, groups = [], dict[str, str]()
    for place, own, wanted in zip(places, (dataset, test), (("train", "val"), ("test",)), strict=True):
        for path, label in zip(own.paths, own.labels, strict=True):
            split = own.split.get(path, wanted[0])
            if split in wanted:
                rows.append((f"{place}{path}", own.classes[label], split))
            else:
                left_out.append(path)
        groups |= {f"{place}{path}": name for path, name in own.groups.items()}
    if len({path for path, _, _ in rows}) < len(rows):
        what = f"--test {printable(test.name)} holds photos that --data {printable(dataset.name)} holds too"
        raise DataError(what, "name other photos, or val for those of the validation split")
    notes = [*dataset.notes, *(f"test: {note}" for note in test.notes)]
    if left_out:
        why = f"because the test is from {printable(test.name)}"
        notes.append(f"{plural(left_out, 'photo')} left out, {why}: {listed(left_out)}")
    joined = dataset_from_rows(test.root, root, dataset.name, dataset.classes, rows, notes)
    unused = (*dataset.unused, *(f"test: {thing}" for thing in test.unused))
    layout = f"{dataset.layout}{'; ' * bool(dataset.layout)}test from {printable(test.name)}"
    return replace(joined, groups=groups, unused=unused, group_columns=dataset.group_columns, layout=layout)
