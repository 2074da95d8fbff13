"""Reading a configuration from TOML and flags, and writing it.

Precedence: flag, then file, then default. All mistakes are reported together, before anything is
downloaded or built.
"""

import copy
import dataclasses
import difflib
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, Stage, default_stages, split_fractions
from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.files.reading import read_toml
from flowers_torch.files.system import expand_home

MAX_PROBLEMS = 10  # shown
NAMED_SPLITS = ("tutorial", "oxford1", "oxford2", "oxford3")  # of Flowers-17


def load_config(arch: str = "", data: str = "", file: str = "", overrides: dict[str, Any] | None = None) -> Config:
    """Resolves a configuration. Without `file`, the data `demo` or else `arch` selects one in `configs/`.

    A pretrained network without a file of its name takes `configs/default.toml`; with random weights the
    defaults of the options hold, because its batch norm has no statistics yet.

    Args:
        arch: From the flag.
        data: From the flag.
        file: A TOML file, or the name of one in `configs/`.
        overrides: Dotted field name (`stages.finetune.lr`) to value; wins over the file. `epochs` is a list,
            in the order of the stages.

    Raises:
        UsageError: names every unknown field, wrong type and value out of range.
    """
    weights = (overrides or {}).get("weights")
    path = _find_file(file) if file else _recipe_of(arch or Config.arch, data, pretrained=weights != "none")
    values = read_toml(path, "a valid TOML file", UsageError, "correct that line") if path else {}  # guard: K03
    changes = {key: value for key, value in {"arch": arch, "data": data}.items() if value} | (overrides or {})
    problems: list[str] = []
    for key, value in changes.items():
        _override(values, key, value, problems)
    config = _build(Config, values, "", problems)
    if not problems:
        _check(config, problems)
    if problems:
        where = f" in {printable(path)} or the flags" if path else ""
        count = f"{len(problems)} problems{where}: " if len(problems) > 1 else ""
        shown = "; ".join(problems[:MAX_PROBLEMS]) + ("; ..." if problems[MAX_PROBLEMS:] else "")  # guard: S8 problems
        raise UsageError(f"{count}{shown}", "correct these and start again")
    return config


def to_toml(config: Config, heading: str) -> str:
    """The resolved configuration as a TOML file that repeats the run."""
    values = config.settings()
    stages, options = values.pop("stages"), values.pop("model_options")
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
    if options:
        lines += ["", "[model_options]", *(f"{key} = {toml_value(value)}" for key, value in options.items())]
    for stage in stages:
        lines += ["", "[[stages]]", *(f"{key} = {toml_value(value)}" for key, value in stage.items())]
    return "\n".join(lines) + "\n"


def config_folder() -> Path:
    """Folder of the recipes: beside train.py in a checkout, inside the package when installed."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _preset(name: str) -> Path | None:
    # A name from the command line must not reach other folders (`--arch ../../x`).
    return next((path for path in config_folder().glob("*.toml") if path.stem == name), None)


def _recipe_of(arch: str, data: str, pretrained: bool) -> Path | None:
    if data == "demo":
        return _preset("demo")
    return _preset(arch) or (_preset("default") if pretrained else None)


def _find_file(file: str) -> Path:
    path = expand_home(file)
    if path.is_file():
        return path
    if preset := _preset(file):
        return preset
    fix = f"give a .toml file or one of {', '.join(sorted(path.stem for path in config_folder().glob('*.toml')))}"
    raise UsageError(f"there is no configuration file {printable(file)}", fix)


def _override(values: dict[str, Any], key: str, value: Any, problems: list[str]) -> None:
    """Sets a dotted field name; `stages.NAME.lr` needs a stage of that name."""
    table, _, rest = key.partition(".")
    name, _, field = rest.rpartition(".")
    if key == "epochs":
        stages = _stage_tables(values)
        if not isinstance(value, list):
            problems.append(f"epochs must be a list, one for each stage, not {printable(repr(value), 60)}")
        elif len(value) > len(stages):
            problems.append(f"epochs are given for {plural(value, 'stage')}, and the recipe has {len(stages)}")
        else:
            for stage, count in zip(stages, value, strict=False):
                stage["epochs"] = count
    elif table == "stages" and name:
        named = {str(row.get("name", Stage.name)): row for row in _stage_tables(values)}
        if name in named:
            named[name][field] = copy.deepcopy(value)
        else:
            there = ", ".join(map(printable, named))
            problems.append(f"no stage {printable(name, 40)} for {printable(key, 60)} (there are {there})")
    elif table == "model_options" and rest and not name:
        values.setdefault(table, {})[rest] = copy.deepcopy(value)
    elif rest:
        problems.append(f"no field {key!r}")
    else:
        values[key] = copy.deepcopy(value)  # a later `stages.NAME.lr` must not reach the caller's


def _stage_tables(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of the stages; the default stages if there are none."""
    stages = values.setdefault("stages", [dataclasses.asdict(stage) for stage in default_stages()])
    rows = stages if isinstance(stages, list) else [stages]
    return [row for row in rows if isinstance(row, dict)]


