"""The architecture holds: imports go one way, Ray stays in one room, help costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "raypq"

# What each room may import of raypq, beside itself.
ALLOWED = {
    "errors": set(),
    "machine": set(),
    "meter": set(),
    "console": set(),
    "config": {"errors", "machine"},
    "exits": {"console", "errors"},
    "data": {"config", "console", "errors", "meter"},
    "kernels": {"config", "errors", "console", "machine"},
    "methods": {"kernels", "data", "config", "errors"},
    "execution": {"kernels", "config", "errors", "console", "machine", "meter"},
    "stages": {
        "execution",
        "methods",
        "kernels",
        "data",
        "config",
        "errors",
        "console",
        "machine",
        "meter",
    },
    "distributed": {
        "execution",
        "kernels",
        "data",
        "config",
        "errors",
        "console",
        "machine",
        "meter",
    },
    "api": {
        "reporting",
        "distributed",
        "execution",
        "stages",
        "kernels",
        "data",
        "config",
        "console",
        "errors",
        "exits",
        "machine",
    },
    "sizing": {"data", "config", "errors"},
    "reporting": {"data", "config", "errors", "console", "__version__"},
    "demo": {"api", "bench", "data", "config", "console", "errors"},
    "bench": {
        "api",
        "distributed",
        "execution",
        "sizing",
        "stages",
        "methods",
        "kernels",
        "data",
        "config",
        "errors",
        "console",
    },
    "__main__": {"cli"},
    "cli": {
        "api",
        "data",
        "stages",
        "demo",
        "bench",
        "sizing",
        "kernels",
        "machine",
        "config",
        "console",
        "exits",
        "__version__",
    },
}


def _room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "raypq":
                yield from (f"raypq.{alias.name}" for alias in node.names)
            else:
                yield node.module


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = _room(path)
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "ray":
            assert room == "distributed", f"{path} imports Ray"
        if top == "raypq" and rest[0] != room:
            assert rest[0] in ALLOWED[room], f"{path} imports {name}"


def test_every_room_is_known() -> None:
    assert {_room(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("arguments", ["--help", "train --help", "evaluate classification --help"])
def test_help_imports_neither_torch_nor_ray(arguments: str) -> None:
    code = (
        "import sys\n"
        "from raypq.cli import main\n"
        f"main({arguments.split()!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
