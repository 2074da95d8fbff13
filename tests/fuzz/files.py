"""Mutated and hostile weights, archives, tables, configurations and records of runs, each opened by its reader."""

import gzip
import io
import json
import math
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.torch
import torch
from PIL import Image

from flowers_torch import cli
from flowers_torch.config_file import load_config
from flowers_torch.data.quality.inspection import inspect_image
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.factory import create_model
from flowers_torch.models.weights import load_weights, plan_weights

from .mutate import PAINT, VALUES, mutate_bytes, mutate_text, mutate_value, safetensors_bytes, tar_header, to_text
from .sandbox import Box

Action = Callable[[], Any]
ARCH = "test_resnet"
KERAS_ARCH, KERAS_SIZE = "happy_model", 8  # one convolution, one batch norm, one dense layer
NAMES = (
    *("../../outside/x", "/{outside}/x", "//{outside}/x", "\\\\host\\share\\x", "C:x", "C:\\x", "a/../../../outside/x"),
    *("con", "a/nul.txt", "com1", "aux.jpg", "./x", "a//b", "", ".", "..", "/", "a\0b", "a" * 300, "x/" * 3000),
    *("rose/1.png", "rose/\x1b[2J.png", "~/x", "rose /x", "rose./x", "$HOME/x", "-rf", "file:///{outside}/x"),
)


class Payload:
    """What unpickling would run."""

    def __init__(self, box: Box) -> None:
        self.path = box.executed

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def cases(count: int, draw: random.Random, box: Box, run: Path) -> Iterator[tuple[str, Callable[[], Action]]]:
    """Names and builders of actions, the kinds in turn.

    Args:
        run: A finished run with a weights file, whose data are two class folders in `work/fixed/photos`.
    """
    kinds: dict[str, Callable[[random.Random, Box, Path], Action]] = {
        "own weights, bytes": own_weights_bytes,
        "own weights, metadata": own_weights_metadata,
        "own weights, metadata again": own_weights_metadata,
        "safetensors header": safetensors_header,
        ".pth bytes": pth_bytes,
        ".pth content": pth_content,
        "keras bytes": keras_bytes,
        "keras structure": keras_structure,
        ".keras archive": keras_archive,
        "onnx bytes": onnx_bytes,
        "onnx metadata": onnx_metadata,
        "archive bytes": archive_bytes,
        "archive names": archive_names,
        "tar headers": tar_headers,
        "shards": shards,
        "course HDF5": course_hdf5,
        "table": table,
        "table again": table,
        "configuration": configuration,
        "record of a run": run_file,
        "record of a run again": run_file,
        "record of a cross-validation": crossval_file,
        "record in a report": report_file,
        "links in a run folder": links,
        "checkpoint": checkpoint,
        "inspections": inspections,
        "feature cache": feature_cache,
        "exclude list": exclude_list,
        "groups table": groups_table,
    }
    names = list(kinds)
    for number in range(count):
        name = names[number % len(names)]
        seed = draw.getrandbits(64)

        def build(name: str = name, seed: int = seed) -> Action:
            return kinds[name](random.Random(seed), box, run)

        yield f"{number} {name}", build


def _command(*words: object) -> Action:
    return lambda: cli.main([str(word) for word in words])


def _photo(box: Box) -> Path:
    return next((box.work / "fixed" / "photos").glob("*/*.png"))


def _predict(path: Path, box: Box) -> Action:
    return _command("predict", path, _photo(box), "--json", "--device", "cpu", "--precision", "fp32")


def _start_from(path: Path, arch: str = ARCH) -> Action:
    """What `train --weights FILE` does with a file."""

    def action() -> None:
        plan = plan_weights(arch, str(path))
        model = create_model(arch, 2, size=KERAS_SIZE if arch == KERAS_ARCH else 32, **plan.options)
        load_weights(model, arch, plan, ("blue", "red"))

    return action


# Weights


def own_weights_bytes(draw: random.Random, box: Box, run: Path) -> Action:
    path = box.work / "model.safetensors"
    path.write_bytes(mutate_bytes((run / "model.safetensors").read_bytes(), draw))
    return _predict(path, box)