def _build(cls: Any, values: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{where.rstrip('.')} must be a table")
        return cls()
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types_of = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}" if near else f"there are {', '.join(fields)}"
            problems.append(f"unknown field {printable(where + key)} ({hint}?)")
        elif key == "stages":
            made[key] = []
            for place, row in enumerate(value if isinstance(value, list) else [value]):
                name = row.get("name", Stage.name) if isinstance(row, dict) else place
                made[key].append(_build(Stage, row, f"stages.{printable(name, 40)}.", problems))
        else:
            made[key] = _typed(value, types_of[key], where + key, problems)
    return cls(**made)


def _typed(value: Any, kind: Any, name: str, problems: list[str]) -> Any:
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    plain = tuple(typing.get_origin(one) or one for one in kinds)
    if plain == (float,) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        wanted = " or ".join(one.__name__ for one in plain)
        problems.append(f"{name} must be {wanted}, not {printable(repr(value), 60)}")
    return value


def _check(config: Config, problems: list[str]) -> None:
    names = [stage.name for stage in config.stages]
    if not names:
        problems.append("stages must not be empty")
    if len(set(names)) < len(names) or any(not name or "." in name for name in names):
        shown = ", ".join(printable(repr(name), 40) for name in names)
        problems.append(f"stages must have different names without a dot, not {shown}")
    for prefix, part in [("", config), *((f"stages.{stage.name}.", stage) for stage in config.stages)]:
        for field in dataclasses.fields(part):  # type: ignore[arg-type]
            name, value = f"{prefix}{field.name}", getattr(part, field.name)
            within, choices = field.metadata["within"], field.metadata["choices"]
            if within and not within[0] <= value <= within[1]:  # guard: K02
                problems.append(f"{name} must be within {within[0]:g} .. {within[1]:g}, not {value}")
            if choices and value not in choices:
                allowed = ", ".join(choice or '""' for choice in choices)
                problems.append(f"{name} must be one of {allowed}, not {printable(repr(value), 60)}")
    plain = not (config.head_hidden or config.head_norm or config.dropout or config.head == "sigmoid")
    for stage in config.stages:
        for rule in stage.train if isinstance(stage.train, list) else ():
            match rule:
                case [str(), int() | float() as multiplier] if 0 <= multiplier < math.inf:
                    continue
            needed = f"[pattern, multiplier >= 0], not {printable(repr(rule), 60)}"
            problems.append(f"stages.{stage.name}.train needs {needed}")
        if stage.is_fitted and (stage.train != "head" or not plain):
            which = f"stages.{stage.name}.optimizer"
            problems.append(f"{which} lbfgs needs train = head and a head of one linear layer; adamw trains any")
    if split_fractions(config.split) is None and config.split not in NAMED_SPLITS:
        problems.append(f"split must be three fractions such as 60/20/20, not {printable(config.split, 40)}")


def toml_value(value: Any) -> str:
    """A value in TOML's notation; a table takes one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    # JSON's literals are valid TOML, except for surrogate pairs: characters stay as they are.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
