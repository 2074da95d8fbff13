"""The runs below a folder, as a table."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from flowers_torch.errors import FlowersError, UsageError, printable
from flowers_torch.files.reading import check, read_json, read_toml, reading
from flowers_torch.runs.folder import SUMMARY_FILE, last_written


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """A row of the table. A cross-validation has the mean accuracy of its folds and no interval."""

    name: str
    date: str  # last written, "YYYY-MM-DD HH:MM"
    data: str
    arch: str
    accuracy: float | None  # on the test images; None if unfinished
    interval_95: tuple[float, float] | None
    finished: bool


def list_runs(root: Path = Path("runs")) -> list[ListedRun]:
    """The runs in a folder, the newest first. A damaged file leaves its values empty.

    Raises:
        UsageError: there is no such folder.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {printable(root)}", "name the folder that holds the runs")
    folders = [path.parent for path in root.glob("*/config.toml")]
    return [_describe(folder) for folder in sorted(folders, key=last_written, reverse=True)]


def _describe(folder: Path) -> ListedRun:
    config = _read(folder / "config.toml", {"data?": str, "arch?": str})
    test = _read(folder / "metrics.json", {"test": {"accuracy": (0.0, 1.0), "interval_95": [float]}}).get("test", {})
    accuracy, interval, finished = test.get("accuracy"), test.get("interval_95"), bool(test)
    if summary := _read(folder / SUMMARY_FILE, {"mean?": (0.0, 1.0), "finished": bool}):
        accuracy, finished = summary.get("mean"), summary["finished"]
    date = f"{datetime.datetime.fromtimestamp(last_written(folder) / 1e9):%Y-%m-%d %H:%M}"
    name = Path(config.get("data") or "").name
    interval = tuple(interval) if interval and len(interval) == 2 else None
    return ListedRun(folder.name, date, name, config.get("arch") or "", accuracy, interval, finished)


def _read(path: Path, form: dict[str, Any]) -> dict[str, Any]:
    try:
        if path.suffix == ".toml":
            with reading(path, "a configuration"):
                return dict(check(read_toml(path, "a configuration"), form))
        return dict(read_json(path, "a record", form))
    except FlowersError:
        return {}
