"""Names, help texts, comments and pages use the words of the field, in American English.

Each test lists every place that does not. `NAMES` holds words that no name may contain, `PROSE` phrases that
no text may contain. A word with a second meaning is forbidden only in the files or phrases where it misleads.
"""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flowers_torch.errors import plural

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flowers_torch"
FOLDERS = ("flowers_torch", "examples", "benchmarks", "tests", "docs")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
CODE = [path for path in [*CODE, ROOT / "train.py", ROOT / "hubconf.py"] if path != Path(__file__)]
PAGES = [page for folder in (".", "docs", "benchmarks") for page in sorted((ROOT / folder).glob("*.md"))]
TEMPLATES = sorted(PACKAGE.rglob("*.jinja")) + sorted(PACKAGE.rglob("*.html"))
RECIPES = sorted((ROOT / "configs").glob("*.toml"))


class Word(NamedTuple):
    """A word to avoid, what to use instead, and the files where that holds."""

    pattern: str
    instead: str
    files: str = ""  # regular expression of the path; empty: everywhere
    ignore: str = "^$"  # regular expression of paths where the word has its usual meaning


# In names of classes, functions, arguments, fields, constants, modules, commands and TOML keys. A pattern is
# compared with each word of a name: `twin_groups` and `TwinGroups` have the words twin and groups.
NAMES = (
    Word("answers?|answering", "prediction"),
    Word("photos?", "image", ignore="/tests/"),
    Word("records?", "info, ModelInfo", ignore="log|trace|stopping"),  # the verb, and LogRecord
    Word("parts?", "split, subset or shard", files=r"/(data|runs|evaluation|report)/"),
    Word("fronts?", "backbone"),
    Word("cut", "split", files=r"/flowers_torch/(models|runs)/"),
    Word("stores?|storing", "cache", files=r"/(data|runs|training|accelerate|config)"),
    Word("kept", "image cache", files=r"/data/|/runs/"),
    Word("canvas(es)?", "resized image"),
    Word("resident", "on the GPU"),
    Word("twins?", "duplicate"),
    Word("draws", "random, generator"),
    Word("policy|policies", "augmentation", ignore="offline_page|guard|serve"),
    Word("lopsided", "imbalanced"),
    Word("squash(ed)?", "stretch"),
    Word("shares?", "fraction or shard"),
    Word("worlds?", "Distributed"),
    Word("tells?|told", "log, broadcast", ignore="tar_members|archives"),  # of files,
    Word("quick|quicken(ed)?", "compiled, fused"),
    Word("fold(ed|ing)?", "fuse", files=r"/(accelerate|models|training)/"),
    Word("noise", "example_inputs", files=r"/flowers_torch/(accelerate|models|training)/"),
    Word("probe", "precision autotuning", files=r"/(accelerate|training/device)"),
    Word("facts?", "fingerprint or summary"),
    Word("growth", "extension of a split", files=r"/(data|runs)/"),
    Word("admit(s|ted)?|admission", "filter"),
    Word("audits?", "quality report"),
    Word("damages?", "severity", files=r"/flowers_torch/data/quality/|/tests/data/quality/"),
    Word("quarantine(d)?", "exclude list"),
    Word("looks", "photo sections", files=r"/report/"),
    Word("origin", "provenance", files=r"/report/"),
    Word("suspects?|suspicious", "label issues"),
    Word("insights?", "label issues, learning curve"),
    Word("strange|strangeness|familiar|unlike", "out of distribution, OODDetector"),
    Word("unsure|doubts?|doubtful", "abstain, reason"),
    Word("trust", "calibration, selective prediction", ignore="tests/"),  # trust_repo of torch.hub
    Word("combin(e|es|ed|ation)", "ensemble"),
    Word("shortlist", "model ranking"),
    Word("verbs?", "command"),
    Word("deadly|mend(s|ed)?|pulse|beats?", "fatal, fix, heartbeat"),
    Word("anew|afresh|sooner", "again, from scratch, faster"),
    Word("zoo", "networks, registry"),
    Word("seeds", "tutorials", files=r"/tutorials/"),
    Word("colou?rs?(ed)?(?<=our|urs)|grey|centred?|neighbours?|behaviours?|labelled", "American spelling"),
    Word("(optimi|normali|standardi|initiali|memori|summari)s(e|es|ed|er|ers|ing)", "American spelling"),
)  # fmt: skip