def own_weights_metadata(draw: random.Random, box: Box, run: Path) -> Action:
    """Metadata that were changed and signed again, as a stranger can."""
    import flowers_torch.files.tensors as tensors_module

    path = box.work / "model.safetensors"
    tensors, metadata = safe_load(run / "model.safetensors")
    if draw.random() < 0.3:
        name = draw.choice(sorted(tensors))
        tensors[name] = _odd_tensor(draw)
    else:
        part = metadata["model_info"] if draw.random() < 0.8 else metadata
        if draw.random() < 0.5:
            part[draw.choice(sorted(part))] = draw.choice(VALUES)
        elif draw.random() < 0.5:
            preprocessing = metadata["model_info"]["preprocessing"]
            key = draw.choice(sorted(preprocessing))
            odd = (0, -1, 2, 1e-12, 10**9, [0, 0, 0], [1e39] * 3, "bicubic", *VALUES)
            preprocessing[key] = draw.choice(odd)
        else:
            metadata = mutate_value(metadata, draw)
    texts = {str(key): to_text(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    if draw.random() < 0.1 and texts:
        texts[draw.choice(sorted(texts))] = draw.choice(("[" * 100_000, "{", "", "9" * 5000, PAINT))
    texts = {key.encode("utf-8", "replace").decode(): value for key, value in texts.items()}
    texts[tensors_module.HASH_KEY] = json.dumps(tensors_module._checksum(tensors, texts))
    path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, texts))
    return draw.choice((_predict(path, box), _command("pack", path, "--out", box.work / "packed"), _start_from(path)))


def _odd_tensor(draw: random.Random) -> torch.Tensor:
    makers: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: torch.zeros(0),
        lambda: torch.tensor(float("nan")),
        lambda: torch.zeros(64, 3, 7, 7, dtype=torch.float8_e4m3fn),
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.zeros(3, dtype=torch.bool),
        lambda: torch.full((3,), 2**62),
        lambda: torch.full((5,), math.inf, dtype=torch.bfloat16),
        lambda: torch.zeros(1, 1, 1, 1, 1, 1),
    )
    return draw.choice(makers)()


def safetensors_header(draw: random.Random, box: Box, run: Path) -> Action:
    content = (run / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, payload = json.loads(content[8 : 8 + length]), content[8 + length :]
    header = mutate_value(header, draw) if draw.random() < 0.7 else {"x": _entry(draw)}
    stated = draw.choice((None, None, 0, 1, 2**40, 2**63, length * 2))
    path = box.work / "model.safetensors"
    path.write_bytes(safetensors_bytes(header, payload, stated))
    return draw.choice((_predict(path, box), _start_from(path)))


def _entry(draw: random.Random) -> dict[str, Any]:
    shape = draw.choice(([], [0], [2**31, 2**31], [2**62, 4], [-1], [1] * 3000, [1.5], "x", None, [10**12]))
    offsets = draw.choice(([0, 0], [0, 4], [4, 0], [0, 2**63], [-4, 4], [0], None))
    return {"dtype": draw.choice(("F32", "F8_E4M3", "I64", "BOOL", "X", None)), "shape": shape, "data_offsets": offsets}


def pth_bytes(draw: random.Random, box: Box, run: Path) -> Action:
    path = box.work / "weights.pth"
    file = io.BytesIO()
    model = create_model(ARCH, 2, size=32)
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=draw.random() < 0.7)
    path.write_bytes(mutate_bytes(file.getvalue(), draw))
    return _start_from(path)


