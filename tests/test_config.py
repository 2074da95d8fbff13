"""Configuration: precedence, all mistakes together, and a file that repeats the run."""

import dataclasses
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from flowers_torch import config_file
from flowers_torch.cli import Parser
from flowers_torch.commands import train
from flowers_torch.config import HEAD_ONLY, Config, Stage, split_fractions, with_absolute_paths
from flowers_torch.config_file import config_folder, load_config, to_toml
from flowers_torch.errors import UsageError

HERE = Path("/here")

ROOT = Path(__file__).parent.parent

CONFIGS = sorted(config_folder().rglob("*.toml"))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flag_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "batch_size = 7\nseed = 3\n[[stages]]\nlr = 0.5\n")
    config = load_config(file=file, overrides={"batch_size": 9, "stages.finetune.momentum": 0.5})
    assert (config.batch_size, config.seed, config.split) == (9, 3, Config.split)
    assert config.stages == [Stage(lr=0.5, momentum=0.5)]


def test_overrides_of_the_caller_are_not_changed() -> None:
    wanted = HEAD_ONLY | {"stages.head.cached_views": 2}
    assert load_config(overrides=wanted).stages[0].cached_views == 2
    assert HEAD_ONLY["stages"][0]["cached_views"] == load_config(overrides=HEAD_ONLY).stages[0].cached_views == 1


def test_presets_are_chosen_by_network_and_by_demo() -> None:
    assert load_config(arch="inception_v3").head_hidden == 1024
    assert load_config(arch="resnet50") == dataclasses.replace(load_config(file="default"), arch="resnet50")
    assert load_config(arch="resnet50", overrides={"weights": "none"}) == Config(arch="resnet50", weights="none")
    demo = load_config(arch="resnet50", data="demo")
    assert (demo.arch, demo.data) == ("resnet50", "demo") and demo.size < 128
    assert load_config(file="inception_v3") == load_config()


def test_the_written_file_repeats_the_run(tmp_path: Path) -> None:
    odd = {
        "model_options.drop_rate": 0.5,
        "data": 'é"\\\x1b\x7f',
        "stages.head.train": [["fc.*", 1.0], ["*", 0]],
        "stages.finetune.train": "layer4",
    }
    config = load_config(overrides=odd)
    file = write(tmp_path / "c.toml", to_toml(config, "heading\nof two lines"))
    assert load_config(file=file) == config


@pytest.mark.parametrize(
    "text",
    [
        "lr = " + "9" * 400,
        "batch_size = 0x" + "f" * 5000,
        "seed = 99999999999999999999",
        "x = " + "[" * 5000,
        "".join(f'"\\u001b[2J{number}" = 1\n' for number in range(3000)),
        "[[stages]]\nname = \"\\u001b[2J\"\nlr = 'x'",
        "[[stages]]\nname = []\nlr = 'x'\n" * 20,
        "[[stages]]\ntrain = [['*', inf]]",
        "\ufeff\0",
    ],
    ids=range(9),
)
def test_a_hostile_file_costs_one_short_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="; fix: ") as caught:
        load_config(file=write(tmp_path / "c.toml", text))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 6000


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'batchsize = 3\nseed = "x"\n[[stages]]\nlr = -1.0\nepochs = 0\n')
    with pytest.raises(UsageError) as caught:
        load_config(file=file)
    for part in (
        "2 problems",
        "unknown field batchsize (did you mean batch_size?)",
        "seed must be int, not 'x'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stages.head.lr", 0.0),
        ("stages.head.lr", -1.0),
        ("stages.head.lr", float("nan")),
        ("stages.head.lr", True),
        ("stages.head.epochs", 0),
        ("batch_size", 0),
        ("batch_size", -1),
        ("size", 10**6),
        ("size", -1),
        ("workers", -2),
        ("split", "0/50/50"),
        ("split", "100"),
        ("split", "60/x/20"),
        ("precision", "fp8"),
        ("stages.head.optimizer", "adma"),
        ("stages.tail.lr", 0.1),
        ("model.x", 1),
        ("stages", []),
        ("stages.head.train", [["fc.*"]]),
        ("stages.head.train", ["fc.*"]),
        ("stages.head.train", [["fc.*", -1.0]]),
        ("stages.head.train", 3),
        ("epochs", [1, 2, 3]),
        ("epochs", 3),
    ],
)
def test_values_out_of_range_are_named(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key.rpartition(".")[2]):
        load_config(overrides={key: value})


