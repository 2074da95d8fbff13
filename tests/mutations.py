"""Breaks each protection of the package, one at a time, and checks that its test fails.

    python tests/mutations.py                 all of them; exit code 1 if a test did not notice
    python tests/mutations.py D13 D35         some, by fault or by marker
    python tests/mutations.py --table         the table of docs/faults.md, without running anything

A comment `# guard: D13` marks a protection, at the end of its line or on the line above. A fault with several
protections adds a word (`# guard: D17 palette`); a line that protects against several faults lists all their
markers, separated by commas. tests/mutations.toml has one row for each marker.

The named tests must pass in an untouched copy of the project and fail in the copy with the broken protection.
PyTorch is imported once, and each run is a fork of that process.
"""

import argparse
import ast
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_LIMIT = 100  # seconds of processor time of the test of a mutation: some mutations never end
VERDICTS = {0: "NOT NOTICED", 1: "noticed", -signal.SIGXCPU: "noticed"}  # by exit code of the test
MARKER = re.compile(r"^(?P<code>.*?)\s*# guard: (?P<names>\w+(?: \w+)*(?:, \w+(?: \w+)*)*)$")


@dataclass(frozen=True)
class Mutation:
    """A row of tests/mutations.toml.

    Attributes:
        marker: Name of the comment that marks the protection.
        protection: What the protection does, in words.
        test: Name of the test function that fails without it.
        code: What replaces the marked code: empty for the default, one string for all of it, or a piece of it
            and the replacement of the piece.
    """

    marker: str
    protection: str
    test: str
    code: tuple[str, ...] = ()

    @property
    def fault(self) -> str:
        return self.marker.split()[0]


def read_mutations() -> list[Mutation]:
    """All rows of tests/mutations.toml."""
    sections = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text(encoding="utf-8"))
    rows = {marker: row for section in sections.values() for marker, row in section.items()}
    return [Mutation(marker, row[0], row[1], tuple(row[2:])) for marker, row in rows.items()]


def find_markers() -> list[tuple[str, Path, int]]:
    """Name, file (relative to the project) and line of every marker, including repeated ones."""
    found = []
    for path in [*ROOT.glob("*.py"), *sorted((ROOT / "flowers_torch").rglob("*.py"))]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := MARKER.match(line):
                at = number if match["code"] else number + 1
                found += [(name, path.relative_to(ROOT), at) for name in match["names"].split(", ")]
    return found


