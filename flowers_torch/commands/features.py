"""`flowers-torch features`: what a layer answers to photos, written to a file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_torch.errors import UsageError, printable

if TYPE_CHECKING:
    from torch import nn

    from flowers_torch.models.zoo import Preprocessing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of feature extraction."""
    parser.description = (
        "Write a layer's features of photos to .npz or .safetensors: `features` (row i for the i-th photo) "
        "and the photos' names."
    )
    parser.add_argument("model", help="run folder, model.safetensors, or (with --weights) a network")
    parser.add_argument("photos", nargs="+", help="files, folders, globs")
    parser.add_argument("--out", required=True, metavar="FILE", help=".npz or .safetensors")
    parser.add_argument("--weights", default="", help="imagenet | offline | none | file, for a network")
    parser.add_argument(
        "--keras-input", default="", metavar="X", help="caffe | tf | torch | unit, for an .h5"
    )
    parser.add_argument("--layer", default="", help="a name of `flowers-torch layers`; default: the last map")
    parser.add_argument("--pooling", default="avg", help="avg | max | flatten | none")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="photos computed at once")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")


def run(args: argparse.Namespace) -> int:
    """Computes and writes the features; a photo that cannot be read ends it with exit code 3."""
    import dataclasses
    import os

    import torch

    from flowers_torch.data.augment import eval_transform
    from flowers_torch.data.images import load_image
    from flowers_torch.deploy.predict import find_files
    from flowers_torch.files import atomic_write, safe_save
    from flowers_torch.models.features import features, module_name
    from flowers_torch.training.runtime import choose_runtime

    out = Path(args.out).expanduser()
    if out.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"cannot write features to {printable(out)}", "end --out in .npz or .safetensors")
    if args.batch_size < 1:
        raise UsageError("--batch-size must be 1 or more", "give a positive number")
    photos = find_files(args.photos)
    model, preprocessing = _open(args.model, args.weights, args.keras_input)
    runtime = choose_runtime(args.device, "fp32")
    model = runtime.place(model).eval()
    transform = eval_transform(**dataclasses.asdict(preprocessing))
    layer = module_name(model, args.layer) if args.layer else ""
    pooling = "" if args.pooling == "none" else args.pooling
    parts = []
    for start in range(0, len(photos), args.batch_size):
        images = torch.stack([transform(load_image(p)) for p in photos[start : start + args.batch_size]])
        parts.append(features(model, images.to(runtime.device), layer, pooling).float().cpu())
    result = torch.cat(parts)
    names = [os.fspath(photo) for photo in photos]
    if out.suffix == ".npz":
        import numpy as np

        with atomic_write(out) as file:
            np.savez(file, features=result.numpy(), photos=np.array(names))
    else:
        metadata = {"photos": names, "layer": args.layer, "pooling": pooling, "model": args.model}
        safe_save({"features": result}, out, metadata)
    print(f"features {' x '.join(map(str, result.shape))} of {len(photos)} photos in {printable(out)}")
    return 0


def _open(name: str, weights: str, keras_input: str) -> "tuple[nn.Module, Preprocessing]":
    """A trained classifier, or a network of the zoo with the given weights, and how it wants its photos."""
    from flowers_torch.models.classifier import load_classifier
    from flowers_torch.models.weights import load_weights, plan_weights
    from flowers_torch.models.zoo import build_network

    if not weights:
        if keras_input:
            raise UsageError("--keras-input is for a Keras file", "add --weights FILE.h5")
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(
                f"no model at {printable(name)}", "name a run folder, or add --weights to a network's name"
            )
        model, record = load_classifier(path)
        return model, record.preprocessing
    plan = plan_weights(name, weights, keras_input)
    model = build_network(name, options=plan.options)
    print(load_weights(model, name, plan))
    return model, plan.preprocessing
