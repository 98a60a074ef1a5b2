"""The examples in the documentation of every public module run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import sepconv
import sepconv.models

MODULES = sorted(
    {
        name
        for package in (sepconv, sepconv.models)
        for name in (
            package.__name__,
            *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
        )
        if name.rpartition(".")[2] not in ("__main__", "_C")  # a program, and a library without a module
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_written(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in ("torchvision", "timm"):
            pytest.skip(f"{name} wants {error.name}, which is not installed")
        raise
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_the_public_functions_have_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for function in (sepconv.separable_conv2d, sepconv.row_average, sepconv.row_average_conv2d, sepconv.info):
        assert any(test.examples for test in finder.find(function)), f"{function.__name__} has no example"
