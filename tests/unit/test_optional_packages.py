"""An optional package that is absent is named, with its extra and the command that installs it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import raypq
from raypq.errors import ConfigError
from raypq.optional_packages import require

ROOT = Path(raypq.__file__).parent
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OF_A_PACKAGE = {  # whose name differs from its module's
    "faiss": "faiss-cpu",
    "lance": "pylance",
    "open_clip": "open_clip_torch",
    "sentence_transformers": "sentence-transformers",
}


def names(requirements: list[str]) -> set[str]:
    return {item.partition(">")[0].partition("[")[0] for item in requirements}


def test_a_package_that_is_there_is_imported() -> None:
    assert require("json.decoder", extra="report") is sys.modules["json.decoder"]


def test_arrow_does_without_pandas() -> None:
    """In a fresh process; pandas itself can be imported afterwards."""
    code = """
import sys
from raypq.optional_packages import leave_out_pandas

leave_out_pandas()
import pyarrow as pa

assert pa.table({"a": [1], "b": ["x"]}).to_pylist() == [{"a": 1, "b": "x"}]
assert "pandas" not in sys.modules
import pandas
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_one_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError) as caught:
        require("faiss", extra="faiss")
    assert str(caught.value) == (
        "faiss is not installed; the extra 'faiss' has it: pip install 'raypq[faiss]'"
    )
    with pytest.raises(ConfigError, match=r"^a report needs no_such, which is not installed; .*"):
        require("no_such.part", extra="report", purpose="a report")


def test_one_that_is_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported \(No module named 'no_such_lib"):
        require("broken_package", extra="report")


def calls() -> list[tuple[str, str, str]]:
    """File, module and extra of every call of ``require``."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                values: dict[str, Any] = {item.arg or "": item.value for item in node.keywords}
                module = getattr(node.args[0], "value", "")
                found.append((str(path.relative_to(ROOT)), module, values["extra"].value))
    return found


def test_every_extra_has_the_package_that_it_is_named_for() -> None:
    assert {"faiss", "matplotlib", "jinja2", "scipy.io", "onnxruntime"} <= {
        module for _, module, _ in calls()
    }
    for path, module, extra in calls():
        name = module.partition(".")[0]
        if name:  # "" where it is a variable: timm or torchvision
            assert OF_A_PACKAGE.get(name, name) in names(EXTRAS[extra]), path
    assert {"timm", "torchvision"} <= names(EXTRAS["backbones"])


def test_no_other_code_imports_an_optional_package() -> None:
    """But what ``require`` has imported before: the figures of the report."""
    modules = {"faiss", "jinja2", "matplotlib", "scipy", "timm", "torchvision", "onnxruntime"}
    importing = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names_of = [item.name for item in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names_of = [node.module or ""]
            else:
                continue
            if modules & {name.partition(".")[0] for name in names_of}:
                importing.add(str(path.relative_to(ROOT)))
    assert importing == {"reporting/charts.py"}
