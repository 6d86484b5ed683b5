"""A value of another type is refused in plain words, in every field of every job."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypq import config
from raypq.config import ClusterSettings, Columns, UserSettings
from raypq.config.images import ImageSource
from raypq.errors import ConfigError
from raypq.methods import registry

BASES = ("Job", "CpuJob", "MonitoredJob")
CLASSES: list[type[UserSettings]] = [
    *(value for name, value in vars(config).items() if name.endswith("Job") and name not in BASES),
    config.ClassificationTarget, config.Columns, config.ClusterSettings, config.WorkerSettings,
    config.DriftLimits,
    *(method.settings_class for method in registry.METHODS.values()),
]  # fmt: skip
REQUIRED: dict[str, Any] = {
    "model": "m", "features": ["f"], "output": "o", "classes": "c", "codes": "s", "method": "pq",
    "predictions": "p", "queries": ["q"], "images": ["i"], "backbone": "b", "protocol": 1,
    "name": "gpq-bits", "train": ["t"], "threshold": 1.0, "index": "x", "source": "y", "k": 2,
    "encoder": "onnx:x", "names": "n", "store": "s",
}  # fmt: skip
WRONG: list[Any] = [
    True, False, 3, 2.5, -1, math.nan, math.inf, "", "text", "1_0", "0x10", " 3 ", b"bytes", None,
    [], [None], [["x"]], [True], ["x", 3], {}, {"a": 1}, {1: 2}, object(), (1, 2, 3), 1j,
    np.float32(0.5), np.int64(-1), np.bool_(True), np.zeros(2), Path("x"), [b"x"], {"where": "x"},
    10**400, print,
]  # fmt: skip
RAW = ("Input should", "validation error", "pydantic", "type=", "Refused", "<class")


def required(cls: type[UserSettings], given: str = "") -> dict[str, Any]:
    """The values that a class needs beside one that is ``given``."""
    needed = [name for name, field in cls.model_fields.items() if field.is_required()]
    if issubclass(cls, ImageSource):
        of_images = given in ("images", "backbone", "network")
        needed += ["images", "backbone"] if of_images else ["features"]
    if cls is config.EmbedClassesJob and given != "synsets":
        needed.append("names")
    return {name: REQUIRED[name] for name in needed}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_is_refused_is_told_in_plain_words(cls: type[UserSettings]) -> None:
    for name in cls.model_fields:
        refused = 0
        for wrong in WRONG:
            values = {**required(cls, name), name: wrong}
            for build in (lambda v: cls(**v), lambda v: cls.parse(v, origin="n.yaml")):
                try:
                    build(values)
                except ConfigError as error:
                    message = str(error)
                    refused += 1
                    assert name in message
                    for line in message.splitlines():
                        said = "expected" in line and "found" in line
                        assert said or "unknown key" in line or "is required" in line, message
                    assert not any(part in message for part in RAW), message
                    assert message.startswith(("n.yaml: ", f"{cls.__name__}: "))
        assert refused, f"{cls.__name__}.{name} takes anything"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_missing_and_unknown_keys_are_named(cls: type[UserSettings]) -> None:
    for name in required(cls):
        values = {key: value for key, value in required(cls).items() if key != name}
        expected = f"{cls.__name__}: key '{name}' is required"
        if cls is config.EmbedClassesJob and name == "names":
            expected = f"{cls.__name__}: .*names, synsets: expected one of them, found neither"
        if issubclass(cls, ImageSource) and name == "features":
            expected = f"{cls.__name__}: .*features: expected at least one path, or images"
        with pytest.raises(ConfigError, match=expected):
            cls(**values)
    verb = getattr(cls, "verb", "")
    key = f"unknown key 'no_such'{f' of {verb}' if verb else ''}"
    with pytest.raises(ConfigError, match=f"{cls.__name__}: {key}; allowed: "):
        cls(**required(cls), no_such=1)


class _Odd(os.PathLike[str]):
    def __fspath__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES if cls.__name__.endswith("Job")], ids=lambda cls: cls.__name__
)
def test_every_path_may_be_a_path(cls: type[UserSettings]) -> None:
    for name, field in cls.model_fields.items():
        for note in config.places.notes(field.annotation, field.metadata):
            if isinstance(note, config.places.NoPlace):
                continue
            for given in (Path("odd"), _Odd(), "odd"):
                found = getattr(cls(**{**required(cls, name), name: given}), name)
                assert found in ("odd", ["odd"])
            if found == ["odd"]:
                several = cls(**{**required(cls, name), name: (Path("a"), "b", _Odd())})
                assert getattr(several, name) == ["a", "b", "odd"]


def test_numbers_are_taken_as_they_read() -> None:
    assert Columns(width=np.int64(3)).width == 3
    assert ClusterSettings(workers=2.0).workers == 2
    assert ClusterSettings(workers="2").workers == 2
    assert ClusterSettings(gpus_per_worker=np.float32(0.5)).gpus_per_worker == 0.5
    assert config.RetrievalJob(codes="c", queries="q", at=10).at == (10,)
    assert config.InferSemanticsJob(
        model="m", codes="c", classes="k", output="o", labels="x"
    ).labels == ("x",)
    for wrong in (True, 2.5, "2.5", "two", "1_0"):
        with pytest.raises(ConfigError, match="'workers': expected a whole number"):
            ClusterSettings(workers=wrong)
    with pytest.raises(ConfigError, match=r"'labels\.1': expected text, found 3; put it in quotes"):
        config.InferSemanticsJob(model="m", codes="c", classes="k", output="o", labels=["x", 3])


@pytest.mark.parametrize(
    ("cls", "key", "largest"),
    [(config.ReindexJob, "lease_seconds", 604_800), (ClusterSettings, "start_timeout", 604_800),
     (ClusterSettings, "memory_per_worker", 1 << 20), (ClusterSettings, "gpus_per_worker", 1024),
     (ClusterSettings, "threads", 65_536), (ClusterSettings, "workers", 1_000_000),
     (config.BenchSettings, "threads", 65_536)],
)  # fmt: skip
def test_what_reaches_the_platform_has_an_upper_bound(
    cls: type[UserSettings], key: str, largest: int
) -> None:
    given = required(cls) | ({"name": "all"} if cls is config.BenchSettings else {})
    assert getattr(cls(**{**given, key: largest}), key) == largest
    whole = type(getattr(cls(**given), key)) is int
    for value in (largest + 1, 10**30, *([] if whole else [1e300])):
        with pytest.raises(ConfigError, match=rf"key '{key}': expected .* {largest}"):
            cls(**{**given, key: value})
