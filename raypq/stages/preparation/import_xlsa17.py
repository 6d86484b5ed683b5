"""The published ZSL benchmarks as feature stores: res101.mat and att_splits.mat with their
Proposed Split (Xian et al., "Zero-Shot Learning: A Comprehensive Evaluation", TPAMI 2018).

``features`` is [dx, N], ``labels`` [N, 1] are class numbers from 1, ``att`` is [da, T], and
``…_loc`` are row numbers from 1.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq import console
from raypq.config import ImportXlsa17Job
from raypq.data import arrays
from raypq.data.plain_folder import refuse_others
from raypq.data.storage import atomic_write, join
from raypq.errors import InputError
from raypq.optional_packages import require

PARTS = {
    "train": "trainval_loc",
    "test_seen": "test_seen_loc",
    "test_unseen": "test_unseen_loc",
}


def import_xlsa17(job: ImportXlsa17Job) -> dict[str, Any]:
    """Writes ``train``, ``test_seen`` and ``test_unseen`` stores and ``classes.parquet``.

    Raises:
        ConfigError: SciPy is not installed; or a part holds files that this run does not write.
        InputError: a file is missing, has another layout, or contradicts the other file.
    """
    features = Path(job.source) / "res101.mat"
    splits = Path(job.source) / "att_splits.mat"
    feats = _load(features, ("features", "labels"))
    atts = _load(splits, ("att", "allclasses_names", *PARTS.values()))
    X = _matrix(feats["features"], features, "features").T
    y = _numbers(feats["labels"], features, "labels")
    A = _matrix(atts["att"], splits, "att").T
    names = [str(np.ravel(name)[0]) for name in np.ravel(atts["allclasses_names"])]
    if len(y) != len(X):
        raise InputError(str(features), expected=f"{len(X)} labels", found=str(len(y)))
    if len(names) != len(A) or not len(y) or not 0 <= y.min() <= y.max() < len(A):
        raise InputError(
            str(splits),
            expected=f"attributes and names of the classes 1 to {int(y.max(initial=0)) + 1}",
            found=f"attributes of {len(A)} and {len(names)} names",
        )
    ids = _ids(feats.get("image_files"), len(X))
    parts = {part: _rows(atts[key], len(X), splits, key) for part, key in PARTS.items()}
    seen = np.zeros(len(A), bool)
    seen[y[parts["train"]]] = True
    _check_split(parts, y, seen, names, splits)
    for part, rows in parts.items():
        refuse_others(join(job.output, part), _file_names(len(rows), job.rows))
    for part, rows in parts.items():
        _write_store(join(job.output, part), X[rows], y[rows], ids, rows, names, job.rows)
    columns = {
        "class_id": pa.array(names, pa.string()),
        "name": pa.array([_readable(name) for name in names], pa.string()),
        "embedding": arrays.fixed_list(A),
        "seen": pa.array(seen),
    }
    _write(join(job.output, "classes.parquet"), pa.table(columns))
    counts = {part: len(rows) for part, rows in parts.items()}
    console.say(f"imported {job.source}: {counts}, {int(seen.sum())} of {len(A)} classes seen")
    return {
        "output": job.output,
        **counts,
        "classes": len(A),
        "seen": int(seen.sum()),
        "dx": X.shape[1],
        "da": A.shape[1],
    }


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    loadmat = require("scipy.io", extra="xlsa17", purpose="import-xlsa17").loadmat
    if not path.is_file():
        raise InputError(str(path), expected="a MATLAB file", found="none")
    try:
        content: dict[str, Any] = loadmat(str(path))
    except NotImplementedError:
        raise InputError(
            str(path), expected="a MATLAB file up to version 7", found="one of version 7.3 (HDF5)"
        ) from None
    except Exception as error:  # SciPy raises many types for files of other formats
        raise InputError(str(path), expected="a MATLAB file", found=str(error)) from None
    absent = [key for key in keys if key not in content]
    if absent:
        present = ", ".join(sorted(key for key in content if not key.startswith("__")))
        raise InputError(
            str(path), expected=f"variables {', '.join(absent)}", found=present or "no variable"
        )
    return content


def _matrix(value: Any, path: Path, name: str) -> NDArray[np.float32]:
    matrix = np.asarray(value)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise InputError(
            f"{path}, variable {name!r}",
            expected="a matrix of numbers",
            found=f"shape {matrix.shape} of {matrix.dtype}",
        )
    if not np.isfinite(matrix).all():
        raise InputError(f"{path}, variable {name!r}", expected="finite numbers", found="NaN or ∞")
    return matrix.astype(np.float32)


def _numbers(value: Any, path: Path, name: str) -> NDArray[np.int64]:
    """Numbers from 1 as indices from 0."""
    numbers = np.ravel(np.asarray(value))
    if numbers.dtype.kind not in "fiu" or (numbers != np.round(numbers)).any():
        raise InputError(
            f"{path}, variable {name!r}", expected="whole numbers", found=str(numbers.dtype)
        )
    return numbers.astype(np.int64) - 1


def _rows(value: Any, N: int, path: Path, name: str) -> NDArray[np.int64]:
    rows = np.sort(_numbers(value, path, name))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < N:
        raise InputError(
            f"{path}, variable {name!r}",
            expected=f"row numbers from 1 to {N}",
            found=f"{rows[0] + 1} to {rows[-1] + 1}",
        )
    return rows


def _check_split(
    parts: dict[str, NDArray[np.int64]],
    y: NDArray[np.int64],
    seen: NDArray[np.bool_],
    names: list[str],
    path: Path,
) -> None:
    """Checks that no row is in two parts, and that test parts hold seen or unseen classes only."""
    rows = np.concatenate(list(parts.values()))
    if len(np.unique(rows)) != len(rows):
        raise InputError(str(path), expected="parts without common rows", found="a row in two")
    for part, side in (("test_seen", True), ("test_unseen", False)):
        wrong = np.unique(y[parts[part]][seen[y[parts[part]]] != side])
        if len(wrong):
            raise InputError(
                f"{path}, variable {PARTS[part]!r}",
                expected=f"images of {'seen' if side else 'unseen'} classes",
                found=f"{len(wrong)} other classes, such as {names[wrong[0]]!r}",
            )


def _ids(files: Any, N: int) -> list[str]:
    """Paths of the images if the file has them and they are distinct, row numbers otherwise."""
    if files is None or np.size(files) != N:
        return [str(row) for row in range(N)]
    paths = [str(np.ravel(file)[0]).replace("\\", "/") for file in np.ravel(files)]
    stems = ["/".join(PurePosixPath(path).with_suffix("").parts[-2:]) for path in paths]
    return stems if len(set(stems)) == N else [str(row) for row in range(N)]


def _readable(name: str) -> str:
    """``001.Black_footed_Albatross`` or ``polar+bear`` in plain words."""
    return name.split(".", 1)[-1].replace("_", " ").replace("+", " ")


def _write_store(
    folder: str,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    ids: list[str],
    rows: NDArray[np.int64],
    names: list[str],
    size: int,
) -> None:
    for number, name in enumerate(_file_names(len(X), size)):
        part = slice(number * size, (number + 1) * size)
        columns = {
            "id": pa.array([ids[row] for row in rows[part]], pa.string()),
            "feature": arrays.fixed_list(X[part]),
            "label": pa.array([names[label] for label in y[part]], pa.string()),
        }
        _write(join(folder, name), pa.table(columns))


def _file_names(N: int, size: int) -> list[str]:
    """The files of N rows, ``size`` rows in each; one file if there is no row."""
    return [f"part-{number:05d}.parquet" for number in range(math.ceil(max(N, 1) / size))]


def _write(uri: str, table: pa.Table) -> None:
    with atomic_write(uri) as sink:
        pq.write_table(table, sink, write_page_checksum=True)
