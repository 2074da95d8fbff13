"""Five tiny runs through the real command end in the same weights, splits and predictions as ever.

The digests in golden/runs.json are exact for the versions of torch, torchvision, timm and Pillow named there, on
processors that compute a training step of plain PyTorch to the same bits (`ARITHMETIC`). Elsewhere the last bits
may differ, so the weights are compared by their norm, and with these versions the predicted classes too. Run this
file as a script to record the digests for the versions and the processor at hand.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image

GOLDEN = Path(__file__).parent / "golden" / "runs.json"
VERSIONS = " ".join(
    f"{package.__name__}={package.__version__.partition('+')[0]}" for package in (torch, torchvision, timm, PIL)
)
# The oldest instruction sets, so that many x86-64 processors compute the same bits. AMD's and Intel's do not.
SAME_BITS = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}
# Prints a digest of weights that ten training steps of the runs' network leave, without this package.
ARITHMETIC = """
import hashlib, timm, torch
torch.manual_seed(0)
torch.set_num_threads(1)
model = timm.create_model("test_resnet", num_classes=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(10):
    count = 8 if step % 2 else 4
    loss = torch.nn.functional.cross_entropy(model(torch.randn(count, 3, 32, 32)), torch.randint(4, (count,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
print(hashlib.sha256(weights).hexdigest()[:16])
"""
OPTIONS = """
arch = "test_resnet"
weights = "none"
size = 32
batch_size = 8
precision = "fp32"
device = "cpu"
threads = 1
workers = 0
seed = 7
"""
TWO_STAGES = """
[[stages]]
name = "head"
epochs = 2
train = "head"
lr = 0.01

[[stages]]
name = "finetune"
epochs = 3
train = "all"
lr = 0.003
augment = "crop"
warmup_epochs = 0.5
weight_decay = 0.05
"""
RUNS: dict[str, tuple[str, list[str]]] = {  # options beside OPTIONS, and flags
    "head_only": ("", ["--head-only"]),
    "two_stages": (TWO_STAGES, []),
    "resumed": (TWO_STAGES, []),
    "ema_mixup": ("ema = 0.9\n" + TWO_STAGES.replace('"crop"', '"light"\nmixup = 0.2'), []),
    "crossval": (TWO_STAGES, ["--folds", "3"]),
}


def draw_images(root: Path) -> Path:
    """Four classes of 15 small images that differ in color and in the direction of a gradient."""
    draw = np.random.default_rng(11)
    ramp = np.linspace(-60, 60, 40)
    for label, name in enumerate(("ash", "beech", "cedar", "date")):
        (root / name).mkdir(parents=True)
        slope = ramp[:, None, None] if label % 2 else ramp[None, :, None]
        color = np.array([120, 90 + 50 * (label // 2), 140 - 40 * (label // 2)])
        for number in range(15):
            pixels = color + slope + draw.normal(0, 30, (40, 40, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{number}.png")
    return root


# Runs the commands that it reads, each in a folder with a cache of its own. One import of torch serves all of them.
COMMANDS = """
import json, os, sys
from flowers_torch.cli import main
for line in sys.stdin:
    folder, words = json.loads(line)
    os.chdir(folder)
    os.environ["FLOWERS_TORCH_CACHE"] = os.path.join(folder, "cache")
    print("exit code", main(words), flush=True)
"""


@contextlib.contextmanager
def command_process() -> "Iterator[subprocess.Popen[str]]":
    """A process that runs COMMANDS with SAME_BITS."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        env=os.environ | SAME_BITS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def run_command(process: "subprocess.Popen[str]", folder: Path, *words: str, stop: str = "$^") -> int:
    """The exit code of a command. A line of its output that matches `stop` is followed by a signal."""
    assert process.stdin and process.stdout
    print(json.dumps([str(folder), words]), file=process.stdin, flush=True)
    output = ""
    for line in process.stdout:
        output += line
        if found := re.fullmatch(r"exit code (\d+)\n", line):
            print(output)
            return int(found[1])
        if re.match(stop, line):
            process.send_signal(signal.SIGTERM)
    raise AssertionError(output)


def train(process: "subprocess.Popen[str]", name: str, folder: Path, images: Path) -> list[Path]:
    """Runs the command of a golden run; the folders with results that it leaves."""
    options, flags = RUNS[name]
    (folder / "options.toml").write_text(OPTIONS + options)
    verb = "crossval" if name == "crossval" else "train"
    words = [verb, "--config", "options.toml", "--data", str(images), "--out", "out", *flags]
    if name == "resumed":
        assert run_command(process, folder, *words, stop=r"stage\b.*finetune") == 143
        words = ["train", "--resume", "out"]
    assert run_command(process, folder, *words) == 0
    return sorted(path.parent for path in (folder / "out").rglob("metrics.json"))


def digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def results(folders: Sequence[Path]) -> dict[str, Any]:
    """What the run folders hold, as short texts: exact digests, and figures that other versions share."""
    weights: list[bytes] = []
    split: list[bytes] = []
    predictions: list[bytes] = []
    classes: list[str] = []
    square = 0.0
    for folder in folders:
        for tensor_name, tensor in sorted(safetensors.torch.load_file(folder / "model.safetensors").items()):
            weights += [tensor_name.encode(), tensor.numpy().tobytes()]
            square += float(tensor.double().square().sum())
        for members in json.loads((folder / "split.json").read_text())[SPLITS_KEY].values():
            split += [name.encode() for name in members] + [b"|"]
        with (folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        predictions += [",".join(row).encode() for row in rows]
        classes += [row[2] for row in rows]
    exact = {"weights": digest(weights), "split": digest(split), "predictions": digest(predictions)}
    return exact | {"norm": math.sqrt(square), "classes": digest([name.encode() for name in classes])}


SPLITS_KEY = "splits"


def this_machine() -> str:
    """The versions installed, and how this processor computes: a key of golden/runs.json."""
    probe = subprocess.run(
        [sys.executable, "-c", ARITHMETIC], env=os.environ | SAME_BITS, capture_output=True, text=True, check=True
    )
    return f"{VERSIONS} arithmetic={probe.stdout.strip()}"


@pytest.fixture(scope="module")
def machine() -> str:
    return this_machine()


@pytest.fixture(scope="module")
def process() -> "Iterator[subprocess.Popen[str]]":
    with command_process() as started:
        yield started


SIGNALS = pytest.mark.needs("signals")


@pytest.mark.parametrize("name", [pytest.param(name, marks=SIGNALS if name == "resumed" else ()) for name in RUNS])
def test_a_run_ends_as_it_always_has(name: str, machine: str, process: "subprocess.Popen[str]", tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = results(train(process, name, tmp_path, draw_images(tmp_path / "images")))
    known = golden.get(machine)
    if known:
        exact = ("weights", "split", "predictions")
        assert {key: found[key] for key in exact} == {key: known[name][key] for key in exact}
        return
    same_versions = [runs for recorded, runs in golden.items() if recorded.startswith(f"{VERSIONS} ")]
    known = (same_versions or list(golden.values()))[0][name]
    assert found["split"] == known["split"]
    assert found["norm"] == pytest.approx(known["norm"], rel=1e-6 if same_versions else 1e-3)
    assert found["classes"] == known["classes"] or not same_versions


def test_a_resumed_run_equals_an_uninterrupted_one() -> None:
    for runs in json.loads(GOLDEN.read_text()).values():
        assert runs["resumed"] == runs["two_stages"]


def write_golden() -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    machine = this_machine()
    golden[machine] = {}
    with tempfile.TemporaryDirectory() as folder, command_process() as process:
        for name in RUNS:
            place = Path(folder, name)
            images = draw_images(place / "images")
            golden[machine][name] = results(train(process, name, place, images))
            print(name, golden[machine][name])
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
