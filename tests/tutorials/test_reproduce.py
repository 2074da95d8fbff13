"""The catalog of tutorials, the comparison of a run, the results file and the page."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest

from flowers_torch.cli import main
from flowers_torch.commands import train
from flowers_torch.config_file import config_folder, load_config
from flowers_torch.errors import DataError, UsageError
from flowers_torch.tutorials.catalog import ExactFigure, read_catalog
from flowers_torch.tutorials.page import reproduction_page
from flowers_torch.tutorials.reproduce import (
    Reproduction,
    add_result,
    describe_losses,
    differences,
    read_results,
    with_our_defaults,
)

ROOT = Path(__file__).parents[2]
CATALOG = read_catalog()
TUTORIALS = CATALOG.recipes
ROWS = "A1 A2 A3 A4 A5 A6 A7 B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 C1 C2 C3 C4 C5 C6 C7 C8 C9 C10 D1 D2 D3 D4 D5"
ROWS += " E1 E2 E3 E4 E5 E6"
RESULTS = read_results(ROOT / "benchmarks/reproduction.jsonl")
RUN = Reproduction(
    *("happy_house", "train_happy.h5", True, 0, 132, 150, 0.82, 0.92, 40.0, ()),
    *("a processor, 1 thread", "torch 2", "2026-01-01"),
)


def test_catalog_has_every_row_and_every_recipe() -> None:
    shown = {row for t in TUTORIALS.values() for row in t.rows.split()}
    shown |= {row for exact in CATALOG.exact for row in exact.rows.split()}
    assert shown == set(ROWS.split())
    general = {"default", "demo", "inception_v3", "tf_efficientnet_lite0"}
    assert set(TUTORIALS) == {path.stem for path in config_folder().rglob("*.toml")} - general


@pytest.mark.parametrize("exact", CATALOG.exact, ids=lambda exact: exact.title)
def test_an_exact_figure_has_tests_and_a_command(exact: ExactFigure) -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    for test in exact.tests:
        found = [source.partition(f"\ndef {test}(")[0] for source in sources if f"\ndef {test}(" in source]
        assert len(found) == 1, f"{test} is defined {len(found)} times"
        assert found[0].endswith("@pytest.mark.slow") == exact.slow, test
    assert bool(exact.command) != bool(exact.see)
    assert (ROOT / exact.see).exists()


def test_figures_contain_the_accuracy_that_is_compared() -> None:
    for tutorial in TUTORIALS.values():
        figures = [float(text) for text in re.findall(r"0\.\d+", tutorial.figure)]
        if tutorial.accuracy is None:
            assert not figures
        else:
            assert tutorial.accuracy in figures or min(figures) <= tutorial.accuracy <= max(figures)


def test_our_defaults_change_the_schedule_and_nothing_else() -> None:
    config = load_config(file="little_data_finetune_vgg16")
    ours = with_our_defaults(config)
    assert [(s.name, s.epochs, s.train) for s in ours.stages] == [(s.name, s.epochs, s.train) for s in config.stages]
    changed = differences(ours, config)
    assert "stages.finetune.optimizer=adamw" in changed and "stages.finetune.lr=0.0003" in changed
    assert all(text.startswith(("stages.", "batch_size")) for text in changed)
    assert differences(config, config) == []
    assert differences(dataclasses.replace(config, seed=3, weights="imagenet"), config) == []


def test_differences_repeat_the_run() -> None:
    """`--set` with each difference gives the same configuration."""
    recipe = load_config(file="five_animals_bottleneck")
    assert recipe.model_options
    wanted = ["model_options={}", "arch=tf_efficientnet_lite0", "dropout=0.8", "head_norm=true"]
    for texts in (
        wanted,
        ['model_options={global_pool = "avg"}'],
        ["model_options.global_pool=avg", 'stages.bottleneck.train=[["*", 1.0]]'],
        ['stages=[{name = "a", lr = 0.5}, {name = "b", optimizer = "sgd"}]', "batch_size=4"],
    ):
        changed = load_config(file="five_animals_bottleneck", overrides=overrides_of(texts))
        found_differences = differences(changed, recipe)
        assert sorted(found_differences) == sorted(texts)
        assert load_config(file="five_animals_bottleneck", overrides=overrides_of(found_differences)) == changed


def overrides_of(texts: list[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.overrides(parser.parse_args([word for text in texts for word in ("--set", text)]))


@pytest.mark.parametrize("one", [one for one in RESULTS if one.changes], ids=lambda one: one.recipe)
def test_recorded_options_are_a_whole_configuration(one: Reproduction) -> None:
    """Those of another network take the recipe's options for its own network away."""
    config = load_config(file=one.recipe, overrides=overrides_of(list(one.changes)))
    assert sorted(differences(config, load_config(file=one.recipe))) == sorted(one.changes)
    if config.arch != load_config(file=one.recipe).arch:
        assert config.model_options == {}