def find_tests() -> dict[str, list[str]]:
    """Name of every test function, and the files that define it, as pytest takes them."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(f"{path.relative_to(ROOT)}::{name}")
    return found


def mutate(source: str, line: int, code: tuple[str, ...]) -> str:
    """Breaks the protection on a line of a source.

    The marked code is the condition of an `if`, the exception of an `except`, the iterator of a `for`, the
    context of a `with`, or else the whole statement. On a line inside a statement it is that line's code.

    Args:
        source: Of a Python file.
        line: Number of the line of the protection, from 1.
        code: As `Mutation.code`.

    Raises:
        ValueError: `code` names a piece that the marked code does not contain exactly once.
    """
    start, end, default = marked_code(source, line)
    data = source.encode()
    old = data[start:end].decode()
    if len(code) == 2:
        if old.count(code[0]) != 1:
            raise ValueError(f"{code[0]!r} is not exactly once in {old!r}")
        new = old.replace(*code)
    else:
        new = code[0].replace("{code}", old) if code else default
    return (data[:start] + new.encode() + data[end:]).decode()


def marked_code(source: str, line: int) -> tuple[int, int, str]:
    """First and last byte of the marked code, and what breaks it by default."""
    starts = [0]
    for text in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(text))

    node = next((node for node in ast.walk(ast.parse(source)) if starts_on(node, line)), None)
    default = "pass"
    match node:
        case ast.If(test=part) | ast.While(test=part):
            node, default = part, "False"
        case ast.ExceptHandler(type=ast.expr() as part):
            node, default = part, "()"
        case ast.For(iter=part):
            node, default = part, "()"
        case ast.With(items=[item]):
            node, default = item.context_expr, "contextlib.nullcontext()"
        case None:  # a line inside a statement
            text = source.splitlines()[line - 1].partition("  #")[0]
            start = starts[line - 1] + len(text) - len(text.lstrip())
            default = "if False" if text.lstrip().startswith("if ") else ""
            return start, starts[line - 1] + len(text.encode()), default
    return (
        starts[node.lineno - 1] + node.col_offset,
        starts[node.end_lineno - 1] + node.end_col_offset,
        default,
    )


def starts_on(node: ast.AST, line: int) -> bool:
    return isinstance(node, ast.stmt | ast.ExceptHandler) and node.lineno == line


def table(mutations: list[Mutation]) -> str:
    """The table of docs/faults.md: fault, protection, test."""
    rows = [f"| {m.fault} | {m.protection} | `{m.test}` |" for m in sorted(mutations, key=lambda m: m.fault)]
    return "\n".join(["| id | protection | test that fails without it |", "|---|---|---|", *rows])


def copy_project(target: Path) -> None:
    """Copies the package, its recipes and its tests."""
    for name in ("flowers_torch", "tests", "configs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "train.py", "hubconf.py"):
        shutil.copy(ROOT / name, target / name)


def run_tests(project: Path, tests: list[str], log: Path, limit: int = resource.RLIM_INFINITY) -> int:
    """pytest's exit code for tests, in a forked process that imports the package of `project`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        os.chdir(project)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(project))
        os.environ["PYTHONPATH"] = str(project)  # for programs that the tests start
        sys.dont_write_bytecode = True
        import pytest

        code = pytest.main(["-q", "-x", "-n0", "-p", "no:cacheprovider", "--rootdir", str(project), *tests])
    finally:
        os._exit(int(code))


def run(chosen: list[Mutation]) -> list[str]:
    """Runs mutations, prints a line for each, and returns the problems."""
    import numpy  # noqa: F401 - imported once, here, for all forks
    import pytest  # noqa: F401
    import torchvision  # noqa: F401

    places = {name: (path, line) for name, path, line in find_markers()}
    tests = find_tests()
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        project, log = Path(temporary) / "project", Path(temporary) / "log.txt"
        copy_project(project)
        if run_tests(project, sorted({tests[m.test][0] for m in chosen}), log):
            problems.append("a test fails without any mutation")
            print(log.read_text()[-3000:])
        for m in chosen:
            file, line = places[m.marker]
            source = (project / file).read_text(encoding="utf-8")
            (project / file).write_text(mutate(source, line, m.code), encoding="utf-8")
            code = run_tests(project, tests[m.test], log, CPU_LIMIT)
            (project / file).write_text(source, encoding="utf-8")
            verdict = VERDICTS.get(code, f"pytest ended with {code}")
            print(f"{m.marker:14} {verdict:12} {m.protection}", flush=True)
            if verdict != "noticed":
                problems.append(f"{m.marker} ({m.protection}): {verdict}")
                print(log.read_text()[-2000:])
    return problems


def main() -> int:
    """Runs the mutations that are asked for."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", help="faults or markers, such as D13 or 'D17 palette' (all)")
    parser.add_argument("--table", action="store_true", help="print the table of docs/faults.md")
    args = parser.parse_args()
    mutations = read_mutations()
    if args.table:
        print(table(mutations))
        return 0
    if unknown := set(args.names) - {name for m in mutations for name in (m.fault, m.marker)}:
        parser.error(f"no such fault or marker: {', '.join(sorted(unknown))}")
    chosen = [m for m in mutations if not args.names or {m.fault, m.marker} & set(args.names)]
    problems = run(chosen)
    print(f"{len(chosen)} mutations, {len(problems)} problems", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