def pth_content(draw: random.Random, box: Box, run: Path) -> Action:
    path = box.work / "weights.pth"
    model = create_model(ARCH, 2, size=32)
    state: Any = model.state_dict()
    name = draw.choice(sorted(state))
    huge = torch.zeros(1).expand(10**6, 10**6)
    makers: tuple[Callable[[], Any], ...] = (
        lambda: Payload(box),
        lambda: {"state_dict": state, "other": Payload(box)},
        lambda: OrderedDict(state, extra=Payload(box)),
        lambda: state | {name: torch.zeros(3).to_sparse()},
        lambda: state | {name: torch.empty(3, device="meta")},
        lambda: state | {name: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)},
        lambda: state | {name: torch.zeros(3, dtype=torch.float8_e5m2)},
        lambda: state | {name: torch.zeros(3, dtype=torch.complex64)},
        lambda: state | {name: huge},
        lambda: state | {name: torch.zeros(1).expand(10**12)},
        lambda: {"model": huge},
        lambda: {1: torch.zeros(1)},
        lambda: {"module." * 50 + name: torch.zeros(1)},
        lambda: {PAINT: torch.zeros(1)},
        lambda: [state],
        lambda: draw.choice((None, 1, "x", [], {}, torch.zeros(3), model.fc)),
        lambda: {"state_dict": {"model": {"state_dict": state}}},
        lambda: state | {name: None},
        lambda: state | {name: np.float64(1.0)},
    )
    torch.save(draw.choice(makers)(), path)
    if draw.random() < 0.2:
        path.write_bytes(pickle.dumps(Payload(box), protocol=draw.choice((0, 2, 4))))
    elif draw.random() < 0.2:  # the same archive again, compressed or with other members
        with zipfile.ZipFile(path) as old:
            members = [(info.filename, old.read(info)) for info in old.infolist()]
        members += draw.choice(([], [("archive/data/999", b"\0" * 10**7)], [("archive/code/x.py", b"import os")]))
        with zipfile.ZipFile(path, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
            for member, content in members:
                new.writestr(member, content)
    return _start_from(path)


def _keras_h5(file: Any) -> None:
    """The weights of `KERAS_ARCH` as Keras 2 writes them."""
    group = file.create_group("model_weights")
    kernel, vector = np.ones((7, 7, 3, 32), np.float32), np.ones(32, np.float32)
    layers = {"conv0": [kernel, vector], "bn0": [vector] * 4, "dense": [np.ones((512, 2)), np.ones(2)]}
    group.attrs["layer_names"] = [name.encode() for name in layers]
    for name, arrays in layers.items():
        layer = group.create_group(name)
        layer.attrs["weight_names"] = [f"{name}/{number}".encode() for number in range(len(arrays))]
        for number, array in enumerate(arrays):
            layer.create_dataset(f"{name}/{number}", data=array)


def keras_bytes(draw: random.Random, box: Box, run: Path) -> Action:
    path, memory = box.work / "weights.h5", io.BytesIO()
    with h5py.File(memory, "w") as file:
        _keras_h5(file)
    path.write_bytes(mutate_bytes(memory.getvalue(), draw))
    return _start_from(path, "resnet50" if draw.random() < 0.1 else KERAS_ARCH)


def _hostile_h5(file: Any, group: Any, draw: random.Random, box: Box, name: str) -> None:
    """Replaces or adds one member of a group."""
    if name in group:
        del group[name]
    kind = draw.randrange(9)
    if kind == 0:
        group[name] = h5py.ExternalLink(str(box.outside / "precious"), "/x")
    elif kind == 1:
        pipe = box.work / "pipe"
        import os

        if not pipe.exists():
            os.mkfifo(pipe)
        group[name] = h5py.ExternalLink(str(pipe), "/x")
    elif kind == 2:
        layout = h5py.VirtualLayout(shape=(8, 2), dtype="f4")
        layout[:] = h5py.VirtualSource(str(box.work / "fixed" / "other.h5"), "x", shape=(8, 2))
        group.create_virtual_dataset(name, layout)
    elif kind == 3:
        group.create_dataset(name, shape=(10**6, 1000), dtype="f4", chunks=(1000, 1000), compression="gzip")
    elif kind == 4:
        group[name] = h5py.SoftLink(group.name)
    elif kind == 5:
        group.create_dataset(name, data=np.array(["x", PAINT], dtype=h5py.string_dtype()))
    elif kind == 6:
        group.create_dataset(name, data=np.zeros((8, 2), draw.choice(("f8", "i8", "c16", "S4", "u1", "f2"))))
    elif kind == 7:
        group.create_dataset(name, shape=(8, 2), dtype="f4", external=[(str(box.outside / "precious"), 0, 64)])
    else:
        group.create_dataset(name, data=np.zeros(draw.choice(((), (0,), (1,) * 32))))


def keras_structure(draw: random.Random, box: Box, run: Path) -> Action:
    path = box.work / draw.choice(("weights.h5", "model.weights.h5"))
    with h5py.File(path, "w") as file:
        if draw.random() < 0.5:
            _keras_h5(file)
            layer = file[f"model_weights/{draw.choice(('conv0/conv0', 'bn0/bn0', 'dense/dense'))}"]
            _hostile_h5(file, layer, draw, box, draw.choice(("0", "1")))
            if draw.random() < 0.3:
                odd = ([b"dense"] * 3000, [b"conv0"] * 2, [b"../x"], [PAINT.encode()], 7, "x", np.zeros(3))
                file["model_weights"].attrs["layer_names"] = draw.choice(odd)
        else:  # Keras 3; with levels of two links to one group
            above = file.create_group("layers")
            for level in range(draw.choice((1, 40))):
                below = file.create_group(f"level{level}")
                above["a"] = above["b"] = below
                below["layers"] = inner = file.create_group(f"inner{level}")
                above = inner
            variables = above.create_group("dense/vars")
            _hostile_h5(file, variables, draw, box, draw.choice(("0", "1", "x", PAINT)))
    return _start_from(path, KERAS_ARCH)


def keras_archive(draw: random.Random, box: Box, run: Path) -> Action:
    path, memory = box.work / "model.keras", io.BytesIO()
    with h5py.File(memory, "w") as file:
        _keras_h5(file)
        if draw.random() < 0.3:
            file.create_dataset("large", data=np.zeros(10**8, np.int8), chunks=True, compression="gzip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", memory.getvalue())
        archive.writestr("config.json", "{}")
        if draw.random() < 0.2:
            archive.writestr("model.weights.h5", bytes(5 * 10**8))
    content = path.read_bytes()
    path.write_bytes(mutate_bytes(content, draw) if draw.random() < 0.5 else _damage_directory(content, draw))
    return _start_from(path, KERAS_ARCH)


def _damage_directory(content: bytes, draw: random.Random) -> bytes:
    """A zip whose central directory or end record is wrong."""
    at = content.rfind(draw.choice((b"PK\x01\x02", b"PK\x05\x06")))
    data = bytearray(content)
    place = at + draw.randrange(4, 46)
    data[place : place + 2] = draw.randbytes(2)
    return bytes(data)


def onnx_bytes(draw: random.Random, box: Box, run: Path) -> Action:
    path = box.work / "model.onnx"
    path.write_bytes(mutate_bytes((run.parent / "model.onnx").read_bytes(), draw))
    return _open_onnx(path, box)


def onnx_metadata(draw: random.Random, box: Box, run: Path) -> Action:
    import onnx

    path = box.work / "model.onnx"
    model = onnx.load_model(run.parent / "model.onnx")
    entry = draw.choice(list(model.metadata_props))
    text = draw.choice((to_text(draw.choice(VALUES)), "[" * 50_000, "{", "", "NaN", "9" * 5000))
    entry.value = mutate_text(entry.value, draw).decode("utf-8", "replace") if draw.random() < 0.4 else text
    if draw.random() < 0.2:
        tensor = model.graph.initializer[0]
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=str(box.outside / "precious"))
    path.write_bytes(model.SerializeToString())
    return _open_onnx(path, box)


