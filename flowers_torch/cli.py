"""The `flowers-torch` command: verbs, and the one place where an error becomes a line and an exit code."""

import argparse
import difflib
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from flowers_torch import __version__
from flowers_torch.errors import FlowersError, UsageError, printable

# Verb -> what it does. Each is a module of `flowers_torch.commands`, imported only when it is called.
VERBS = {
    "train": "train a network on photos in class folders",
    "check": "find what is wrong with photos: unreadable, twins, blurred, ...",
    "preview": "save augmented photos to look at",
    "lr-find": "find the learning rate that a stage can take",
    "shortlist": "rank networks on your photos, in seconds each",
    "crossval": "train and test in turn on every part of the photos",
    "reproduce": "run a tutorial's recipe and print its figure beside ours",
    "predict": "name the class of photos",
    "serve": "a page in the browser, and an endpoint, to ask a model",
    "evaluate": "how good a model is on labelled photos",
    "update": "train a model further with new photos or classes",
    "compare": "which of several runs is better, on the same photos",
    "combine": "average the answers or the weights of several runs",
    "export": "write a model for other programs, or as a page to try it",
    "pack": "make a folder to give away, with model card and checksums",
    "doctor": "what is installed, and what a run would use here",
    "report": "build the report of a run anew",
    "insight": "doubtful labels, and whether more photos would help",
    "models": "list the networks",
    "layers": "list a network's layers, with Keras's numbers",
    "summary": "print a network's layers as Keras does",
    "plot": "draw a network",
    "features": "write a layer's features of photos",
}


# These print one JSON text at their very end, or else the error as one, so that it is always valid.
JSON_VERBS = ("predict", "evaluate", "compare", "insight", "doctor")


class Terminated(BaseException):
    """SIGTERM came: unwinds the stack as KeyboardInterrupt does, so that half-written files are removed."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


class Parser(argparse.ArgumentParser):
    """An argument parser that answers mistakes in our one-line form, with near matches."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("-") and "unrecognized" in message]
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []  # guard: K01
        raise UsageError(printable(message), f"use {near[0]}" if near else f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("usage: flowers-torch VERB ...\n")
        print("\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items()))
        print("\nflowers-torch VERB --help says more.")
        return 0
    if arguments[0] == "--version":
        print(f"flowers-torch {__version__}")
        return 0
    return guarded(arguments[0], arguments[1:])


def guarded(verb: str, arguments: list[str], prog: str | None = None) -> int:
    """Runs one verb; every failure ends as one line on stderr and the exit code that belongs to it.

    Args:
        verb: Key of `VERBS`.
        arguments: What follows it.
        prog: Name in usage texts, where it is not `flowers-torch VERB`.
    """
    debug = "--debug" in arguments
    as_json = "--json" in arguments and verb in JSON_VERBS
    in_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGTERM, _terminate) if in_main else None
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            raise UsageError(f"no verb {printable(verb)!r}", f"use {near[0] if near else ', '.join(VERBS)}")
        command = importlib.import_module(f"flowers_torch.commands.{verb.replace('-', '_')}")
        parser = Parser(
            prog=prog or f"flowers-torch {verb}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show the trace of an error")
        parser.set_defaults(command=["flowers-torch", verb, *arguments])  # as it can be typed again
        code: int = command.run(parser.parse_args(arguments))
        if sys.stdout is not None:  # closed from the start (`>&-`)
            sys.stdout.flush()
        return code
    except FlowersError as error:
        if error.quiet:
            return error.exit_code
        return _fail(str(error), error.exit_code, debug, as_json)
    except Terminated:
        return _fail(
            "stopped by SIGTERM before there was anything to save", 128 + signal.SIGTERM, debug, as_json
        )
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT, debug, as_json)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; a second failure while Python closes stdout is avoided.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail("out of memory; fix: lower --batch-size or --size", 6, debug, as_json)
    except Exception as error:
        # Torch's kinds of it, by name: torch may not be loaded.
        if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
            return _fail("out of memory; fix: lower --batch-size or --size", 6, debug, as_json)
        text = f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
        fix = "this is our bug, please report it with the output of --debug"
        return _fail(f"{text}; fix: {fix}", 1, debug, as_json)
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, former)


def _fail(message: str, code: int, debug: bool, as_json: bool = False) -> int:
    if debug:
        traceback.print_exc()
    message = " ".join(message.split())
    if as_json and sys.stdout is not None:  # guard: K09
        print(json.dumps({"error": message, "exit_code": code}), flush=True)
    print(f"flowers-torch: error: {message}", file=sys.stderr)
    return code


def run() -> NoReturn:
    """The installed command."""
    sys.exit(main())


if __name__ == "__main__":
    run()
