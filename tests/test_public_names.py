"""The names of `from flowers_torch import ...`; the import does not load torch."""

import subprocess
import sys

import pytest

import flowers_torch


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in flowers_torch.__all__:
        assert getattr(flowers_torch, name).__doc__
        assert name in dir(flowers_torch)


def test_names_are_the_same_as_for_the_type_checker() -> None:
    assert set(flowers_torch._MODULES) | {"__version__"} == set(flowers_torch.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'flowers_torch' has no attribute 'resnet51'"):
        _ = flowers_torch.resnet51


def test_import_does_not_load_torch() -> None:
    code = "import sys, flowers_torch; print(int('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
