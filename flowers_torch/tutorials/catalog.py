"""The contents of tutorials.toml, about the original tutorials."""

import dataclasses
import tomllib
from functools import cache
from pathlib import Path

from flowers_torch.errors import UsageError, printable


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """What a recipe of `configs/` reproduces."""

    rows: str  # ids of the rows in docs/reproduction.md, separated by spaces
    title: str  # network and photos
    source: str  # document and place of the figure
    data: str  # where the photos come from
    figure: str = ""  # what the tutorial printed, and for what; empty if it printed nothing
    accuracy: float | None = None  # the one in `figure`
    losses: str = ""  # losses and times that it printed
    differs: tuple[str, ...] = ()  # what the recipe does differently on purpose


@dataclasses.dataclass(frozen=True)
class ExactFigure:
    """A figure that does not depend on training."""

    rows: str  # as in `Tutorial`
    title: str  # what has the figure
    figure: str  # what the tutorial printed or requires
    tests: tuple[str, ...]  # names of the test functions that prove it
    command: str = ""  # shows the figure; empty if a page does
    see: str = ""  # that page
    slow: bool = False  # whether the tests run only with `-m slow`


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Documents by letter, recipes by name, and exact figures."""

    documents: dict[str, str]
    recipes: dict[str, Tutorial]
    exact: tuple[ExactFigure, ...]

    def find(self, recipe: str) -> Tutorial:
        """The tutorial of a recipe.

        Raises:
            UsageError: no recipe of that name reproduces a tutorial.
        """
        if recipe not in self.recipes:
            what = f"no tutorial is called {printable(recipe)}"
            raise UsageError(what, f"use one of {', '.join(self.recipes)}")
        return self.recipes[recipe]


@cache
def read_catalog() -> Catalog:
    """Everything in tutorials.toml."""
    content = tomllib.loads(Path(__file__).with_name("tutorials.toml").read_text(encoding="utf-8"))
    recipes = {}
    for name, row in content["recipes"].items():
        data = content["data"][row["data"]]
        differs = tuple(content["differences"][key] for key in row.get("differs", ()))
        recipes[name] = Tutorial(**row | {"data": data, "differs": differs})
    exact = tuple(ExactFigure(**row | {"tests": tuple(row["tests"])}) for row in content["exact"])
    return Catalog(content["documents"], recipes, exact)
