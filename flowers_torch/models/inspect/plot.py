"""A drawing of a network's graph: layers as boxes from top to bottom, connections as lines.

The usual three steps for layered graphs: each layer goes one row below its lowest input, a connection that
skips rows gets a place of its own in each, and the places of a row are ordered so that lines cross little.
"""

from collections import defaultdict
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from markupsafe import Markup, escape

from flowers_torch.errors import UsageError, printable
from flowers_torch.files.atomic import write_text
from flowers_torch.models.keras.layers import KerasLayer

# Colors of boxes, by what the kind contains; "padding" contains "add".
COLORS = {"padding": "#f2f3f5", "conv": "#cfe3f6", "norm": "#e6e0f2", "pool": "#f9dfc8"}
COLORS |= {"cat": "#fbf3c0", "add": "#fbf3c0", "dense": "#d6efd2", "linear": "#d6efd2", "": "#f2f3f5"}
COLUMN, ROW = 230, 55  # pixels from a box to the next
NAME_LENGTH = 34  # characters; longer names are cut on the left
PICTURE = Markup("""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{0:.0f}" height="{1:.0f}" viewBox="0 0 {0:.0f} {1:.0f}">
<style>
svg {{ background: #fff; font: 10px sans-serif; text-anchor: middle }} .title {{ font: bold 16px sans-serif }}
polyline {{ fill: none; stroke: #8a8f98; stroke-width: 1.3 }} rect {{ stroke: #6b7280; stroke-width: .8 }}
</style>
<text class="title" x="{x:.0f}" y="24">{title}</text>
{body}</svg>
""")
BOX = Markup(
    '<g transform="translate({},{:g})"><rect x="-105" y="-17" width="210" height="34" rx="5" fill="{}"/>'
    '<text y="-3">{}</text><text y="10">{}</text></g>\n'
)
Place = tuple[float, int]  # across, row


def layout(rows: Sequence[KerasLayer]) -> tuple[dict[str, Place], list[list[Place]]]:
    """The place of each layer by name (1 across is a box's width), and the places that each connection passes."""
    level: dict[str, int] = {}
    inputs = {row.name: row.inputs for row in rows}
    for name in TopologicalSorter(inputs).static_order():
        level[name] = max((level[source] + 1 for source in inputs[name]), default=0)
    chains: list[list[str]] = []
    members: dict[int, list[str]] = defaultdict(list)
    parents: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        members[level[row.name]].append(row.name)
    for row in rows:
        for name in row.inputs:
            chain = [name]
            for depth in range(level[name] + 1, level[row.name]):
                step = f"{name}>{row.name}@{depth}"
                members[depth].append(step)
                parents[step] = [chain[-1]]
                chain.append(step)
            parents[row.name].append(chain[-1])
            chains.append([*chain, row.name])
    across: dict[str, float] = {}
    for depth in sorted(members):
        wish = {name: sum(across[p] for p in parents[name]) / max(1, len(parents[name])) for name in members[depth]}
        middle = sum(wish.values()) / len(wish)
        for i, name in enumerate(sorted(wish, key=wish.__getitem__)):
            across[name] = middle + i - (len(wish) - 1) / 2
        level |= dict.fromkeys(members[depth], depth)
    places = {row.name: (across[row.name], level[row.name]) for row in rows}
    return places, [[(across[name], level[name]) for name in chain] for chain in chains]


def plot(rows: Sequence[KerasLayer], path: Path, title: str = "") -> None:
    """Draws the layers of `layer_rows` into an .svg file, which is replaced once the drawing is complete.

    Raises:
        UsageError: another suffix.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"cannot draw into {printable(path)}", "name a file that ends in .svg")
    places, connections = layout(rows)
    left = min(x for line in connections for x, _ in line) - 0.5
    width = (max(x for line in connections for x, _ in line) + 0.5 - left) * COLUMN
    height = (max(y for _, y in places.values()) + 2) * ROW

    def pixel(place: Place) -> tuple[float, float]:
        return round((place[0] - left) * COLUMN, 1), (place[1] + 1.4) * ROW

    lines = "".join(
        '<polyline points="{}"/>\n'.format(" ".join("{},{:g}".format(*pixel(place)) for place in line))
        for line in connections
    )
    boxes = "".join(BOX.format(x, y, *_describe(row)) for row in rows for x, y in [pixel(places[row.name])])
    write_text(path, PICTURE.format(width, height, x=width / 2, title=escape(title), body=Markup(lines + boxes)))


def _describe(row: KerasLayer) -> tuple[str, str, str]:
    """Color, name and kind of a layer."""
    color = next(color for word, color in COLORS.items() if word in row.kind.lower())
    name = row.name if len(row.name) <= NAME_LENGTH else f"…{row.name[-NAME_LENGTH + 1 :]}"
    return color, name, f"{row.kind} {'x'.join(map(str, row.shape[1:]))}"
