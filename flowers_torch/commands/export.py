"""Write a trained model for other programs, after a comparison with the network on photos."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_data, add_run, fraction

EXAMPLES = """examples:
  flowers-torch export runs/photos-inception_v3-1                            an .onnx file
  flowers-torch export runs/photos-inception_v3-1 --with-preprocessing --int8
  flowers-torch export runs/photos-inception_v3-1 --format page              a page to try it in a browser
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_data(parser)
    parser.add_argument("--format", default="onnx", metavar="NAME", help="onnx, torch-export, safetensors, page [onnx]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write [exported/ beside the weights]")
    parser.add_argument("--with-preprocessing", action="store_true", help="onnx, torch-export: take photos of any size")
    parser.add_argument("--int8", action="store_true", help="onnx, page: eight bits, a quarter of the size")
    parser.add_argument("--max-loss", default="2%", metavar="P", help="accuracy that --int8 may lose [2%%]")
    parser.add_argument("--runtime", default="", metavar="PATH", help="page: onnxruntime-web from npm, folder or .tgz")
    parser.add_argument("--folder", action="store_true", help="page: write a folder even if one file is possible")


def run(args: argparse.Namespace) -> None:
    """Writes the file; exit code 8 and no file if it does not compute what the network computes."""
    max_loss = fraction(args.max_loss, "--max-loss")

    from flowers_torch.log import console
    from flowers_torch.runs.export import ExportOptions, export
    from flowers_torch.runs.folder import find_run

    options = ExportOptions(args.with_preprocessing, args.int8, max_loss, args.runtime, args.folder, args.moved)
    options.check(args.format)  # before a run is looked for
    with console():
        export(find_run(args.run), args.format, args.out, options)