def _open_onnx(path: Path, box: Box) -> Action:
    def action() -> None:
        from flowers_torch.deploy.onnx_file import open_onnx

        open_onnx(path, threads=1)

    return action


# Data


def _small_archive(kind: str) -> bytes:
    file = io.BytesIO()
    photo = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(photo, "PNG")
    members = [f"set/{label}/{n}.png" for label in ("red", "blue") for n in range(3)]
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in members:
                archive.writestr(name, photo.getvalue())
    else:
        with tarfile.open(fileobj=file, mode=f"w:{kind}", format=tarfile.PAX_FORMAT) as tar:
            for name in members:
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(photo.getvalue()), {"comment": "x" * 200}
                tar.addfile(info, io.BytesIO(photo.getvalue()))
    return file.getvalue()


SUFFIX = {"zip": ".zip", "gz": ".tar.gz", "bz2": ".tar.bz2", "xz": ".tar.xz", "": ".tar"}


def _open(path: Path | str) -> Action:
    return lambda: open_dataset(path)


def archive_bytes(draw: random.Random, box: Box, run: Path) -> Action:
    kind = draw.choice(list(SUFFIX))
    path = box.work / f"photos{SUFFIX[kind]}"
    content = _small_archive(kind)
    if kind == "gz" and draw.random() < 0.5:  # inside of the compression
        content = gzip.compress(mutate_bytes(gzip.decompress(content), draw))
    else:
        content = mutate_bytes(content, draw)
    path.write_bytes(_damage_directory(content, draw) if kind == "zip" and draw.random() < 0.5 else content)
    return _open(path)


