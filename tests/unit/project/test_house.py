"""The architecture holds: imports go one way, Ray stays in one room, help costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "raypq"

# What each folder may import of raypq beside itself. Folders are guarded, not only top-level
# packages: ``stages.nightly`` alone knows other families of stages; all may use ``stages.stores``.
BASE = {"errors", "console", "config", "heartbeat", "optional_packages"}
STAGE = BASE | {
    "backbones",
    "data",
    "data.layouts",
    "data.storage",
    "data.store",
    "execution",
    "io_counters",
    "kernels",
    "kernels.torch",
    "machine",
    "methods",
    "methods.support",
    "metrics",
    "stages.stores",
}
FAMILIES = {
    "stages.classification",
    "stages.encoding",
    "stages.nightly",
    "stages.preparation",
    "stages.representation",
    "stages.results",
    "stages.retrieval",
    "stages.retrieval.duplicates",
    "stages.training",
}
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "machine": set(),
    "io_counters": set(),
    "console": {"errors"},
    "exits": {"console", "errors"},
    "heartbeat": {"console"},
    "json_lines": {"console"},
    "optional_packages": {"errors"},
    "text_tables": set(),
    "config": {"errors", "machine"},
    "data.storage": BASE | {"io_counters"},
    "data": BASE | {"kernels", "data.layouts", "data.storage", "io_counters"},
    "data.layouts": BASE | {"data.storage", "io_counters"},
    "data.store": BASE | {"data", "data.layouts", "data.storage"},
    "kernels": {"config", "errors", "console", "machine", "kernels.torch"},
    "kernels.torch": {"kernels"},
    "methods": {"kernels", "data", "data.storage", "config", "errors", "methods.support"},
    "methods.support": {
        "kernels",
        "kernels.torch",
        "data",
        "config",
        "errors",
        "methods",
        "optional_packages",
    },
    "backbones": BASE
    | {"data", "data.layouts", "data.storage", "kernels", "methods", "methods.support"},
    "metrics": BASE | {"data", "data.store", "methods"},
    "execution": BASE | {"_version", "kernels", "io_counters", "machine"},
    "distributed": BASE
    | {"_version", "execution", "kernels", "data.storage", "io_counters", "machine"},
    "monitoring": BASE
    | {"data", "data.storage", "data.store", "execution", "exits", "stages.stores"},
    "stages": set(),
    **dict.fromkeys(FAMILIES, STAGE),
    "stages.stores": STAGE - {"stages.stores", "kernels", "metrics"},
    "stages.retrieval.duplicates": STAGE | {"stages.retrieval"},
    "stages.nightly": STAGE
    | {"stages.classification", "stages.encoding", "stages.retrieval.duplicates"},
    "checks": BASE
    | {"_version", "backbones", "data", "data.layouts", "data.storage", "data.store", "distributed"}
    | {"kernels", "machine", "methods"},
    "api": BASE
    | FAMILIES
    | {
        "checks",
        "data",
        "data.storage",
        "data.store",
        "distributed",
        "execution",
        "exits",
        "heartbeat",
        "json_lines",
        "kernels",
        "machine",
        "monitoring",
        "reporting",
    },
    "sizing": {"data", "config", "errors"},
    "reporting": BASE | {"_version", "data", "data.storage", "data.store"},
    "demo": BASE | {"api", "bench", "data", "data.storage", "data.store", "text_tables"},
    "quickstart": BASE | {"api", "data", "data.storage", "data.store"},
    "bench": (STAGE | FAMILIES | {"api", "distributed", "sizing", "text_tables"})
    - {"stages.nightly"},
    "cli": {
        "_version",
        "api",
        "bench",
        "checks",
        "config",
        "console",
        "data",
        "data.store",
        "demo",
        "errors",
        "exits",
        "heartbeat",
        "json_lines",
        "kernels",
        "machine",
        "monitoring",
        "optional_packages",
        "quickstart",
        "sizing",
        "stages.stores",
        "stages.training",
        "text_tables",
    },
    "__main__": {"cli"},
}


def _folder(path: Path) -> str:
    """The package of a file, or the name of a module that lies in none."""
    relative = path.relative_to(ROOT)
    return ".".join(relative.parts[:-1]) or relative.stem


def _folder_of(module: str) -> str:
    """The package of a module of raypq, as ``_folder`` names it."""
    parts = module.split(".")[1:]
    while parts and not (ROOT.joinpath(*parts) / "__init__.py").exists():
        if len(parts) == 1:
            return parts[0]
        parts = parts[:-1]
    return ".".join(parts)


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.startswith("raypq"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    folder = _folder(path)
    for name in _imports(path):
        if name.split(".")[0] == "ray":
            assert folder == "distributed", f"{path} imports Ray"
        if name == "raypq" or not name.startswith("raypq.") or not _is_module(name):
            continue
        other = _folder_of(name)
        if name == f"raypq.{other}" and any(
            found.startswith(f"{name}.") and _is_module(found) for found in _imports(path)
        ):
            continue  # `from raypq.data import arrays` is of arrays
        assert other == folder or other in ALLOWED[folder], f"{path} imports {name}"


def test_every_folder_is_known() -> None:
    assert {_folder(path) for path in FILES} <= set(ALLOWED)


def test_there_is_no_circle() -> None:
    """Folders that may import each other would be one folder; a package and its parts are."""
    arrows = {(a, b) for a, allowed in ALLOWED.items() for b in allowed}
    both = {frozenset(pair) for pair in arrows if pair[::-1] in arrows and pair[0] != pair[1]}
    assert both == {
        frozenset({"methods", "methods.support"}),
        frozenset({"kernels", "kernels.torch"}),
    }


@pytest.mark.parametrize("arguments", ["--help", "train --help", "evaluate classification --help"])
def test_help_imports_neither_torch_nor_ray(arguments: str) -> None:
    """The help of one command reads its settings, so it needs pydantic."""
    pydantic = "pydantic" if arguments == "--help" else ""
    code = (
        "import sys\n"
        "from raypq.cli import main\n"
        f"main({arguments.split()!r}, standalone_mode=False)\n"
        f"heavy = {{'torch', 'ray', 'numpy', 'pyarrow', {pydantic!r}}} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60
LONG = {  # files that are longer, and why they are one file
    "api.py": "a function for each command",
    "bench/ablation.py": "the tables of two papers, which share their runs",
    "bench/gpu.py": "cases that share one model and one way to run them",
    "bench/pipeline.py": "cases that share one generated store",
    "bench/rates.py": "a measurement for each rate of a plan",
    "cli/job_command.py": "one translation of fields to options and back",
    "config/reading.py": "a YAML reader with places in the file for every error",
    "console.py": "everything that a run prints: results, log lines, progress",
    "data/classes.py": "the class table: reading, checks, splits of classes",
    "data/duplicate_ids.py": "one external sort and its merge",
    "data/filter_language.py": "tokens, grammar and evaluation of one small language",
    "data/storage/operations.py": "the interface of all storages, and its functions",
    "data/storage/parquet.py": "one reader and the checks of what it opens",
    "data/store/id_index_files.py": "two file formats of one index",
    "data/store/lease.py": "one protocol",
    "data/store/receipts.py": "one sequence, and where its columns come from",
    "data/store/snapshot.py": "the format of a version, and its commit",
    "distributed/worker_pool.py": "one supervised map",
    "kernels/__init__.py": "a function for each kernel",
    "kernels/native.py": "a function for each compiled kernel",
    "quickstart.py": "the steps of one command",
    "methods/dpq.py": "one method of a paper",
    "methods/gpq.py": "one method of a paper",
    "methods/model.py": "the contract of every model, and its checks",
    "methods/pqzsl.py": "one method of a paper",
    "stages/classification/classify.py": "one job: plan, workers, summary",
    "stages/classification/evaluate.py": "one job: its workers, figures and summary",
    "stages/nightly/reindex.py": "one job: codes, then each store made of them",
    "stages/retrieval/search.py": "one job of several passes",
    "stages/stores/work_id.py": "one list: the settings of every job",
    "stages/stores/shard_run.py": "one protocol: plan, process, commit",
    "stages/training/gradient.py": "plan and phases of one kind of training",
    "stages/training/trainer.py": "one loop of training, with its checkpoints",
}


def test_long_files_have_a_reason() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name for name, count in lines.items() if count > MOST_LINES} == set(LONG)


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MOST_LINES_OF_A_FUNCTION
    }
    assert not long
