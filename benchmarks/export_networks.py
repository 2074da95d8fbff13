"""Exports every network of the registry to ONNX and times it against PyTorch, one photo at a time.

    python benchmarks/export_networks.py --results export.jsonl            those that the file lacks
    python benchmarks/export_networks.py --results export.jsonl resnet50   some
    python benchmarks/export_networks.py --results export.jsonl --table    writes the table into docs/export.md

Nothing else should run. Random weights and 17 classes at each network's usual size. The check is that of
`flowers-torch export`, on drawn flowers in batches of 1, 2 and 17.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowers_torch.data.sources.demo import FORMS, draw_picture
from flowers_torch.deploy.export import PARITY_IMAGES, compare
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.deploy.onnx_file import export_metadata, parse_onnx, to_onnx
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.registry import REGISTRY

PAGE = Path(__file__).parent.parent / "docs/export.md"
MARKS = ("<!-- networks -->", "<!-- /networks -->")


def median_ms(run: Callable[[], Any], seconds: float = 2.0) -> float:
    """Median time of a call in milliseconds, after one call that does not count."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def settle(network: torch.nn.Module, size: int) -> None:
    """Gives batch norm the statistics of some pictures: with its first ones the logits fade to nothing."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 3, size, size))
    network.eval()


def measure(name: str, threads: int) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    info = ModelInfo(name, tuple(f"class {i}" for i in range(17)), REGISTRY[name].preprocessing)
    network = build(info)
    settle(network, info.preprocessing.size)
    classifier = ExportableClassifier(network, info).eval()
    start = time.perf_counter()
    content = to_onnx(classifier, export_metadata(info, with_preprocessing=False))
    seconds = time.perf_counter() - start
    model = parse_onnx(content, Path(name), threads=threads)
    forms = list(FORMS)
    photos = [draw_picture(forms[i % 6], 200, np.random.default_rng(i)) for i in range(PARITY_IMAGES)]
    parity = compare(classifier, model, photos)
    size = info.preprocessing.size
    image = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        eager = median_ms(lambda: network(image))
    return {
        "network": name,
        "pixels": size,
        "megabytes": len(content) / 1e6,
        "torch_ms": eager,
        "onnxruntime_ms": median_ms(lambda: model(image.numpy())),
        "difference": parity.logits / parity.largest,
        "holds": parity.holds,
        "export_seconds": seconds,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, with every network of the registry."""
    lines = ["| network | pixels | file, MB | torch, ms | onnxruntime, ms | largest difference |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name in sorted(REGISTRY):
        if name not in rows:
            lines.append(f"| {name} | {REGISTRY[name].preprocessing.size} | not measured | | | |")
            continue
        row = rows[name]
        lines.append(
            f"| {name} | {row['pixels']} | {row['megabytes']:.1f} | {row['torch_ms']:.3g} | "
            f"{row['onnxruntime_ms']:.3g} | {row['difference']:.0e}{'' if row['holds'] else ' too much'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measures, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names; all without")
    parser.add_argument("--results", type=Path, required=True, help="a line of JSON for each network")
    parser.add_argument("--threads", type=int, default=2, help="of both")
    parser.add_argument("--table", action="store_true", help="write the table into docs/export.md")
    args = parser.parse_args()
    lines = args.results.read_text().splitlines() if args.results.is_file() else []
    rows = {row["network"]: row for row in map(json.loads, lines)}
    if args.table:
        text = PAGE.read_text()
        before, _, rest = text.partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        PAGE.write_text(f"{before}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{after}")
        return 0
    torch.set_num_threads(args.threads)
    for name in args.networks or [name for name in sorted(REGISTRY) if name not in rows]:
        row = measure(name, args.threads)
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
