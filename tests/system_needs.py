"""What some tests need of the system: `@pytest.mark.needs("links")`. conftest.py skips them where it is missing."""

import os
import shutil
import sys

LINUX, POSIX = sys.platform == "linux", os.name == "posix"
ROOT = POSIX and os.geteuid() == 0
# Name: whether it is here, what it is, and what code looks like that needs it. `linux` includes the others.
NEEDS: dict[str, tuple[bool, str, str]] = {
    "linux": (LINUX, "fork, /proc, or units of Linux", r"os\.fork\b|/proc/|import resource\b|\btogether\(tmp_path"),
    "signals": (POSIX, "signals that end or stop a process", r"\bSIG(KILL|STOP|CONT|CHLD|ALRM|HUP)\b"),
    "links": (POSIX, "the right to make links", r"\.symlink_to\(|os\.(sym)?link\(|\.hardlink_to\("),
    "pipes": (POSIX, "pipes and devices with a name", r"os\.mkfifo|AF_UNIX|/dev/(zero|full|null)"),
    "modes": (POSIX, "the permissions of POSIX", r"\.chmod\(|os\.umask\("),
    "names": (POSIX, "names of files that Windows forbids", r"needs names"),
    "case": (LINUX, "names that differ only in case", r"needs case"),
    "no_root": (POSIX and not ROOT, "a user whom permissions bind", r"root reads everything"),
    "root": (LINUX and ROOT, "the right to mount", r"needs root"),
    "node": (shutil.which("node") is not None, "Node.js, which runs scripts of pages", r"\bnode_output\("),
}
