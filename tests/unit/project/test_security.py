"""Rules of the source that keep data from running as code, and secrets out of what is written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data import codes
from raypq.data.storage import Shard, StorageSettings, open_parquet
from raypq.data.store import shard_writer
from raypq.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted([*(ROOT / "raypq").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "ray.cloudpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "yaml.load",
         "yaml.unsafe_load", "yaml.full_load", "os.system", "np.fromfile"}  # fmt: skip
KEYWORDS = {"allow_pickle", "shell"}  # each only as False


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            named = {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
            yield from sorted(named & (MODULES | CALLS))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called.endswith((".to_pickle", ".read_pickle", "load_pickle")):
                yield called
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in KEYWORDS and not off:
                    yield f"{called}({keyword.arg})"
            if called in ("np.load", "numpy.load"):
                safe = {"allow_pickle"} <= {keyword.arg for keyword in node.keywords}
                if not safe:
                    yield called


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_run(path: Path) -> None:
    assert not list(offences(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from torch import load\nimport torch\ntorch.load(x)", "yaml.load(x)",
     "np.load(x)", "np.load(x, allow_pickle=True)", "from ray import cloudpickle", "eval(x)",
     "subprocess.run(x, shell=True)"],
)  # fmt: skip
def test_the_rule_above_can_fail(source: str) -> None:
    assert list(offences(source))


def test_sources_were_found() -> None:
    assert len(FILES) > 50


def test_no_setting_has_room_for_a_credential() -> None:
    """What raypq holds in settings it writes to manifests and logs: no key may belong there."""
    secret = re.compile(r"secret|password|token|credential|access_key", re.IGNORECASE)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                assert not secret.search(node.target.id), f"{path}: {node.target.id}"
    assert not [name for name in StorageSettings.model_fields if secret.search(name)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A code file of 4,000 rows as raypq writes it."""
    schema = codes.schema(fingerprint="f" * 64, M=8, K=256, id_type=pa.int64(), label=False)
    rng = np.random.default_rng(0)
    batch = codes.record_batch(
        schema,
        ids=pa.array(rng.integers(1 << 60, size=4000)),
        stored=rng.integers(256, size=(4000, 8), dtype=np.uint8),
        labels=None,
    )
    shard = Shard(index=0, uri="/in/a.parquet", stem="a", size=1, modified="now")
    receipt = shard_writer.write_shard(
        str(tmp_path), shard, model="f", work="w", schema=schema, batches=[batch],
        options=codes.WRITE_OPTIONS,
    )  # fmt: skip
    return tmp_path / receipt.path


def test_every_flipped_bit_of_a_page_is_found(written: Path) -> None:
    """Checksums are written on every page, and looked at."""
    whole = written.read_bytes()
    columns = [pq.read_metadata(written).row_group(0).column(i) for i in range(2)]
    rng = np.random.default_rng(1)
    for column in columns:
        start = column.dictionary_page_offset or column.data_page_offset
        for place in rng.integers(start + 64, start + column.total_compressed_size, 25):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            written.write_bytes(damaged)
            with pytest.raises(InputError, match="expected"), open_parquet(str(written)) as file:
                file.read()


def test_what_is_whole_is_read(written: Path) -> None:
    with open_parquet(str(written)) as file:
        assert file.read().num_rows == 4000
