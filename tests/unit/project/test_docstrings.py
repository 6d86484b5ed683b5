"""Every public object says what it is; arrays come with shapes, errors with their reasons."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import raypq

ROOT = Path(raypq.__file__).parent
DOCS = ROOT.parent / "docs"
_OPTIONAL = ("._native", "._triton")  # need a compiler or a GPU


def _modules() -> list[str]:
    found = (module.name for module in pkgutil.walk_packages([str(ROOT)], "raypq."))
    return ["raypq", *(name for name in found if not name.endswith(_OPTIONAL))]


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions of a module, and methods of those classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, (FunctionType, type)) and value.__name__ != "decorate":
            yield name, value
        if isinstance(value, type):
            for part, method in vars(value).items():
                if not part.startswith("_") and isinstance(
                    method, (FunctionType, property, classmethod, staticmethod)
                ):
                    yield f"{name}.{part}", getattr(value, part)


@pytest.mark.parametrize("name", _modules())
def test_every_public_object_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    silent = [
        place
        for place, value in _public(module)
        if not inspect.getdoc(value)  # a method that overrides says what its base says
    ]
    assert silent == []


def _raises(value: Any) -> bool:
    """Whether the body itself raises one of raypq's errors."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    return any(
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in ("ConfigError", "InputError", "ModelError", "NotFittedError")
        for node in ast.walk(tree)
    )


REFERENCE = (
    "raypq.api", "raypq.kernels", "raypq.methods.base", "raypq.methods.support.linear_model",
    "raypq.methods.model", "raypq.methods.registry", "raypq.sizing",
    "raypq.stages.classification.evaluate",
)  # fmt: skip


@pytest.mark.parametrize("name", REFERENCE)
def test_arrays_have_shapes_and_errors_reasons(name: str) -> None:
    module = importlib.import_module(name)
    wanting = []
    for place, value in _public(module):
        if not inspect.isfunction(value):
            continue
        text = inspect.getdoc(value) or ""
        arrays = "NDArray" in str(inspect.signature(value))
        if arrays and not re.search(r"\[[^\]]+\]", text + (module.__doc__ or "")):
            wanting.append(f"{place}: arrays without shapes")
        if _raises(value) and "Raises:" not in text and "|" not in text:
            wanting.append(f"{place}: raises, and does not say when")
    assert wanting == []


def test_all_that_is_offered_is_there() -> None:
    for name in raypq.__all__:
        assert inspect.getdoc(getattr(raypq, name)), name
    assert set(raypq.__all__) == set(raypq._MODULES)


def test_the_reference_builds(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    sys.path.insert(0, str(DOCS))
    try:
        reference = importlib.import_module("reference")
    finally:
        sys.path.remove(str(DOCS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pdoc warns of type hints that exist only for checkers
        reference.build(tmp_path)
    text = (tmp_path / "raypq" / "methods" / "base.html").read_text("utf-8")
    assert "Features [n, dx] to codes [n, M]" in text.replace("&nbsp;", " ")
    assert (tmp_path / "raypq.html").exists()
