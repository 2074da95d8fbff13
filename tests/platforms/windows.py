"""Makes Linux behave like Windows for one process and its workers.

    python tests/platforms/windows.py FOLDER '["train", "--data", "photos"]' '["check", "photos"]'

installs the rules for files below FOLDER, then runs commands of the package in this one process. The exit code is
that of the first command that fails.

What is simulated: folders cannot be opened. A file that is open or mapped can be neither replaced nor removed.
Reserved names, names with `<>:"\\|?*`, and names that end in a dot or a space are refused; names that differ only in
case are one file. There are no symbolic links, no fcntl, no affinity and no SIGKILL, and workers are not forked: they
import the package and this file again, but find torch imported. Locks are mandatory. Other signals and paths stay those
of Linux.
"""

import errno
import fcntl
import json
import multiprocessing
import multiprocessing.popen_fork
import os
import re
import shutil
import signal
import subprocess  # before msvcrt, by which it takes the system for Windows
import sys
import threading
import types
from typing import Any

RESERVED = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)
FORBIDDEN = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]$')
ENVIRONMENT = "FLOWERS_TORCH_WINDOWS_ROOT"  # for spawned workers


def files_in_use() -> set[str]:
    """Paths that this process has open or mapped."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the descriptor of the listing itself
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        found |= {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    return found


class Rules:
    """A hook of `sys.addaudithook` that refuses what Windows refuses, for paths below a folder."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.within = threading.local()  # the hook itself opens files, in each thread

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(self.within, "hook", False) or event not in (
            "open",
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.symlink",
        ):
            return
        self.within.hook = True
        try:
            self.check(event, [os.fsdecode(each) for each in arguments[:2] if isinstance(each, str | bytes)])
        finally:
            self.within.hook = False

    def check(self, event: str, paths: list[str]) -> None:
        paths = [os.path.abspath(path) for path in paths if os.path.abspath(path).startswith(self.root)]
        if not paths:
            return
        if event == "os.symlink":
            raise OSError(errno.EPERM, "A required privilege is not held by the client", paths[-1])
        for name in [name for path in paths for name in path[len(self.root) :].split("/")]:
            if RESERVED.fullmatch(name) or FORBIDDEN.search(name):
                raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", name)
        for path in paths:
            self.check_case(path)
        if event == "open" and os.path.isdir(paths[0]):
            raise PermissionError(errno.EACCES, "Permission denied", paths[0])
        if event in ("os.rename", "os.remove"):
            used = files_in_use()
            for path in paths:
                if os.path.realpath(path) in used:
                    raise PermissionError(errno.EACCES, "The process cannot access the file", path)

    @staticmethod
    def check_case(path: str) -> None:
        """Two names that differ in case would be one file; a program that means two has lost one of them."""
        folder, name = os.path.split(path)
        if os.path.isdir(folder):
            others = [each for each in os.listdir(folder) if each != name and each.casefold() == name.casefold()]
            if others:
                raise FileExistsError(errno.EEXIST, f"{others[0]} is the same name here", path)


def lock_region(descriptor: int, mode: int, count: int) -> None:
    """`msvcrt.locking` by the locks of Linux."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)


def install(root: str) -> None:
    """Applies the rules to this process and to the workers that it starts."""
    os.environ[ENVIRONMENT] = root
    import flowers_torch.files.system as system  # before fcntl is hidden: the standard library has it from there

    system.fcntl = None  # type: ignore[attr-defined]
    system.WINDOWS = True
    module: Any = types.ModuleType("msvcrt")
    module.LK_NBLCK, module.locking = 2, lock_region
    sys.modules["msvcrt"] = module
    for name in ("sched_getaffinity", "posix_fallocate"):
        delattr(os, name)
    for name in ("SIGKILL", "SIGSTOP", "SIGHUP", "SIGALRM", "SIGUSR1"):  # torch needs SIGCHLD on Linux
        delattr(signal, name)
    multiprocessing.popen_fork.Popen.kill = multiprocessing.popen_fork.Popen.terminate  # type: ignore[attr-defined]
    subprocess.Popen.kill = subprocess.Popen.terminate  # type: ignore[method-assign]
    shutil._use_fd_functions = False  # type: ignore[attr-defined] # the removal of a tree opens no folder there
    multiprocessing.set_start_method("forkserver", force=True)
    sys.addaudithook(Rules(root))


if ENVIRONMENT in os.environ and __name__ == "__mp_main__":  # a spawned worker
    install(os.environ[ENVIRONMENT])


def main(root: str, *commands: str) -> int:
    install(root)
    multiprocessing.set_forkserver_preload(["torch", "torchvision", "timm"])
    from flowers_torch.cli import main as run

    for command in commands:
        print("---", command, flush=True)
        if code := run(json.loads(command)):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
