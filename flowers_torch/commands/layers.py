"""List a network's layers in order of execution, or with Keras's names and numbers."""

import argparse

from flowers_torch.commands import add_arch, add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arch(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from flowers_torch.models.factory import create_meta_model
    from flowers_torch.models.inspect.summary import layer_rows
    from flowers_torch.models.keras.layers import keras_layers

    model, size = create_meta_model(args.arch, size=args.size)
    rows = keras_layers(model, size) if args.keras else layer_rows(model, size)
    if args.json:
        keys = ("name", "kind", "shape", "parameters", *(["module"] if args.keras else []))
        lines = [{"number": number, **{key: getattr(row, key) for key in keys}} for number, row in enumerate(rows)]
        print_json([line | {"shape": line["shape"][1:]} for line in lines])  # without the batch
        return
    if args.keras:
        print("Keras's first N layers (without head) are the lines with a number below N.")
    width = max(len(row.name) for row in rows)
    for number, row in enumerate(rows):
        ours = f"  {row.module}" if args.keras else ""
        shape = "x".join(map(str, row.shape[1:]))
        print(f"{number:4} {row.name:{width}} {row.kind:22} {shape:14} {row.parameters:>10,}{ours}")
