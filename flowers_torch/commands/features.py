"""Write a layer's features of photos to .npz or .safetensors.

The file holds `features` (row i belongs to photo i) and the names of the photos.
"""

import argparse

from flowers_torch.commands import RUN_HELP, add_device, check_positive
from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.files.system import expand_home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help=f"{RUN_HELP}; with --weights a network")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, folders or globs")
    parser.add_argument("--out", required=True, metavar="FILE", help=".npz or .safetensors")
    parser.add_argument("--weights", default="", metavar="NAME", help="of a network: imagenet, offline, none or a file")
    text = "preprocessing of a Keras file: caffe, tf, torch or unit"
    parser.add_argument("--keras-input", default="", metavar="NAME", help=text)
    text = "a name from `flowers-torch layers` [the last feature map]"
    parser.add_argument("--layer", default="", metavar="NAME", help=text)
    parser.add_argument("--pooling", default="avg", metavar="NAME", help="avg, max, flatten or none [avg]")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Computes and writes the features; exit code 3 if a photo cannot be read."""
    from flowers_torch.deploy.features import image_features, open_network
    from flowers_torch.deploy.inputs import find_files
    from flowers_torch.files.atomic import atomic_write
    from flowers_torch.files.tensors import safe_save
    from flowers_torch.runs.folder import find_run
    from flowers_torch.training.device import choose_runtime

    out = expand_home(args.out)
    if out.suffix not in (".npz", ".safetensors"):
        what = f"--out {printable(out)} is not a valid file name: expected .npz or .safetensors"
        raise UsageError(what, "name a file that ends in .npz or .safetensors")
    check_positive(args, "batch-size")
    photos = find_files(args.photos)
    name = args.model if args.weights or args.keras_input else str(find_run(args.model))
    model, preprocessing, loaded = open_network(name, args.weights, args.keras_input)
    print(loaded)
    runtime = choose_runtime(args.device, "fp32")
    pooling = "" if args.pooling == "none" else args.pooling
    result = image_features(model, preprocessing, photos, runtime, args.layer, pooling, args.batch_size)
    names = [str(photo) for photo in photos]
    if out.suffix == ".npz":
        import numpy as np

        with atomic_write(out) as file:
            np.savez(file, features=result.numpy(), photos=np.array(names))
    else:
        metadata = {"photos": names, "layer": args.layer, "pooling": pooling, "model": args.model}
        safe_save({"features": result}, out, metadata)
    print(f"features {' x '.join(map(str, result.shape))} of {plural(photos, 'photo')} in {printable(out)}")
