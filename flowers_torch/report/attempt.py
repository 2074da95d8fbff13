"""Parts of a report that may fail: each costs itself and leaves a line that says so."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flowers_torch.errors import one_line
from flowers_torch.log import log


@dataclasses.dataclass
class Attempt:
    """Calls what makes a part. `lines` name the parts that failed, for the page."""

    lines: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, what: str, make: Callable[[], Any], otherwise: Any) -> Any:
        """The result of `make`, or `otherwise` and a line in the log: no part is worth a finished run's report."""
        try:
            return make()
        except Exception as error:
            self.lines.append(f"{what} left out: {one_line(error) or type(error).__name__}")
            log.info(f"note     report: {self.lines[-1]}")
            return otherwise
