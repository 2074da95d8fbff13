"""The `flowers-torch` program: its commands, and how an error becomes one line and an exit code."""

import argparse
import difflib
import functools
import gc
import importlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from flowers_torch import __version__
from flowers_torch.api.arguments import command_line
from flowers_torch.errors import FlowersError, ResourceError, UsageError, lacks_memory, one_line, printable

# Every command by group, with its help. Each is a module of `flowers_torch.commands`, imported on use.
GROUPS = {
    "data": {
        "check": "find problems of a data set: unreadable, duplicate or blurred photos, ...",
        "preview": "save augmented photos to look at",
    },
    "train": {
        "train": "train a network on photos in class folders",
        "lr-find": "find a learning rate for a stage",
        "rank": "rank networks on your photos, in seconds each",
        "crossval": "cross-validate a recipe",
        "reproduce": "run the recipe of a tutorial and compare the results",
    },
    "use": {
        "predict": "classify photos",
        "serve": "serve a model as a web page and an HTTP endpoint",
        "export": "write a model for other programs, or as a web page",
        "pack": "make a folder to share, with model card and checksums",
        "update": "train a model further with new photos or classes",
    },
    "inspect": {
        "evaluate": "measure a model on labeled photos",
        "compare": "compare runs on the same test photos",
        "ensemble": "average the predictions or the weights of several runs",
        "label-issues": "find label issues, and whether more photos would help",
        "next": "choose which unlabeled photos to label next",
        "report": "rebuild the report of a run",
        "runs": "list the runs",
    },
    "model": {
        "models": "list the networks",
        "layers": "list the layers of a network",
        "summary": "print the layers of a network as Keras does",
        "plot": "draw a network",
        "features": "write the features of photos to a file",
        "doctor": "show what is installed and what a run would use here",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


class Terminated(BaseException):
    """Raised by SIGTERM. It unwinds the stack like KeyboardInterrupt, so half-written files are removed."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError`, with the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("-") and "unrecognized" in message]
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []  # guard: K01
        raise UsageError(printable(message), f"use {near[0]}" if near else f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"flowers-torch {__version__}")
        return 0
    return guarded(arguments[0], arguments[1:])


def program(command: Callable[[], int] = main) -> NoReturn:
    """Runs a command as all that this process does, and exits with its code.

    The default garbage collector walks the objects of torch, torchvision and timm again and again while they are
    imported, and once more at the end, which takes two seconds.
    """
    gc.set_threshold(10_000)
    code = command()
    gc.freeze()
    sys.exit(code)


def guarded(name: str, arguments: list[str], prog: str | None = None) -> int:
    """Runs one command. Every failure ends in one line on stderr and the exit code that belongs to it.

    With --json among the arguments the error is printed as JSON too. Commands print their own JSON last, so
    stdout has one valid text. `prog` is the name in usage texts, if it is not `flowers-torch NAME`.
    """
    debug, as_json = "--debug" in arguments, "--json" in arguments
    _print_any_text()
    # Read when torch is imported: what the GPU of a Mac cannot compute yet, the CPU does.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if in_main else None
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            what = f"{printable(name)!r} is not a valid command"
            raise UsageError(what, f"use {near[0]}" if near else "see flowers-torch --help")
        command = importlib.import_module(f"flowers_torch.commands.{name.replace('-', '_')}")
        parser = Parser(
            prog=prog or f"flowers-torch {name}",
            description=command.__doc__,
            epilog=getattr(command, "EXAMPLES", None),
            formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, width=100),
            allow_abbrev=False,
        )
        command.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(command=["flowers-torch", name, *arguments])  # can be typed again
        args = parser.parse_args(arguments)
        if getattr(args, "cache", None):
            os.environ["FLOWERS_TORCH_CACHE"] = args.cache
        with command_line():
            code: int = command.run(args) or 0
        if sys.stdout is not None:  # closed from the start (`>&-`)
            sys.stdout.flush()
        return code
    except FlowersError as error:
        return error.exit_code if error.quiet else _fail(str(error), error.exit_code, debug, as_json)
    except Terminated:
        return _fail("stopped by SIGTERM before there was anything to save", 128 + signal.SIGTERM, debug, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT, debug, as_json)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone. Python must not fail again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(*_describe(error), debug, as_json)
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: flowers-torch COMMAND ..."]
    for group, commands in GROUPS.items():
        lines += ["", group, *(f"  {name:{width}}  {text}" for name, text in commands.items())]
    return "\n".join([*lines, "", "flowers-torch COMMAND --help shows the arguments of a command."])


def _print_any_text() -> None:
    """Makes stdout and stderr take every name, whatever the encoding of the terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _describe(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error that is not one of ours."""
    if lacks_memory(error):
        return "out of memory; fix: lower --batch-size or --size", ResourceError.exit_code
    text = f"{type(error).__name__}: {one_line(error)}"
    return f"{text}; fix: this is a bug, please report it with the output of --debug", FlowersError.exit_code


def _fail(message: str, code: int, debug: bool, as_json: bool) -> int:
    if debug:
        traceback.print_exc()
    message = printable(" ".join(message.split()), 4000)  # guard: S5
    if as_json and sys.stdout is not None:  # guard: K09
        print(json.dumps({"error": message, "exit_code": code}), flush=True)
    print(f"flowers-torch: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    program()
