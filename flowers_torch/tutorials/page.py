"""docs/reproduction.md: every row, its command, the tutorial's figure and ours."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowers_torch.config_file import load_config
from flowers_torch.errors import plural
from flowers_torch.tutorials.catalog import ExactFigure, read_catalog
from flowers_torch.tutorials.reproduce import Reproduction, describe_losses

NOT_MEASURED = "not measured"


def reproduction_page(results: list[Reproduction]) -> str:
    """The page for all recorded results, from the template page.md beside this file."""
    catalog = read_catalog()
    trained = [row for recipe in catalog.recipes for row in _trained_rows(recipe, results)]
    changed = [
        f"| `{runs[0].recipe}` | {', '.join(f'`{text}`' for text in runs[0].changes)} | {_cells(runs)} |"
        for runs in _by_run([one for one in results if not _unchanged(one)])
    ]
    lines = {
        "documents": [f"- {letter}: {text}." for letter, text in catalog.documents.items()],
        "trained": trained,
        "changed": changed,
        "losses": _loss_rows(results),
        "exact": [_exact_row(figure) for figure in catalog.exact],
        "photos": _by_text((recipe, tutorial.data) for recipe, tutorial in catalog.recipes.items()),
        "differs": _by_text((recipe, text) for recipe, t in catalog.recipes.items() for text in t.differs),
    }
    template = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    return template.format(**{name: "\n".join(rows) for name, rows in lines.items()})


def _by_text(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A row for each text, with all recipes that it applies to."""
    recipes: dict[str, list[str]] = {}
    for recipe, text in pairs:
        recipes.setdefault(text, []).append(f"`{recipe}`")
    return [f"| {text} | {', '.join(names)} |" for text, names in recipes.items()]


def _trained_rows(recipe: str, results: list[Reproduction]) -> list[str]:
    """A row for each set of photos that the unchanged recipe ran on, or one row that says "not measured"."""
    tutorial = read_catalog().recipes[recipe]
    head, figure = f"{tutorial.rows} | {tutorial.title}", tutorial.figure or "no figure"
    own = [one for one in results if one.recipe == recipe]
    runs = _by_run([one for one in own if _unchanged(one)])
    if not runs:
        ours = "with other options: see the next table" if own else NOT_MEASURED
        return [f"| {head} | `python train.py --config {recipe}` | {figure} | {ours} | | | |"]
    return [f"| {head} | `{_command(same[0])}` | {figure} | {_cells(same)} |" for same in runs]


def _command(result: Reproduction) -> str:
    """The command that repeats a run of an unchanged recipe, without its seed."""
    data = "" if result.data == load_config(file=result.recipe).data else f" --data {result.data}"
    weights = "".join(f" --{text.replace('=', ' ')}" for text in result.changes)
    return f"python train.py --config {result.recipe}{data}{result.data_options}{weights}"


def _unchanged(result: Reproduction) -> bool:
    """Whether nothing but the weights differs from the recipe."""
    return all(text.startswith("weights=") for text in result.changes)


def _by_run(results: list[Reproduction]) -> list[list[Reproduction]]:
    """Groups of runs that differ only in their seed."""
    groups: dict[tuple[Any, ...], list[Reproduction]] = {}
    for one in results:
        key = (one.recipe, one.data, one.data_options, one.substitute_data, one.changes, one.machine, one.versions)
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _cells(runs: list[Reproduction]) -> str:
    """Four cells: mean and range over the seeds with the photos, seeds, time, machine."""
    first, accuracies = runs[0], [one.accuracy for one in runs]
    spread = f"95% interval {first.low:.3f} .. {first.high:.3f}"
    if len(runs) > 1:
        spread = f"{min(accuracies):.3f} .. {max(accuracies):.3f}"
    kind = "substitute data " if first.substitute_data else ""
    seeds = ", ".join(str(seed) for seed in sorted(one.seed for one in runs))
    times = [one.train_seconds for one in runs if one.train_seconds is not None]
    seconds = f"{statistics.fmean(times):.0f} s" if times else NOT_MEASURED
    return (
        f"{statistics.fmean(accuracies):.4f} ({spread}) on {plural(first.images, 'photo')} of {kind}`{first.data}`"
        f" | {seeds} | {seconds} | {first.machine}"
    )


def _loss_rows(results: list[Reproduction]) -> list[str]:
    """Rows for each recipe: the losses that its tutorial printed beside those of its runs on the tutorial's photos."""
    rows = []
    for recipe, tutorial in read_catalog().recipes.items():
        runs = [one for one in results if one.recipe == recipe and one.stages and not one.substitute_data]
        for same in _by_run(runs):
            changes = f" with {', '.join(f'`{text}`' for text in same[0].changes)}" if same[0].changes else ""
            ours = f"{describe_losses(same[0])} (seed {same[0].seed}){changes}"
            rows.append(f"| `{recipe}` | {tutorial.losses or 'none printed'} | {ours} |")
        if not runs and tutorial.losses:
            rows.append(f"| `{recipe}` | {tutorial.losses} | not recorded |")
    return rows


def _exact_row(exact: ExactFigure) -> str:
    command = f"`{exact.command}`" if exact.command else f"see {exact.see}"
    tests = ", ".join(f"`{test}`" for test in exact.tests) + " (only with `-m slow`)" * exact.slow
    return f"| {exact.rows} | {exact.title} | {command} | {exact.figure} | {tests} |"
