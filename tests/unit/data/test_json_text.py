"""JSON of files: whatever is in one, an error names it, and no reader has another parser."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import raypq
from raypq.bench import ablation
from raypq.data.class_prototypes import ClassLayer
from raypq.data.model_files import ModelFiles
from raypq.data.storage import json_text
from raypq.data.store import journal, lease, runs, snapshot
from raypq.data.store.shard_writer import Receipt, Source
from raypq.errors import InputError
from raypq.reporting import findings

DEEP = ['{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "[" * 100_000 + "]" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000, "[" * 70 + "]" * 70]  # fmt: skip
NONE = ["", "{", "nul", "\udcff", "[1" * 3, "9" * 5_000]


@pytest.mark.parametrize("text", DEEP + NONE, ids=lambda text: f"{text[:9]!r}")
def test_what_is_no_json_or_too_deep_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_text.parse(text.encode(errors="surrogateescape"))


def test_what_raypq_writes_is_not_deep() -> None:
    value = {"a": [{"b": [[1, 2.5, None, "x"]]}], "c": {}}
    assert json_text.parse(json.dumps(value)) == value
    assert json_text.parse("[" * 60 + "]" * 60)


def commit(store: str) -> Receipt:
    made = Receipt(
        shard="a", path="data/a.parquet", bytes=1, rows=1, sha256="0", model="m", work="w",
        source=Source(uri="u", size=1, modified="1"),
    )  # fmt: skip
    snapshot.commit(store, kind="codes", run_id="r", expected=["a"], receipts=[made])
    return made


def of_snapshot(store: Path, content: bytes) -> None:
    commit(str(store))
    (store / snapshot.path_of(1)).write_bytes(content)
    snapshot.read(str(store))


def of_model(store: Path, content: bytes) -> None:
    (store / "model.json").write_bytes(content)
    ModelFiles.load(str(store))


def of_record(store: Path, content: bytes) -> None:
    (store / "model.json").write_bytes(content)
    ModelFiles.read_record(str(store))


def of_classes(store: Path, content: bytes) -> None:
    (store / "classes.json").write_bytes(content)
    ClassLayer.load(str(store))


def of_result(store: Path, content: bytes) -> None:
    (store / "M2.json").write_bytes(content)
    findings._read(str(store / "M2.json"))


def of_ablation(store: Path, content: bytes) -> None:
    (store / "rows.json").write_bytes(content)
    ablation._known(str(store / "rows.json"))


@pytest.mark.parametrize("text", [DEEP[0], DEEP[3], NONE[1]], ids=["deep", "70", "cut"])
@pytest.mark.parametrize(
    "read", [of_snapshot, of_model, of_record, of_classes, of_result, of_ablation]
)
def test_readers_name_the_file(
    tmp_path: Path, read: Callable[[Path, bytes], None], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text.encode())
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", [DEEP[0], DEEP[3], NONE[1]], ids=["deep", "70", "cut"])
def test_what_can_be_done_without_is_passed_over(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = str(tmp_path)
    made = commit(store)
    good = journal.Journal(store, "w")
    good.add(made)
    good.flush()
    bad = tmp_path / "journal" / "w" / f"{1:020d}-00000000.json"
    bad.write_text(text)
    assert journal.Journal(store, "w").read() == [made], "the others still count"
    assert str(bad) in caplog.text
    bad.write_text(f'["data/kept.parquet", {text}')
    assert "data/kept.parquet" in journal.files_named(store, ["w"]), "gc misses no file"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"gc-{'0' * 32}.json").write_text(text)
    assert runs.removed_by_gc(store) == frozenset()
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "000000000001-00000000.json").write_text(text)
    found = lease.current(store)
    assert found
    assert found.seconds == lease.SECONDS


def test_one_parser_reads_all_files() -> None:
    """Others end in a ``RecursionError`` that nobody expects."""
    root = Path(raypq.__file__).parent
    allowed = {"json_text.py", "reading.py", "checkpoint.py", "json_lines.py"}
    found = {
        path.name
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and (node.attr in {"model_validate_json", "validate_json", "raw_decode", "JSONDecoder"}
             or (node.attr in {"load", "loads"} and isinstance(node.value, ast.Name)
                 and node.value.id == "json"))
    }  # fmt: skip
    # Config says lines, checkpoint reads its own files, json_lines wraps what it cannot read.
    assert found <= allowed