def archive_names(draw: random.Random, box: Box, run: Path) -> Action:
    name = draw.choice(NAMES).replace("{outside}", str(box.outside)[1:])
    if draw.random() < 0.5:
        path = box.work / "photos.zip"
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = draw.choice((0, 0o120777 << 16, 0o100644 << 16, 0o010644 << 16, 0o040755 << 16))
            archive.writestr(info, str(box.outside))
            archive.writestr(draw.choice(("x/1.png", name or "x")), b"content")
    else:
        path = box.work / draw.choice(("photos.tar", "photos.tar.gz"))
        with tarfile.open(path, f"w:{'gz' if path.suffix == '.gz' else ''}") as tar:
            for kind in draw.sample((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, b"6"), 2):
                info = tarfile.TarInfo(name.replace("\0", "%"))
                info.type, info.linkname = kind, draw.choice((str(box.outside), "../../outside", name or "x"))
                if kind == tarfile.REGTYPE:
                    info.size = 5
                tar.addfile(info, io.BytesIO(b"12345"))
            inner = tarfile.TarInfo(f"{name}/x".replace("\0", "%"))
            inner.size = 5
            tar.addfile(inner, io.BytesIO(b"12345"))
    return _open(path)


def tar_headers(draw: random.Random, box: Box, run: Path) -> Action:
    """Sizes, extended headers and global headers that state what is not there."""
    size = draw.choice((0, 5, 511, 2**33 - 1, 2**30))
    odd = draw.choice((b"", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"9" * 12, b" " * 12))
    pax = draw.choice((b"30 size=99999999999999999999\n", b"11 path=\xff\n", b"99 x=y\n", b"12 size=abc\n", b"0 \n"))
    blocks = []
    for kind in draw.sample((b"x", b"g", b"L", b"K", b"S", b"0", b"1", b"2"), draw.choice((1, 2, 4))):
        body = pax if kind in (b"x", b"g") else b"../../outside/x".ljust(20, b"\0")
        stated = draw.choice((len(body), size))
        blocks.append(tar_header(b"a", stated, kind, b"/etc/passwd", draw.choice((b"", odd))) + body.ljust(512, b"\0"))
    content = b"".join(blocks * draw.choice((1, 1, 400))) + tar_header(b"red/1.png", 5) + b"12345".ljust(512, b"\0")
    content += bytes(draw.choice((0, 1024, 10240)))
    path = box.work / draw.choice(("photos.tar", "photos.tar.gz", "shards"))
    if path.name == "shards":
        path.mkdir(exist_ok=True)
        (path / "train-0.tar").write_bytes(content)
    else:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return _open(path)


def shards(draw: random.Random, box: Box, run: Path) -> Action:
    folder = box.work / "shards"
    folder.mkdir()
    file, photo = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "PNG")
    labels = (b"0", b"1", b"red", b"9" * 5000, b"100000000", b"-1", PAINT.encode(), b"", b"\xff\xfe", b"../x", b"1.5")
    values = ({"label": 1}, {"label": "red"}, {"label": None}, {"label": 10**400}, [], {"label": {}}, {"cls": [1]})
    with tarfile.open(fileobj=file, mode="w:") as tar:
        for number in range(6):
            name = draw.choice((f"{number}", f"{number}", f"red/{number}", "../../outside/x", "/abs", PAINT, "0"))
            json_text = draw.choice((to_text(draw.choice(values)), "[" * 100_000, "{", "NaN")).encode()
            fields = [(".png", photo.getvalue()), draw.choice(((".cls", draw.choice(labels)), (".json", json_text)))]
            for suffix, content in fields:
                info = tarfile.TarInfo((name + suffix).replace("\0", ""))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    content = file.getvalue()
    (folder / "train-0.tar").write_bytes(mutate_bytes(content, draw) if draw.random() < 0.4 else content)
    if draw.random() < 0.3:
        (folder / "classes.txt").write_bytes(mutate_text("red\nblue\n", draw))
    return _open(folder)


