"""What differs between Linux, macOS and Windows. No other module of the package asks for the system."""

import contextlib
import ctypes
import errno
import math
import os
import platform
import shutil
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from flowers_torch.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WINDOWS = sys.platform == "win32"
SECONDS_OF_OTHERS = 3.0  # Windows: a virus scanner or an indexer opens a new file for a moment
FORBIDDEN_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
FORBIDDEN_CHARACTERS = '/\\:*?"<>|'
LOCKED_BYTE = 1 << 30  # Windows: locked bytes cannot be read, so the lock lies behind the text
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
CGROUP = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")


# Files


def expand_home(path: str | Path) -> Path:
    """A path with the home folder in place of `~`; unchanged for a user without a home, or without an account."""
    return Path(os.path.expanduser(path))


def common_folder(folders: Iterable[str | Path]) -> Path:
    """The innermost folder around all of some absolute folders. DataError: they lie on several drives of Windows."""
    try:
        return Path(os.path.commonpath(folders))
    except ValueError as error:
        drives = ", ".join(sorted({os.path.splitdrive(folder)[0] for folder in folders}))
        raise DataError(f"the photos lie on several drives: {drives}", "copy them to one drive") from error


def fsync_folder(folder: Path) -> None:
    """Makes renames in a folder durable. Windows opens no folders and needs no such call."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network and FUSE file systems
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Renames a file over another one. Windows refuses that as long as the other one is open, so it is tried again.

    Raises:
        OSError: as `os.replace`.
    """
    deadline = time.monotonic() + SECONDS_OF_OTHERS
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:  # elsewhere the folder is read-only
                raise
        time.sleep(0.05)


def lock_file(file: IO[str]) -> bool:
    """Locks an open file for this process until it ends or closes the file; False if another process has it locked.

    Where the file system has no locks, every process gets the file.
    """
    if fcntl is not None:
        try:
            # POSIX locks, unlike flock's, are not inherited by DataLoader workers that outlive a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # guard: C20
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass
        return True
    import msvcrt

    windows: Any = msvcrt
    position = file.tell()
    try:
        file.seek(LOCKED_BYTE)
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        file.seek(position)
    return True


def link_or_copy(file: Path, link: Path, may_move: bool = False) -> None:
    """Links to a file where the system can, else copies it.

    The link holds a relative path, which stays right if both are moved together, or an absolute one if only the link
    `may_move`.

    Raises:
        FileExistsError: `link` exists.
        OSError: it can neither be linked nor copied.
    """
    try:
        target = os.path.realpath(file)
        target = target if may_move else os.path.relpath(target, os.path.realpath(link.parent))
    except ValueError:  # another drive of Windows
        target = os.path.realpath(file)
    try:
        os.symlink(target, link)
        if os.path.islink(link):  # Wine reports success and makes none
            return
    except FileExistsError:  # made in this moment: nothing is written through it
        raise
    except (OSError, NotImplementedError):  # no right to make links, or a file system without them
        pass
    shutil.copy2(file, link)


def valid_name(name: str) -> str:
    """A name that every system accepts for one file or folder, at most 100 characters long."""
    text = "".join("_" if c in FORBIDDEN_CHARACTERS or not c.isprintable() else c for c in name).strip(" .")[:100]
    text = text.rstrip(" .") or "_"
    return f"_{text}" if text.partition(".")[0].strip().lower() in FORBIDDEN_NAMES else text


def caseless(name: str) -> str:
    """What names have in common that macOS and Windows take for one: upper and lower case, composed or not."""
    return unicodedata.normalize("NFC", name).casefold()


def ignores_case(folder: Path) -> bool:
    """Whether the disk of a folder, which need not exist yet, takes names that differ only in case for one."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.exists() and place.name.swapcase() != place.name:
            try:
                return os.path.samefile(place, place.with_name(place.name.swapcase()))
            except OSError:  # there is no such name
                return False
    return False


def reserve(file: IO[bytes], size: int) -> None:
    """Gives an open file its size and space. A disk that fills up under a mapped file would kill the process."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def workers_get_files() -> bool:
    """Whether a worker process can get an open file of this one, however it is started."""
    return not WINDOWS


