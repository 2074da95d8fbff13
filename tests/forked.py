"""Python code in a process of its own that is forked from the one of the tests, which has imported torch.

This is the same code as in a new interpreter without the five seconds of imports. Systems where a fork is unsafe get
the new interpreter.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
COMMAND = "import sys; from flowers_torch.cli import main; sys.exit(main(sys.argv[1:]))"


def start_python(
    code: str,
    *words: str | Path,
    output: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Starts `python -c CODE WORDS` in a folder, with its output in a file and variables beside those of the tests.

    After `join()` the exit code is in `exitcode`: minus the number of the signal that ended the process.
    """
    arguments = (code, list(map(str, words)), output, folder or Path.cwd(), dict(environment or {}))
    process = CONTEXT.Process(target=_run, args=arguments)
    process.start()
    return process


def _run(code: str, words: list[str], output: Path, folder: Path, environment: dict[str, str]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding=encoding) for number in (1, 2))
    os.environ |= environment
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if CONTEXT.get_start_method() == "fork":
        forkserver._forkserver.__init__()  # type: ignore[misc] # that of the tests is not a child of this process
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})
