"""A drawing of a network's graph: layers as boxes from top to bottom, connections as lines.

The usual three steps for layered graphs: each layer goes one row below its lowest input, a connection that
skips rows gets a place of its own in each, and the places of a row are ordered so that lines cross little.
"""

from collections.abc import Sequence
from pathlib import Path

from flowers_torch.errors import UsageError, printable
from flowers_torch.files import atomic_write
from flowers_torch.models.keras_layers import KerasLayer

COLOURS = (  # of boxes, by what the kind contains
    ("padding", "#f2f3f5"),  # no "add"
    ("conv", "#cfe3f6"),
    ("norm", "#e6e0f2"),
    ("pool", "#f9dfc8"),
    ("cat", "#fbf3c0"),
    ("add", "#fbf3c0"),
    ("dense", "#d6efd2"),
    ("linear", "#d6efd2"),
)
Place = tuple[float, int]  # across, row


def layout(rows: Sequence[KerasLayer]) -> tuple[dict[str, Place], list[list[Place]]]:
    """Where each layer goes, and the points that each connection passes.

    Returns:
        Place of each layer by name (1 across is a box's width), and one list of places per connection.
    """
    level: dict[str, int] = {}
    for row in _in_order(rows):
        level[row.name] = max((level[name] + 1 for name in row.inputs), default=0)
    chains: list[list[str]] = []
    members: dict[int, list[str]] = {}
    parents: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: level[row.name]):
        members.setdefault(level[row.name], []).append(row.name)
    for row in rows:
        for name in row.inputs:
            chain = [name]
            for depth in range(level[name] + 1, level[row.name]):
                step = f"{name}>{row.name}@{depth}"
                members[depth].append(step)
                parents[step] = [chain[-1]]
                chain.append(step)
            parents.setdefault(row.name, []).append(chain[-1])
            chains.append([*chain, row.name])
    across: dict[str, float] = {}
    for depth in sorted(members):
        wish = {
            name: sum(across[p] for p in parents.get(name, ())) / max(1, len(parents.get(name, ())))
            for name in members[depth]
        }
        ordered = sorted(members[depth], key=wish.__getitem__)
        middle = sum(wish.values()) / len(wish)
        for i, name in enumerate(ordered):
            across[name] = middle + i - (len(ordered) - 1) / 2
        level |= dict.fromkeys(members[depth], depth)
    places = {row.name: (across[row.name], level[row.name]) for row in rows}
    return places, [[(across[name], level[name]) for name in chain] for chain in chains]


def _in_order(rows: Sequence[KerasLayer]) -> list[KerasLayer]:
    """Each row behind its inputs; rows may come in any order."""
    done: dict[str, KerasLayer] = {}
    waiting = list(rows)
    while waiting:
        ready = [row for row in waiting if all(name in done for name in row.inputs)]
        done |= {row.name: row for row in ready}
        waiting = [row for row in waiting if row.name not in done]
    return list(done.values())


def plot(rows: Sequence[KerasLayer], path: Path, title: str = "") -> None:
    """Draws a network.

    Args:
        rows: Its layers, from `layer_rows`.
        path: .svg or .png; replaced once the new drawing is complete.
        title: Printed at the top.

    Raises:
        UsageError: another suffix, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"cannot draw into {printable(path)}", "name a file that ends in .svg or .png")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("drawing needs matplotlib", 'pip install "flowers-torch[plots]"') from error
    places, connections = layout(rows)
    left = min(x for line in connections for x, _ in line)
    right = max(x for line in connections for x, _ in line)
    depth = max(y for _, y in places.values())
    width, height = 2.3 * (right - left + 1.1), 0.55 * (depth + 2)  # inches
    dots = min(100.0, 65000 / (100 * max(width, height)) * 100)  # PNG cannot be larger than 65535 pixels
    figure = Figure(figsize=(width, height), dpi=dots)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left - 0.55, right + 0.55)
    axes.set_ylim(depth + 0.9, -1.1)
    axes.axis("off")
    axes.text((left + right) / 2, -0.8, title, ha="center", va="center", fontsize=11, weight="bold")
    for line in connections:
        axes.plot([x for x, _ in line], [y for _, y in line], color="#8a8f98", linewidth=0.9, zorder=1)
    for row in rows:
        x, y = places[row.name]
        box = dict(boxstyle="round,pad=0.25", facecolor=_colour(row.kind), edgecolor="#6b7280", linewidth=0.6)
        shape = "x".join(map(str, row.shape[1:]))
        text = f"{_short(row.name)}\n{row.kind}  {shape}"
        axes.text(x, y, text, ha="center", va="center", fontsize=6, bbox=box, zorder=2)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def _colour(kind: str) -> str:
    return next((colour for word, colour in COLOURS if word in kind.lower()), "#f2f3f5")


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else f"…{name[-limit + 1 :]}"