def course_hdf5(draw: random.Random, box: Box, run: Path) -> Action:
    path = box.work / "train_signs.h5"
    with h5py.File(path, "w") as file:
        file["train_set_x"] = np.zeros((6, 8, 8, 3), np.uint8)
        file["train_set_y"] = np.array([[0, 1, 0, 1, 0, 1]])
        file["list_classes"] = np.array([b"red", b"blue"])
        if draw.random() < 0.4:
            name = draw.choice(("train_set_x", "train_set_y", "list_classes"))
            _hostile_h5(file, file, draw, box, name)
        elif draw.random() < 0.5:
            del file["train_set_y"]
            odd = ([10**8] * 6, [-1] * 6, [2**63 - 1] * 6, [0.5] * 6, [float("nan")] * 6, [[0]] * 6, [b"x"] * 6, [0])
            file["train_set_y"] = np.array(draw.choice(odd))
        else:
            del file["train_set_x"]
            shapes = ((6, 8, 8, 5), (6, 0, 8, 3), (6, 3), (6, 3, 3, 3), (7, 8, 8, 3), (6, 8, 8, 3, 1))
            file["train_set_x"] = np.full(draw.choice(shapes), draw.choice((0, 300, -1, 0.5, np.nan, 1e30)))
    if draw.random() < 0.4:
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    return _open(path)


def table(draw: random.Random, box: Box, run: Path) -> Action:
    photos = box.work / "fixed" / "photos"
    rows = [f"{path.relative_to(box.work)},{path.parent.name},train\n" for path in sorted(photos.glob("*/*.png"))]
    path = box.work / draw.choice(("labels.csv", "labels.tsv"))
    path.write_bytes(mutate_text("file,label,split\n" + "".join(rows), draw))
    return _open(path)


def configuration(draw: random.Random, box: Box, run: Path) -> Action:
    text = (run / "config.toml").read_text()
    path = box.work / "config.toml"
    path.write_bytes(mutate_text(text, draw))
    if draw.random() < 0.5:
        odd = (
            "1e400",
            "9" * 5000,
            '"\\u001b[2J"',
            "[" * 500 + "]" * 500,
            "{}",
            "nan",
            "-inf",
            '"x"',
            "[1]",
            "true",
            "''",
        )
        lines = [line for line in text.splitlines(keepends=True)]
        at = draw.choice([n for n, line in enumerate(lines) if " = " in line])
        lines[at] = lines[at].partition(" = ")[0] + f" = {draw.choice(odd)}\n"
        path.write_text("".join(lines))
    if draw.random() < 0.3:
        words = ("--arch", ARCH, "--weights", "none", "--size", "32", "--data", box.work / "fixed" / "photos")
        return _command("train", "--config", path, "--dry-run", *words)
    return lambda: load_config(file=str(path))


# Records of runs and of the cache


def _copy_of(run: Path, box: Box) -> Path:
    copy = box.work / "runs" / "copy"
    copy.parent.mkdir(exist_ok=True)
    shutil.copytree(run, copy)
    return copy


def run_file(draw: random.Random, box: Box, run: Path) -> Action:
    copy = _copy_of(run, box)
    texts = [path for path in sorted(copy.iterdir()) if path.suffix in (".json", ".csv", ".txt", ".toml")]
    _mutate_file(draw.choice(texts), draw)
    photos = box.work / "fixed" / "photos"
    commands = (
        ("report", copy),
        ("runs", copy.parent),
        ("runs", copy.parent, "--json"),
        ("evaluate", copy, "--device", "cpu", "--json", "--data", photos),
        ("compare", copy, run),
        ("label-issues", copy),
        ("train", "--resume", copy),
        ("predict", copy, _photo(box), "--json", "--device", "cpu"),
        ("check", photos, "--exclude", copy / "split.json"),
        ("ensemble", copy, run),
        ("pack", copy, "--out", box.work / "packed"),
        ("update", copy, box.work / "fixed" / "photos"),
        ("evaluate", copy, "--save", "--device", "cpu"),
        ("reproduce", "happy_house", "--run", copy, "--results", box.work / "results.jsonl"),
    )
    return _command(*draw.choice(commands[:-1]))