# Whole names of classes, functions, arguments and fields.
WHOLE_NAMES = {
    "least": "confidence_threshold, minimum",
    "most": "maximum, all_reduce_max",
    "Draws": "SampleGenerator",
    "counted_seed": "derived_seed",
    "Member": "AssignedImage",
    "Training": "TrainState",
    "Outcome": "StepOutput",
    "Sums": "EpochMetrics",
    "Progress": "RunState",
    "Saved": "Checkpoint",
    "Saver": "Checkpointer",
}

# In pages, docstrings, comments, help texts and messages.
PROSE = (
    Word(r"(?<!`)\btwins?\b", "duplicates"),  # `twins` is a family of networks
    Word(r"\banew\b|\bafresh\b", "again, from scratch"),
    Word(r"\bsooner\b", "faster, earlier"),
    Word(r"\bat once\b", "immediately, in one batch"),
    Word(r"\bwhich is said\b|\bis told\b|\bare told\b|\bwas told\b", "name the actor: logs a warning"),
    Word(r"\bgo(es)? on (with|from)\b|\bto go on\b", "resume, continue"),
    Word(r"\bbegins? anew\b", "start a new run"),
    Word(r"\btaken for\b", "misclassified as"),
    Word(r"(?<!there )(?<!but )\bis no (?!longer|more|less|better|worse|other)\w", "is not a valid"),
    Word(r"\bverbs?\b|\bVERB\b", "command"),
    Word(r"\bzoo\b", "networks of the registry"),
    Word(r"\bstand-ins?\b", "substitute data"),
    Word(r"\bby heart\b", "memorized"),
    Word(r"\blopsided\b", "imbalanced"),
    Word(r"\bsquash(ed|es|ing)?\b", "stretch"),
    Word(r"\bcanvas(es)?\b", "resized image", ignore=r"templates/|browser"),  # HTML's canvas
    Word(r"\bresident\b", "on the GPU, in memory"),
    Word(r"(?<!security[ -])\bpolic(y|ies)\b", "augmentation", ignore="offline_page|guard|serve"),  # security
    Word(r"(?<!in )(?<!to the )(?<!web )\bfronts?\b", "frozen backbone"),
    Word(r"\bquarantined?\b", "exclude list"),
    Word(r"\badmi(t|ts|tted|ssion)\b", "filter"),
    Word(r"\baudit(s|ed)?\b|\bthe physical\b", "data-quality report"),
    Word(r"\bsuspects?\b", "label issues"),
    Word(r"\binsights?\b", "label issues, learning curve"),
    Word(r"\bstrange(ness)?\b", "out of distribution"),
    Word(r"\bshortlist(s|ed)?\b", "model ranking"),
    Word(r"flowers-torch combine\b", "flowers-torch ensemble"),
    Word(r"\bfold(ed|ing)\b|\bfolds? (the )?batch norm", "conv-bn fusion"),
    Word(r"\b(the|its) probe\b|\bprobes? (of|for) precision\b", "autotuning", ignore="linear_probe"),
    Word(r"\b(a|the) share of\b|\bshares of\b(?! the run)", "fraction of, shard of"),
    Word(r"\bparts? of the (data|photos|images)\b|\b(across|between) (its |the )?parts\b", "split"),
    Word(r"\bsurest\b|\bunsurest\b", "most confident"),
    Word(r"\blikel(y|iest)\b(?= class)|\blikeliest\b", "most probable"),
    Word(r"\b(an|the|its|mean|wrong|right|each|all|of) answers?\b", "prediction", ignore="guard|serve"),
    Word(r"\btrade-off\b", "risk-coverage curve"),
    Word(r"\b(its|network's|model's) record\b", "model metadata, ModelInfo"),
    Word(r"\bdeadly\b|\bmend(s|ed|ing)?\b|\bpulse\b", "fatal, fix, heartbeat"),
    Word(r"\bquicken(s|ed)?\b", "compiled, accelerated"),
    Word(r"\bthe seeds?('s?)? (tutorial|notebook|recipe|print)|\bthe seeds' ", "original tutorial"),
    Word(r"\bcolours?\b|\bcoloured\b|\bgrey\b|\bcent(re|red|res)\b|\bneighbour", "American spelling"),
    Word(r"\bbehaviour|\blabelled\b|\blicence\b|\bcancelled\b|\bunlabelled\b", "American spelling"),
    Word(r"\b(optim|normal|standard|initial|memor|summar|regular|recogn|organ)is(e|es|ed|er|ers|ing|ation)\b",
         "American spelling"),
)  # fmt: skip

# Few texts match these, and only they are compared with each word.
ANY_NAME = re.compile("|".join(f"(?:{word.pattern})" for word in NAMES))
ANY_PROSE = re.compile("|".join(f"(?:{word.pattern})" for word in PROSE), re.I)


