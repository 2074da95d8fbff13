"""Choose which unlabeled photos to label next.

The model is uncertain about the chosen photos, and they differ from each other and from the photos that
it knows. Without --csv and --links, the result is a page on which the photos can be labeled.
"""

import argparse
from pathlib import Path

from flowers_torch.commands import add_data, add_json, add_run, check_positive, print_json, set_allocator_of_run, warn
from flowers_torch.errors import plural, printable

EXAMPLES = """examples:
  flowers-torch next latest unlabeled/                             label them on next.html
  flowers-torch next latest unlabeled/ --count 20 --csv next.csv   write labels into the table
  flowers-torch next latest unlabeled/ --links to_label/           sort links into class folders
"""
SHOWN = 10  # photos that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="unlabeled photos: files, folders or globs")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="photos to choose [50]")
    parser.add_argument("--page", type=Path, metavar="FILE", help="page to write [next.html without --csv and --links]")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="table to write, with an empty column label")
    parser.add_argument("--links", type=Path, metavar="DIR", help="folder of links to make, to be sorted by class")
    add_data(parser)
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    check_positive(args, "count")

    from flowers_torch.deploy.inputs import find_files
    from flowers_torch.report.next_page import write_next_page
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.runs.label_next import find_next, link_images, write_table
    from flowers_torch.shell import command_line

    files, folder = find_files(args.photos), find_run_folder(args.run)
    set_allocator_of_run(folder, {"device": args.device})
    experiment, model = Experiment.open(folder, args.device, args.moved)
    found = find_next(experiment, model, files, args.count)
    for error in found.unreadable:
        warn(f"left out: {printable(error, 400)}")
    classes, written = experiment.info.classes, dict[str, Path]()
    labeled: list[Path] = []
    if args.links:
        written["links"] = args.links.expanduser()
        link_images(written["links"], found)
        labeled.append(written["links"].absolute())
    if args.csv:
        written["table"] = args.csv.expanduser()
        write_table(written["table"], found)
        labeled.append(written["table"].absolute())
    if args.page or not written:
        written["page"] = (args.page or Path("next.html")).expanduser()
        rows = [image.to_dict() for image in found.images]
        numbers = {name: number for number, name in enumerate(classes)}
        for guess in (guess for row in rows for guess in row["classes"]):
            guess["number"] = numbers[guess["class"]]
        values = {"run": folder.name, "classes": classes, "candidates": found.candidates}
        command = command_line("flowers-torch", "update", folder.absolute(), "labels.csv")
        write_next_page(written["page"], rows, values | {"command": command}, experiment.info.preprocessing.value_range)
        labeled.append(Path("labels.csv"))
    commands = [command_line("flowers-torch", "update", folder.absolute(), place) for place in labeled]
    if args.json:
        images = [image.to_dict() for image in found.images]
        values = {"candidates": found.candidates, "known": found.known, "unreadable": found.unreadable}
        print_json({"images": images, **values, "written": {k: str(v) for k, v in written.items()}, "next": commands})
        return
    known = f", {plural(found.known, 'more is a photo', 'more are photos')} of the run" if found.known else ""
    print(f"chosen   {len(found.images)} of {plural(found.candidates, 'unlabeled photo')}{known}")
    for image in found.images[:SHOWN]:
        pairs = zip(image.classes[:2], image.probabilities, strict=False)
        guesses = ", ".join(f"{printable(name, 40)} {probability:.2f}" for name, probability in pairs)
        print(f"  {printable(image.file, 100)}: {guesses}; distance {image.distance:.2f}")
    if len(found.images) > SHOWN:
        print(f"  and {len(found.images) - SHOWN} more")
    for kind, path in written.items():
        print(f"{kind:8} {printable(path)}")
    for command in commands:
        print(f"next     label them, then {command}")