def _mutate_file(path: Path, draw: random.Random) -> None:
    """Mutates the values or the bytes of a text file."""
    text, kind = path.read_text(), draw.random()
    if path.suffix == ".json" and kind < 0.7:
        path.write_text(to_text(mutate_value(json.loads(text), draw)), errors="surrogatepass")
    elif path.suffix == ".csv" and kind < 0.5:
        rows = [line.split(",") for line in text.splitlines()]
        row = draw.choice(rows)
        odd = (
            "",
            "nan",
            "-inf",
            "1e400",
            "-1",
            "0",
            "9" * 400,
            "9" * 5000,
            "\u0662",
            "x",
            PAINT,
            "1_000",
            "0x1",
            " 1 ",
        )
        row[draw.randrange(len(row))] = draw.choice(odd)
        path.write_text("".join(",".join(row) + "\n" for row in rows))
    elif path.suffix == ".toml" and kind < 0.5:
        lines = text.splitlines()
        at = draw.choice([number for number, line in enumerate(lines) if " = " in line])
        odd = (
            "1e400",
            "9" * 400,
            "0x" + "f" * 9000,
            "nan",
            "-1",
            "[]",
            "{}",
            '""',
            '"\\u0000"',
            '"../x"',
            "1979-05-27",
        )
        lines[at] = lines[at].partition(" = ")[0] + f" = {draw.choice(odd)}"
        path.write_text("\n".join(lines))
    else:
        path.write_bytes(mutate_text(text, draw))


def crossval_file(draw: random.Random, box: Box, run: Path) -> Action:
    """The summary of a cross-validation, or a record of one of its folds."""
    copy = box.work / "runs" / "folds"
    shutil.copytree(box.work / "fixed" / "folds", copy)
    names = ("crossval.json", "crossval.json", "config.toml", "predictions.csv")
    inside = [f"seed1-fold1/{name}" for name in ("metrics.json", "split.json", "predictions.csv", "config.toml")]
    _mutate_file(copy / draw.choice((*names, *inside)), draw)
    commands = (
        ("crossval", "--resume", copy),
        ("crossval", "--resume", copy),
        ("ensemble", copy),
        ("runs", copy.parent),
    )
    return _command(*draw.choice(commands))


def report_file(draw: random.Random, box: Box, run: Path) -> Action:
    """A record that the report shows."""
    copy = _copy_of(run, box)
    names = ("metrics.json", "split.json", "history.csv", "label_issues.json", "config.toml", "environment.json")
    path = copy / draw.choice((*names, "history.csv", "label_issues.json", "predictions.safetensors"))
    if path.suffix == ".safetensors":
        _mutate_signed(path, draw)
    else:
        _mutate_file(path, draw)
    return _command(*draw.choice((("report", copy), ("report", copy, "--no-photos"), ("compare", copy, run))))


def _mutate_signed(path: Path, draw: random.Random) -> None:
    """Mutates a file of tensors and signs it again."""
    import flowers_torch.files.tensors as tensors_module

    tensors, metadata = safe_load(path)
    if draw.random() < 0.4:
        name = draw.choice(sorted(tensors))
        odd = (tensors[name][:1], tensors[name].flatten(), -tensors[name].float(), tensors[name] * float("nan"))
        tensors[name] = draw.choice((_odd_tensor(draw), *odd)).contiguous()
    else:
        metadata = mutate_value(metadata, draw)
    texts = {str(key): to_text(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    texts = {key.encode("utf-8", "replace").decode(): value for key, value in texts.items()}
    texts[tensors_module.HASH_KEY] = json.dumps(tensors_module._checksum(tensors, texts))
    path.write_bytes(safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()}, texts))


