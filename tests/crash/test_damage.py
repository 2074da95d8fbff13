"""Damaged and malicious files wherever a file is read."""

import os
import pickle
import random
import shutil
import signal
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch import cli
from flowers_torch.deploy.hub import flowers_classifier
from flowers_torch.errors import ModelFileError
from flowers_torch.training import checkpoint
from flowers_torch.training.checkpoint import (
    PREVIOUS_FILE,
    RESUME_FILE,
    read_checkpoint,
    read_newest_checkpoint,
)

pytestmark = [pytest.mark.slow, pytest.mark.needs("linux")]
CUTS, FLIPS = 256, 2000


@pytest.fixture(scope="module")
def stopped(small_run: Any) -> Path:
    """A run that was stopped in its second stage, with both checkpoints and its best weights."""
    child, folder = small_run.start()
    assert child.wait_for(lambda: child.counters["steps"] >= 8), child.text()
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.text()
    assert (folder / PREVIOUS_FILE).is_file() and (folder / "model.safetensors").is_file()
    return folder


def same(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> bool:
    return (
        one.state == other.state
        and one.info == other.info
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    )


def test_cuts_and_flips(stopped: Path, tmp_path: Path, moments: random.Random, report: Callable[[str], None]) -> None:
    """Refused, or proven equal. This runs in a child, so that a crash or an endless loop is noticed."""
    whole = (stopped / RESUME_FILE).read_bytes()
    expected = read_checkpoint(stopped / RESUME_FILE)
    broken = tmp_path / RESUME_FILE
    header = struct.unpack("<Q", whole[:8])[0]
    damages: list[bytes] = [whole[: moments.randrange(len(whole))] for _ in range(CUTS)]
    for number in range(FLIPS):  # half of them in the header, which is a small part of the file
        place = moments.randrange(8 + header if number % 2 else len(whole))
        damages.append(whole[:place] + bytes([whole[place] ^ moments.randint(1, 255)]) + whole[place + 1 :])
    counts = tmp_path / "counts"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            refused = equal = 0
            for severity in damages:
                broken.write_bytes(severity)
                try:
                    equal += same(read_checkpoint(broken), expected) or 10**6
                except ModelFileError:
                    refused += 1
                assert broken.read_bytes() == severity
            counts.write_text(f"{refused} {equal}")
            code = 0
        finally:
            os._exit(code)
    started = time.monotonic()
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        assert time.monotonic() - started < 500, os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    refused, equal = map(int, counts.read_text().split())
    report(f"{CUTS} cuts and {FLIPS} flipped bytes: {refused} refused, {equal} harmless and proven equal")
    assert refused + equal == CUTS + FLIPS


def test_a_damaged_newest_checkpoint_falls_back(small_run: Any, stopped: Path, tmp_path: Path) -> None:
    """The command line resumes from the previous checkpoint to the same bits, with a warning."""
    for name, severity in (("cut", lambda content: content[: len(content) // 2]), ("empty", lambda _: b"")):
        folder = small_run.root / f"fallback-{name}"
        shutil.copytree(stopped, folder)
        (folder / RESUME_FILE).write_bytes(severity((folder / RESUME_FILE).read_bytes()))
        child = small_run.resume(folder)
        assert child.wait() == 0
        assert "WARNING" in child.text() and PREVIOUS_FILE in child.text()
        assert small_run.outcome(folder) == small_run.expected
    shutil.copytree(stopped, tmp_path / "both")
    for name in (RESUME_FILE, PREVIOUS_FILE):
        (tmp_path / "both" / name).write_bytes(b"x" * 99)
    child = small_run.resume(tmp_path / "both")
    assert child.wait() == 4 and child.text().count("flowers-torch: error:") == 1
    with pytest.raises(ModelFileError):
        read_newest_checkpoint(tmp_path / "both")


class Gadget:
    """Calls something harmless that leaves a trace when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def gadgets(canary: Path) -> dict[str, Any]:
    command = f"open({str(canary)!r}, 'w').close()"
    return {
        "mkdir": Gadget(os.mkdir, str(canary)),
        "system": Gadget(os.system, f"touch {canary}"),
        "eval": Gadget(eval, f"__import__('os').mkdir({str(canary)!r})"),
        "exec": Gadget(exec, command),
        "open": Gadget(open, str(canary), "w"),
        "nested": Gadget(torch.storage._load_from_bytes, pickle.dumps(Gadget(os.mkdir, str(canary)))),
    }


def containers(payload: Any, folder: Path) -> dict[str, Path]:
    """The payload beside a valid tensor: torch's zip, its legacy stream, a bare pickle, a tar."""
    content = {"state_dict": {"weight": torch.zeros(2)}, "extra": payload}
    paths = {kind: folder / f"{kind}.pth" for kind in ("zip", "legacy", "pickle", "tar", "zip2")}
    torch.save(content, paths["zip"])
    torch.save(content, paths["legacy"], _use_new_zipfile_serialization=False)
    paths["pickle"].write_bytes(pickle.dumps(content, protocol=2))
    with zipfile.ZipFile(paths["zip"]) as source, zipfile.ZipFile(paths["zip2"], "w") as target:
        for name in source.namelist():  # the payload under another name in the archive
            target.writestr(name, source.read(name))
            if name.endswith("data.pkl"):
                target.writestr(name.replace("data.pkl", "code/constants.pkl"), source.read(name))
    with tarfile.open(paths["tar"], "w") as archive:
        (folder / "pickle").write_bytes(paths["pickle"].read_bytes())
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.add(folder / "pickle", name)
    return paths


def test_malicious_pickles_are_refused_everywhere(
    small_run: Any,
    stopped: Path,
    tmp_path: Path,
    photo_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[str], None],
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    photo = next(photo_folder.rglob("*.png"))
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    tried = 0
    for kind in gadgets(tmp_path / "canary"):
        canary = tmp_path / "canary"
        for container, hostile in containers(gadgets(canary)[kind], tmp_path).items():
            (run / RESUME_FILE).write_bytes(hostile.read_bytes())
            (run / PREVIOUS_FILE).write_bytes(hostile.read_bytes())
            disguised = tmp_path / "model.safetensors"
            disguised.write_bytes(hostile.read_bytes())
            toml = str(small_run.root / "small.toml")
            places = {
                "resume": ["train", "--resume", str(run)],
                "weights": ["train", "--config", toml, "--weights", str(hostile)],
                "weights disguised": ["train", "--config", toml, "--weights", str(disguised)],
                "predict": ["predict", str(hostile), str(photo)],
                "predict a run": ["predict", str(tmp_path), str(photo)],
            }
            for place, arguments in places.items():
                capsys.readouterr()
                code = cli.main(arguments)
                text = "".join(capsys.readouterr())
                tried += 1
                assert code == 4, (kind, container, place, code, text)
                assert text.count("flowers-torch: error:") == 1 and "Traceback" not in text, text
                assert "weights_only" not in text and "unsafe" not in text.lower(), text
                assert not canary.exists(), (kind, container, place)
            with pytest.raises(ModelFileError):
                flowers_classifier(str(disguised))
            tried += 1
            assert not canary.exists(), (kind, container, "hub")
    report(f"{tried} malicious files in 6 places: none executed, all refused with exit 4")