@pytest.mark.parametrize("content", [b"lr = ", b"a = 1\na = 2", b"\xff\xfe", b"x = !!python/object"])
def test_broken_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"c\.toml"):
        load_config(file=str(tmp_path / "c.toml"))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfseed = 4\n")
    assert load_config(file=str(tmp_path / "c.toml")).seed == 4


def test_an_unknown_config_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(UsageError, match="inception_v3"):
        load_config(file="no_such_recipe")


def test_epochs_are_given_in_the_order_of_the_stages() -> None:
    config = load_config(overrides={"epochs": [4]})
    assert [stage.epochs for stage in config.stages] == [4, load_config().stages[1].epochs]


def test_options_that_are_gone_are_unknown() -> None:
    with pytest.raises(UsageError, match="unknown field out .*unknown field tensorboard"):
        load_config(overrides={"out": "runs/a", "tensorboard": True})


@pytest.mark.parametrize("text", ["60/20/20", "0.6/0.2/0.2", "3/1/1"])
def test_fractions(text: str) -> None:
    assert split_fractions(text) == pytest.approx((0.6, 0.2, 0.2))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_starts_with_purpose_command_and_result(path: Path) -> None:
    config = load_config(file=str(path))
    heading = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert heading[0].startswith("# Purpose: ")
    (command,) = [line.removeprefix("# Command: ") for line in heading if line.startswith("# Command: ")]
    (expected,) = [line.removeprefix("# Expect: ") for line in heading if line.startswith("# Expect: ")]
    assert expected.strip()
    start, program, *words = shlex.split(command)
    assert (start, program) == ("python", "train.py")
    parser = Parser(allow_abbrev=False)
    train.add_arguments(parser)
    args = parser.parse_args(words)
    if path.stem == "demo":  # chosen by its photos, whatever the network
        assert args.data == "demo" and not args.config
    elif path.stem == "default":  # of networks without a file of their own
        config = dataclasses.replace(config, arch=args.arch)
        assert args.arch not in [path.stem for path in CONFIGS] and not args.config
    else:
        assert path.stem in (args.config, args.arch)
    changed = load_config(args.arch, args.data, args.config, train.overrides(args))
    assert changed.stages == config.stages and changed.arch == config.arch


def test_an_installed_package_finds_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There they lie inside the package, with no folder beside it, as pyproject.toml has them copied."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert copied == {"configs": "flowers_torch/configs"}
    installed = tmp_path / "site-packages" / "flowers_torch"
    shutil.copytree(ROOT / "configs", tmp_path / "site-packages" / copied["configs"])
    monkeypatch.setattr(config_file, "__file__", str(installed / "config_file.py"))
    assert config_folder() == installed / "configs"
    (installed / "configs" / "happy_house.toml").write_text('arch = "resnet50"\n')
    assert load_config(file="happy_house").arch == "resnet50"
    shutil.rmtree(installed / "configs")
    assert config_folder() == tmp_path / "site-packages" / "configs"


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("", ""),
        ("class:lily", "class:lily"),
        ("class:a, b,class:c/d", "class:a, b,class:c/d"),
        ("x,y.csv", f"{HERE / 'x,y.csv'}"),
        ("check/e.csv,class:lily,class:~", f"{HERE / 'check' / 'e.csv'},class:lily,class:~"),
    ],
)
def test_an_exclude_list_has_an_absolute_path_and_classes_do_not(given, absolute, monkeypatch):
    monkeypatch.setattr(Path, "absolute", lambda self: HERE / self)
    config = with_absolute_paths(Config(exclude=given))
    assert config.exclude == absolute and with_absolute_paths(config).exclude == absolute