def links(draw: random.Random, box: Box, run: Path) -> Action:
    """A run folder in which a name leads outside: nothing is written through it."""
    stopped = draw.random() < 0.4
    copy = _copy_of(run.parent / "stopped" if stopped else run, box)
    names = (".lock", "log.txt", "report.html", "history.csv", "figures", "exported", "packed", "label_issues.json")
    path = copy / draw.choice(names)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    folder = path.name in ("figures", "exported", "packed")
    path.symlink_to(
        draw.choice((box.outside, box.outside / "new") if folder else (box.outside / "precious", "/dev/zero"))
    )
    if stopped:
        return _command("train", "--resume", copy, "--quiet")
    words = ("train", "--data", box.work / "fixed" / "photos", "--arch", ARCH, "--weights", "none", "--size", "32")
    again = (*words, "--epochs", "1", "--device", "cpu", "--threads", "1", "--quiet", "--out", copy, "--overwrite")
    onnx = ("export", copy, "--format", "safetensors")
    return _command(
        *draw.choice((("report", copy), onnx, ("pack", copy), ("label-issues", copy), ("runs", copy.parent), again))
    )


def checkpoint(draw: random.Random, box: Box, run: Path) -> Action:
    copy = _copy_of(run.parent / "stopped", box)
    path = draw.choice(sorted(copy.glob("*.safetensors")))
    if draw.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    else:
        import flowers_torch.files.tensors as tensors_module

        tensors, metadata = safe_load(path)
        metadata = mutate_value(metadata, draw)
        texts = {str(key): to_text(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
        texts = {key.encode("utf-8", "replace").decode(): value for key, value in texts.items()}
        texts[tensors_module.HASH_KEY] = json.dumps(tensors_module._checksum(tensors, texts))
        path.write_bytes(safetensors.torch.save(tensors, texts))
    return _command("train", "--resume", copy, "--quiet")


def inspections(draw: random.Random, box: Box, run: Path) -> Action:
    """The cache of `check`, which may be damaged but never ends a run and is not believed."""
    cache, photos = box.root / "cache", box.work / "fixed" / "photos"
    shutil.copytree(box.work / "fixed" / "cache", cache, dirs_exist_ok=True)
    path = draw.choice(sorted((cache / "inspections").iterdir()))
    content = path.read_bytes()
    head, _, values = content.partition(b"\n")
    if draw.random() < 0.6:
        path.write_bytes(head + b"\n" + to_text(mutate_value(json.loads(values), draw)).encode())
    else:
        path.write_bytes(mutate_bytes(content, draw))
    expected = [inspect_image(photos / name) for name in find_images(photos).paths]

    def action() -> None:
        assert inspect_images(find_images(photos), 1, cache) == expected

    return action if draw.random() < 0.5 else _command("check", photos, "--json")


def feature_cache(draw: random.Random, box: Box, run: Path) -> Action:
    """Features of a backbone, damaged or signed by somebody else; they are computed again."""
    cache = box.root / "cache"
    shutil.copytree(box.work / "fixed" / "cache", cache, dirs_exist_ok=True)
    path = draw.choice(sorted((cache / "features").glob("*.safetensors")))
    kind = draw.random()
    if kind < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    elif kind < 0.4:
        path.unlink()
        draw.choice((path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(path)))()
    else:
        _mutate_signed(path, draw)
    code = _command("label-issues", _copy_of(run, box), "--json")

    def action() -> int:
        return int(code()) and 1  # a cache never ends a run

    return action


def groups_table(draw: random.Random, box: Box, run: Path) -> Action:
    photos = sorted((box.work / "fixed" / "photos").glob("*/*.png"))
    rows = "".join(f"{path.parent.name}/{path.name},{number // 2}\n" for number, path in enumerate(photos))
    path = box.work / "groups.csv"
    path.write_bytes(mutate_text("file,group\n" + rows, draw))
    words = ("train", "--data", box.work / "fixed" / "photos", "--arch", ARCH, "--weights", "none", "--groups", path)
    return _command(*words, "--dry-run", "--device", "cpu", "--threads", "1")


def exclude_list(draw: random.Random, box: Box, run: Path) -> Action:
    photos = sorted((box.work / "fixed" / "photos").glob("*/*.png"))
    rows = "".join(f"{path.parent.name}/{path.name},blank\n" for path in photos[:3])
    path = box.work / "exclude.csv"
    path.write_bytes(mutate_text("file,reason\n" + rows, draw))
    words = ("train", "--data", box.work / "fixed" / "photos", "--arch", ARCH, "--weights", "none", "--exclude", path)
    return _command(*words, "--dry-run", "--device", "cpu", "--threads", "1")