def descriptor_for_worker(descriptor: int) -> Any:
    """An open file in a form that may be sent to a new worker, which calls its `detach()`."""
    from multiprocessing.reduction import DupFd

    return DupFd(descriptor)


def raise_file_limit(wanted: int) -> int:
    """Lets this process open more files; returns how many it may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(least, wanted if most == resource.RLIM_INFINITY else min(wanted, most))
    with contextlib.suppress(ValueError, OSError):  # macOS has a limit below the stated one
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
        return limit
    return least


# Processor and memory


def processes_here() -> int:
    """Processes of a run that share this machine, as torchrun says; 1 without it."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def usable_cores() -> int:
    """Number of processor cores that this process may use: its affinity, and the quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, _container_limit("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
        cores = min(cores, math.ceil(quota / period)) if quota > 0 else cores  # without one it is max or -1
    return max(1, cores)


def _container_limit(name: str, *old_names: str) -> list[str]:
    """Words of a limit of control groups, of version 2 or 1. OSError: this system has none."""
    try:
        return (CGROUP / name).read_text().split()
    except FileNotFoundError:
        return [(CGROUP / old).read_text() for old in old_names]


def total_memory() -> int | None:
    """Bytes of memory that this process may use, at most those of its container; None where it is not known."""
    total = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    elif hasattr(ctypes, "windll"):
        status = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: length and load, then seven sizes
        ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = ctypes.sizeof(status)
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(status):
            total = status[1]
    with contextlib.suppress(OSError, ValueError):
        (limit,) = map(int, _container_limit("memory.max", "memory/memory.limit_in_bytes"))
        total = min(total or limit, limit)
    return total


def shared_memory() -> int | None:
    """Free bytes for memory that processes share; None where that has no place of its own."""
    shm = Path("/dev/shm")
    return shutil.disk_usage(shm).free if shm.is_dir() else None


def waiting_seconds() -> float:
    """Seconds that the threads of this process have been ready and without a core, summed up so far.

    Only Linux counts them. Elsewhere they are the wall time of this thread without its processor time.
    """
    if not (PROCESS / "schedstat").is_file():
        return time.monotonic() - time.thread_time()
    waited = 0
    for file in (PROCESS / "task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # the thread has ended
            waited += int(file.read_text().split()[1])
    return waited / 1e9


def installed_version(distribution: str) -> str:
    """The version of an installed package, which is not imported; empty without one."""
    import importlib.metadata  # here: `--help` does without it

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor_name() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process; returns whether the C library can do that.

    At most 2 GiB above the highest block in use stay with the process. Source: mallopt(3).
    """
    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def onednn_convolution() -> Callable[..., Any] | None:
    """oneDNN's convolution with an activation, the operation of torch.compile's CPU kernels; None without oneDNN."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def onednn_computes_bf16() -> bool:
    """Whether `onednn_convolution` takes bfloat16, emulated or not, on this processor; it needs AVX-512 at least."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


# Processes and network


@contextlib.contextmanager
def ignored_child_signals() -> Iterator[None]:
    """Ends of child processes call no handler inside; only the main thread may ask for that."""
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    if number is None:
        yield
        return
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, handler)


def child_environment() -> dict[str, str]:
    """Environment of another Python that imports this package.

    A child does not inherit the script's folder, where the package may have been found.
    """
    here = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def after_fork(function: Callable[[], None]) -> Callable[[], None]:
    """Decorates a function that every forked process calls first; Windows forks none."""
    if not WINDOWS:
        os.register_at_fork(after_in_child=function)
    return function


def loopback_interface() -> str:
    """Name of the network interface of this machine alone, as Gloo and NCCL take it; empty where they choose it."""
    return {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "")
