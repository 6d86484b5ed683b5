"""What the evaluations print: a short table, whose numbers are those of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, TrainJob

ALONE = ("--cluster", "none", "--workers", "1")


@pytest.fixture(scope="module")
def stores(
    world: Any, alone: ClusterSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    root = tmp_path_factory.mktemp("figures")
    model, codes, answers = (str(root / name) for name in ("model", "codes", "predictions"))
    api.train(
        TrainJob(method="pqzsl", features=[world.train], classes=world.classes, output=model,
                 settings={"M": 4, "K": 16, "iterations": 2}, where=alone)
    )  # fmt: skip
    api.encode(EncodeJob(model=model, features=[world.test], output=codes, where=alone))
    api.classify(ClassifyJob(codes=codes, classes=world.classes, output=answers, where=alone))
    return {"classes": world.classes, "test": world.test, "model": model, "codes": codes,
            "predictions": answers}  # fmt: skip


def evaluated(path: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """What an evaluation prints, and what it writes to its file."""
    done = CliRunner().invoke(main, ["evaluate", *words, "--json", str(path), "--quiet"])
    assert done.exit_code == 0, done.output
    printed = CliRunner().invoke(main, ["evaluate", *words, "--json", "-", "--quiet"])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert json.loads(printed.stdout).keys() == result.keys()
    assert len(done.stdout.splitlines()) < 25
    assert max(map(len, done.stdout.splitlines())) <= 110
    for word in ("versions", "settings", "{", "pyarrow"):
        assert word not in done.stdout
    return done.stdout, result


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).split()


def test_classification(stores: dict[str, str], tmp_path: Path) -> None:
    text, result = evaluated(
        tmp_path / "file.json",
        *("classification", "--predictions", stores["predictions"]),
        *("--classes", stores["classes"], "--calibration", "0.25", *ALONE),
    )
    for name, key in (("all", "top1"), ("seen", "seen"), ("unseen", "unseen")):
        group = result[key]
        hits = [f"{group[f'hit@{k}']:.3f}" for k in (1, 5, 10)]
        assert row(text, name) == [str(group["classes"]), str(group["images"]), *hits]
    figures = [f"{result[key]:.3f}" for key in ("zsl", "ts", "tr", "H")]
    gamma = result["applied_gamma"]
    assert row(text, f"as predicted, γ = {gamma:.4g}") == figures
    plain = result["uncalibrated"]
    assert row(text, "without calibration") == [f"{plain[key]:.3f}" for key in ("ts", "tr", "H")]
    fit = result["calibrated"]
    assert row(text, "γ = 0.25") == [f"{fit[key]:.3f}" for key in ("ts", "tr", "H")]
    assert f"{fit['best_H']:.3f}" in text
    assert f"seen-unseen curve: {fit['ausuc']:.3f}" in text
    assert result["run"]["versions"]["raypq"]


def test_retrieval(stores: dict[str, str], tmp_path: Path) -> None:
    text, result = evaluated(
        tmp_path / "file.json",
        *("retrieval", "--codes", stores["codes"], "--queries", stores["test"]),
        *("--features", stores["test"], "--at", "1", "--at", "10", *ALONE),
    )
    kinds = ("map", "precision", "recall", "1-recall")
    for R in (1, 10):
        assert row(text, str(R)) == [f"{result[f'{kind}@{R}']:.3f}" for kind in kinds]
    assert f"full ranking: {result['map']:.3f}" in text
    assert result["run"]["settings"]["codes"] == stores["codes"]


def test_without_codes(stores: dict[str, str], tmp_path: Path) -> None:
    features = ("--features", stores["test"])
    text, result = evaluated(
        tmp_path / "few.json",
        *("fewshot", *features, "--classes", stores["classes"], "--split", "all", "--ways", "3"),
        *("--episodes", "5", "--queries", "2"),
    )
    for shots in ("1-shot", "5-shot"):
        assert row(text, shots)[0] == f"{result[shots]['accuracy']:.3f}"
    text, result = evaluated(tmp_path / "mi.json", "clusterability", *features, "--restarts", "2")
    assert row(text, "raw")[2:4] == [f"{result['mi']:.3f}", f"{result['nmi']:.3f}"]