def applies(word: Word, path: Path) -> bool:
    place = "/" + path.relative_to(ROOT).as_posix()
    return bool(re.search(word.files, place)) and not re.search(word.ignore, place)


def parts_of(name: str) -> list[str]:
    """Lowercase words of a name in snake case or camel case."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of classes, functions, arguments, fields, and constants of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
                yield from ((child.lineno, target.id) for target in targets if isinstance(target, ast.Name))


def name_problems(path: Path, line: int, name: str) -> Iterator[str]:
    if name.startswith("test_"):  # a sentence
        yield from text_problems(path, iter([(line, name.replace("_", " "))]))
        return
    where = f"{path.relative_to(ROOT)}:{line}: {name}"
    if name in WHOLE_NAMES:
        yield f"{where}: use {WHOLE_NAMES[name]}"
    words = [part for part in parts_of(name) if ANY_NAME.fullmatch(part)]
    for word in NAMES if words else ():
        if applies(word, path) and any(re.fullmatch(word.pattern, part) for part in words):
            yield f"{where}: use {word.instead}"


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the comments, docstrings and messages of a module; single words are not messages."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.splitlines()):
                yield node.lineno + number, line


def text_problems(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    words = [word for word in PROSE if applies(word, path)]
    for number, line in lines:
        for word in words if ANY_PROSE.search(line) else ():
            if found := re.search(word.pattern, line, re.I):
                yield f"{path.relative_to(ROOT)}:{number}: {found[0]!r}: use {word.instead}"


def listed(problems: Iterable[str]) -> str:
    """All places in order, below their number; empty if there are none."""
    found = sorted(set(problems), key=lambda text: (text.split(":")[0], int(text.split(":")[1]), text))
    return "\n".join([f"{len(found)} places", *found]) if found else ""


def test_names_are_words_of_the_field() -> None:
    problems = [
        problem
        for path in CODE
        for line, name in [(1, path.stem), *defined_names(ast.parse(path.read_text(encoding="utf-8")))]
        for problem in name_problems(path, line, name)
    ]
    for path in RECIPES:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        keys = {*table, *(key for stage in table.get("stages", []) for key in stage), path.stem}
        problems += [problem for key in keys for problem in name_problems(path, 1, key)]
    assert not (report := listed(problems)), report


def test_docstrings_comments_and_messages_are_plain() -> None:
    report = listed(problem for path in CODE for problem in text_problems(path, texts(path)))
    assert not report, report


def test_pages_recipes_and_templates_are_plain() -> None:
    report = listed(
        problem
        for path in [*PAGES, *RECIPES, *TEMPLATES]
        for problem in text_problems(path, enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    )
    assert not report, report


# A number of things that a program or page writes without `plural`, which knows that one thing is one "photo".
COUNTED = re.compile(
    r"\{[^{}\n]*(?:\blen\([a-z]|\|length|\.total\(\)|images(?=\})|count(?=\}))[^{}\n]*\}\}? "
    r"(?:(?:more|new|other|common|test|training|validation|class) )*"
    r"(?:photos|images|pictures|classes|files|folders|groups|stages|epochs|networks|shards|values|columns|folds)\b"
)


def test_counts_agree_with_their_nouns() -> None:
    paths = [*PACKAGE.rglob("*.py"), *TEMPLATES]
    assert not [f"{path}: {text}" for path in paths for text in COUNTED.findall(path.read_text(encoding="utf-8"))]
    counts = [
        "{len(mixed)} pictures are",
        "{{ photos|length }} photos",
        "{result.images} test photos",
        "{count} photos",
    ]
    assert all(map(COUNTED.search, counts)) and not COUNTED.search("no {split} photos")
    assert plural(1, "photo occurs", "photos occur") == "1 photo occurs" and plural([], "class") == "0 classes"
    assert plural(range(1360), "test photo", form=",") == "1,360 test photos"


def test_words_are_found() -> None:
    path = PACKAGE / "data/example.py"
    assert parts_of("TwinGroups") == parts_of("twin_groups") == ["twin", "groups"]
    assert list(name_problems(path, 1, "twin_groups")) and list(name_problems(path, 1, "most"))
    assert not list(name_problems(path, 1, "most_confident"))
    for text in ("the photo is no image", "twins", "Colour of the centre", "a share of the photos"):
        assert list(text_problems(path, iter([(1, text)]))), text
    for text in ("features in front of the head", "there is no image", "it is no longer there", "test folds"):
        assert not list(text_problems(path, iter([(1, text)]))), text
