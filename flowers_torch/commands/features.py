"""`flowers-torch features`: what a layer answers to photos, written to a file."""

import argparse
from pathlib import Path

from flowers_torch.errors import UsageError, printable


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
    import os

    from flowers_torch.deploy.classifier import find_files
    from flowers_torch.deploy.features import image_features, open_network
    from flowers_torch.files.atomic import atomic_write
    from flowers_torch.files.tensors import safe_save
    from flowers_torch.training.device import choose_runtime

    out = Path(args.out).expanduser()
    if out.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"cannot write features to {printable(out)}", "end --out in .npz or .safetensors")
    if args.batch_size < 1:
        raise UsageError("--batch-size must be 1 or more", "give a positive number")
    photos = find_files(args.photos)
    model, preprocessing, loaded = open_network(args.model, args.weights, args.keras_input)
    print(loaded)
    runtime = choose_runtime(args.device, "fp32")
    pooling = "" if args.pooling == "none" else args.pooling
    result = image_features(model, preprocessing, photos, runtime, args.layer, pooling, args.batch_size)
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
