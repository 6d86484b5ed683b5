"""Models whose fingerprint is right and whose content is not: refused, by their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypq.data.class_prototypes import ClassLayer
from raypq.data.model_files import ModelFiles
from raypq.errors import ModelError
from raypq.methods import registry

ROOT = Path(__file__).parents[2]
GOLDEN = sorted(path.parent for path in (ROOT / "golden").glob("*/model.json"))
OLDER = sorted(path.parent for path in (ROOT / "stores").rglob("model.json"))

Change = Callable[[ModelFiles], ModelFiles]


def array(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    def changed(files: ModelFiles) -> ModelFiles:
        tensors = dict(files.tensors)
        value = change(tensors[name].copy())
        tensors.pop(name) if value is None else tensors.update({name: value})
        return replace(files, tensors=tensors)

    return changed


def content(**values: Any) -> Change:
    return lambda files: replace(files, content={**files.content, **values})


def without(key: str) -> Change:
    return lambda files: replace(
        files, content={name: value for name, value in files.content.items() if name != key}
    )


def settings(**values: Any) -> Change:
    return lambda files: replace(
        files, content={**files.content, "settings": {**files.content["settings"], **values}}
    )


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(C: np.ndarray) -> np.ndarray:
        C.reshape(-1)[-1] = value
        return C

    return changed


OF_ALL: Mapping[str, Change] = {
    "C nan": array("C", put(np.nan)),
    "C inf": array("C", put(-np.inf)),
    "no C": array("C", lambda C: None),
    "C without sub-codebooks": array("C", lambda C: C[:0]),
    "C without words": array("C", lambda C: C[:, :0]),
    "C without width": array("C", lambda C: C[:, :, :0]),
    "C flat": array("C", lambda C: C.reshape(-1)),
    "C float64": array("C", lambda C: C.astype(np.float64)),
    "C int32": array("C", lambda C: C.astype(np.int32)),
    "C of fewer words": array("C", lambda C: C[:, :-1]),
    "C too long": array("C", lambda C: np.repeat(C, 20, axis=1)),
    "M": content(M=99), "K": content(K=99), "K text": content(K="16"), "D": content(D=1),
    "metric": content(metric="else"), "no M": without("M"), "no metric": without("metric"),
    "no dx": without("dx"), "dx text": content(dx="16"), "dx 0": content(dx=0),
    "dx null": content(dx=None), "da list": content(da=[6]), "da -1": content(da=-1),
    "classes a number": content(classes=5), "classes text": content(classes="abc"),
    "classes of numbers": content(classes=[1, 2]), "classes twice": content(classes=["a", "a"]),
    "settings a list": content(settings=[]),
}  # fmt: skip
OF_SOME: Mapping[tuple[str, str], Change] = {
    ("opq", "P cut"): array("P", lambda P: P[:-1]),
    ("opq", "P flat"): array("P", lambda P: P.reshape(-1)),
    ("opq", "P nan"): array("P", put(np.nan)),
    ("eszsl", "no P"): array("P", lambda P: None),
    ("eszsl", "no Q"): array("Q", lambda Q: None),
    ("eszsl", "Q turned"): array("Q", lambda Q: np.ascontiguousarray(Q.T)),
    ("pqzsl", "da"): content(da=7),
    ("pqzsl", "dx"): content(dx=17),
    ("pq", "dx"): content(dx=17),
    ("pq", "zscore without a mean"): settings(normalise="zscore"),
    ("psr", "no mean"): array("mean", lambda mean: None),
    ("psr", "mean cut"): array("mean", lambda mean: mean[:-1]),
    ("dpq", "weights cut"): array("net.predict.weight", lambda W: W[:, :-1]),
    ("gpq", "weights gone"): array("net.Z", lambda Z: None),
    ("clusterable", "memory gone"): array("net.memory", lambda memory: None),
}


def refused(folder: Path, change: Change, place: Path) -> None:
    change(ModelFiles.load(str(folder))).save(str(place))
    with pytest.raises(ModelError) as caught:
        registry.load(str(place))
    assert str(place) in str(caught.value)


@pytest.mark.parametrize("change", OF_ALL)
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_what_no_model_says(folder: Path, change: str, tmp_path: Path) -> None:
    refused(folder, OF_ALL[change], tmp_path / "m")


@pytest.mark.parametrize("change", OF_SOME, ids=" ".join)
def test_what_a_method_needs(change: tuple[str, str], tmp_path: Path) -> None:
    refused(ROOT / "golden" / change[0], OF_SOME[change], tmp_path / "m")


@pytest.mark.parametrize("folder", GOLDEN + OLDER, ids=lambda folder: folder.name)
def test_models_of_older_commits_open(folder: Path) -> None:
    assert registry.load(str(folder)).M >= 1


@pytest.mark.parametrize(
    "change", [{"V": np.zeros((2, 3), "f4")}, {"V": np.full((2, 16), np.nan, "f4")},
               {"bias": np.zeros(3)}], ids=["width", "nan", "bias"],
)  # fmt: skip
def test_classes_beside_a_model_fit_it(change: dict[str, Any], tmp_path: Path) -> None:
    ModelFiles.load(str(ROOT / "golden" / "pq")).save(str(tmp_path))
    given: dict[str, Any] = {
        "ids": ("a", "b"), "E": np.zeros((2, 16), "f4"), "V": np.zeros((2, 16), "f4"),
        "bias": np.zeros(2),
    }  # fmt: skip
    ClassLayer(**given).save(str(tmp_path))
    registry.load(str(tmp_path))
    ClassLayer(**{**given, **change}).save(str(tmp_path))
    with pytest.raises(ModelError, match="of the classes beside it"):
        registry.load(str(tmp_path))