def test_results_are_recorded_once_for_each_run(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert read_results(file) == []
    add_result(file, dataclasses.replace(RUN, correct=1))
    add_result(file, dataclasses.replace(RUN, seed=1))
    add_result(file, RUN)
    others = [
        dataclasses.replace(RUN, seed=1),
        dataclasses.replace(RUN, substitute_data=False),
        dataclasses.replace(RUN, machine="a GPU"),
    ]
    for one in others[1:]:
        add_result(file, one)
    assert read_results(file) == [others[0], RUN, *others[1:]]
    file.write_text('{"recipe": 1}')
    with pytest.raises(DataError, match="is not a valid results file"):
        read_results(file)


def test_the_page_has_every_row_and_marks_what_is_not_measured() -> None:
    elsewhere = dataclasses.replace(RUN, data="x", substitute_data=False, machine="a GPU", changes=("weights=own.h5",))
    changed = dataclasses.replace(RUN, changes=("ema=0.9",))
    text = reproduction_page([RUN, dataclasses.replace(RUN, seed=1, correct=141), elsewhere, changed])
    for recipe in TUTORIALS:
        assert f"| `python train.py --config {recipe}` |" in text
    seeds = (
        "0.9100 (0.880 .. 0.940) on 150 photos of substitute data `train_happy.h5` | 0, 1 | 40 s"
        " | a processor, 1 thread |"
    )
    assert seeds in text
    assert "| `happy_house` | `ema=0.9` | 0.8800 (95% interval 0.820 .. 0.920)" in text
    (other,) = [line for line in text.splitlines() if "of `x`" in line]
    assert other.endswith("| 0 | 40 s | a GPU |")
    assert "| `python train.py --config happy_house --data x --weights own.h5` |" in other
    trained, _, losses = text.partition("## Trained")[2].partition("## Exact")[0].partition("## Losses")
    rows = [line for line in trained.splitlines() if "train.py --config" in line]
    assert {row.count("|") for row in rows} == {9} and len(rows) == len(TUTORIALS) + 1
    assert {row[2] for row in rows} <= set(CATALOG.documents) and all(f"\n- {d}: " in text for d in CATALOG.documents)
    assert trained.count("not measured") == len(TUTORIALS) - 1
    assert losses.count("not recorded") == sum(bool(tutorial.losses) for tutorial in TUTORIALS.values())


def test_losses_stand_beside_those_of_the_tutorial() -> None:
    stage = {"name": "scratch", "epochs": 39, "train": [0.9, 0.1], "val": [0.8, 0.3], "seconds": 3.2}
    own = dataclasses.replace(RUN, substitute_data=False, stages=(stage,), test_loss=0.25)
    lines = [line for line in reproduction_page([own]).splitlines() if line.startswith("| `happy_house` |")]
    ours = "scratch, 39 epochs of 3.2 s: training 0.9000 .. 0.1000, validation 0.8000 .. 0.3000; test 0.2500 (seed 0)"
    assert f"| {TUTORIALS['happy_house'].losses} | {ours} |" in lines[0]
    assert "not recorded" in describe_losses(RUN)
    row = json.loads(json.dumps(dataclasses.asdict(own)))
    assert row["stages"] == [stage]


def test_the_committed_page_is_the_one_of_the_committed_results() -> None:
    written = (ROOT / "docs/reproduction.md").read_text()
    assert written == reproduction_page(RESULTS)


def test_the_command_runs_compares_and_records(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(photo_folder), "--set", "size=24", "--epochs", "1", "--device", "cpu", "--quiet"]
    flags += ["--out", str(tmp_path / "run"), "--results", str(tmp_path / "results.jsonl")]
    assert main(["reproduce", "five_animals_convnet", *flags, "--defaults", "--substitute-data", "--record"]) == 0
    printed = capsys.readouterr().out
    assert "tutorial 0.9599 on 100 validation photos" in printed and "(substitute data)" in printed
    assert "default  stages.scratch.optimizer adamw instead of rmsprop" in printed
    assert "changed  stages.scratch.epochs=1" in printed and "gap " not in printed
    (recorded_result,) = read_results(tmp_path / "results.jsonl")
    assert recorded_result.recipe == "five_animals_convnet" and "stages.scratch.lr=0.0003" in recorded_result.changes
    (tmp_path / "run" / "command.txt").write_text("flowers-torch reproduce five_animals_convnet --quiet\n")
    assert main(["reproduce", "--run", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "gap      " in printed and "recorded" not in printed
    assert main(["reproduce", "--run", str(tmp_path / "run"), *flags[-2:]]) == 0
    recorded = [line for line in capsys.readouterr().out.splitlines() if line.startswith("recorded")]
    assert len(recorded) == 1 and "stages.scratch.optimizer=adamw" in recorded[0]
    assert main(["reproduce", "--page", str(tmp_path / "page.md"), "--results", flags[-1]]) == 0
    assert "five_animals_convnet" in (tmp_path / "page.md").read_text()
    settings = (tmp_path / "run" / "config.toml").read_text().replace('test = "val"', 'test = "/x/other.h5"')
    (tmp_path / "run" / "config.toml").write_text(settings)
    assert main(["reproduce", "--run", str(tmp_path / "run"), "--record", "--results", str(tmp_path / "other")]) == 0
    (other,) = read_results(tmp_path / "other")
    assert other.data_options == " --test other.h5" and not any(text.startswith("test=") for text in other.changes)
    assert [stage["epochs"] for stage in other.stages] == [1] and other.test_loss is not None


def test_list_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TUTORIALS)


@pytest.mark.parametrize(
    "words",
    [["no_such"], ["happy_house", "--resume", "x"], ["happy_house", "--page", "x"], ["--run", "nowhere"]],
)
def test_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *words]) == UsageError.exit_code
    assert len(capsys.readouterr().err.splitlines()) == 1
