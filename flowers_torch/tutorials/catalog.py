"""The contents of tutorials.toml, about the original tutorials."""

import dataclasses
import tomllib
from functools import cache
from pathlib import Path

from flowers_torch.errors import UsageError, printable


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """What a recipe of `configs/` reproduces.

    Attributes:
        rows: Ids of the rows in docs/reproduction.md, separated by spaces.
        title: Network and photos.
        source: Document and place of the figure.
        data: Where the photos come from.
        figure: What the tutorial printed, and for what; empty if it printed nothing.
        accuracy: The accuracy in `figure`.
        differs: What the recipe does differently on purpose.
    """

    rows: str
    title: str
    source: str
    data: str
    figure: str = ""
    accuracy: float | None = None
    differs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExactFigure:
    """A figure that does not depend on training.

    Attributes:
        rows: As in `Tutorial`.
        title: What has the figure.
        figure: What the tutorial printed or requires.
        tests: Names of the test functions that prove it.
        command: Shows the figure; empty if a page does.
        see: That page.
        slow: Whether the tests run only with `-m slow`.
    """

    rows: str
    title: str
    figure: str
    tests: tuple[str, ...]
    command: str = ""
    see: str = ""
    slow: bool = False


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
