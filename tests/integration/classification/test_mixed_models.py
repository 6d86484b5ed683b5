"""Shards of several models in one code store: each is judged by its own."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import EvaluateJob
from raypq.data import classes
from raypq.data.store import snapshot
from raypq.errors import ConfigError, ModelError
from raypq.methods import registry
from raypq.stages.classification import scorers
from raypq.stages.classification.candidates import Candidates


def rows_of(store: str, version: snapshot.Snapshot) -> dict[str, pa.Table]:
    return {
        receipt.shard: pq.read_table(Path(store, receipt.path)).replace_schema_metadata()
        for receipt in version.shards
    }


def paths(version: snapshot.Snapshot) -> dict[str, str]:
    return {receipt.shard: receipt.path for receipt in version.shards}


def set_record(folder: str, **values: Any) -> None:
    """Writes into a model's record, which is no part of its fingerprint."""
    file = Path(folder, "model.json")
    document = json.loads(file.read_text())
    document["record"] |= values
    file.write_text(json.dumps(document))


def forget_calibration(folder: str) -> None:
    """As of a model of ``--no-calibrate``."""
    file = Path(folder, "model.json")
    document = json.loads(file.read_text())
    document["record"].pop("calibration", None)
    file.write_text(json.dumps(document))


def test_each_shard_is_judged_by_its_own_model(home: Any) -> None:
    """The predictions of a mixed version are those of the two pure ones, shard by shard."""
    home.mix([1, 4])
    mixed = home.classify()
    pure = {name: home.classify(f"pure-{name}", version=v) for name, v in (("old", 1), ("new", 2))}
    found = rows_of(home("predictions"), mixed)
    wanted = {name: rows_of(home(f"pure-{name}"), version) for name, version in pure.items()}
    for shard, rows in found.items():
        model = "new" if shard in (home.stem(1), home.stem(4)) else "old"
        assert rows.equals(wanted[model][shard]), shard
    assert not found[home.stem(1)].equals(wanted["old"][home.stem(1)]), "the models differ"


def test_the_summary_counts_the_models(home: Any) -> None:
    home.mix([1, 4])
    told = home.classify().summary
    fingerprints = {name: registry.load(home(name)).fingerprint for name in ("old", "new")}
    counts = {name: (told["models"][key]["shards"], told["models"][key]["rows"])
              for name, key in fingerprints.items()}  # fmt: skip
    assert counts == {"old": (4, 400), "new": (2, 200)}
    assert told["fingerprint"] is None
    assert told["result"]["rows"] == 600
    alone = home.classify("alone", version=1).summary
    assert alone["fingerprint"] == fingerprints["old"]
    assert set(alone["models"]) == {fingerprints["old"]}, "only models that occur are loaded"


def test_predictions_of_an_unchanged_model_are_kept(home: Any) -> None:
    home.encode("old")
    before = home.classify()
    home.mix([2])
    after = home.classify()
    moved = {shard for shard, path in paths(after).items() if paths(before)[shard] != path}
    assert moved == {home.stem(2)}
    assert after.summary["result"] == home.classify("fresh").summary["result"]


def test_a_named_model_is_a_check(home: Any) -> None:
    home.encode("old")
    assert home.classify(model=home("old")).rows == 600
    # The same work by either way: nothing to do.
    assert home.classify().version == 1
    home.mix([0])
    with pytest.raises(ModelError, match=r"1 of 6 shards are not this model's"):
        home.classify(model=home("old"))


def test_features_need_a_model(home: Any) -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        home.classify(codes=None, features=[home("features")])


def test_a_store_without_its_model_says_what_to_do(home: Any) -> None:
    home.encode("old")
    shutil.rmtree(home("codes/models"))
    with pytest.raises(ModelError, match=r"raypq classify --model.*found no model\.json"):
        home.classify()
    assert home.classify(model=home("old")).rows == 600


def test_tables_in_files_give_the_same_predictions(
    home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mix([1, 4])
    wanted = rows_of(home("predictions"), home.classify())
    monkeypatch.setattr(scorers, "WHOLE_BYTES", 0)
    monkeypatch.setattr(classes, "STREAMED_BYTES", 0)
    found = rows_of(home("in-files"), home.classify("in-files"))
    assert found.keys() == wanted.keys()
    assert all(rows.equals(wanted[shard]) for shard, rows in found.items())


def test_tables_are_built_once_for_each_model_that_occurs(
    home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: Counter[str] = Counter()
    tables = scorers.ClassScorer.groups

    def counted(judge: scorers.ClassScorer, candidates: Candidates, rows: int) -> Any:
        built[judge.model.fingerprint] += 1
        return tables(judge, candidates, rows)

    monkeypatch.setattr(scorers.ClassScorer, "groups", counted)
    home.mix([1, 4])
    home.classify(where=home.where.model_copy(update={"workers": 3}))
    assert sorted(built.values()) == [1, 1]
    home.rewrite(1)  # stays under the new model in no version: encoded under the old one alone
    home.encode("old")
    built.clear()
    home.classify()
    assert len(built) == 1, "no tables for a model whose predictions are all kept"


def test_each_model_brings_its_own_calibration(home: Any) -> None:
    gammas = {"old": 0.125, "new": 0.25}
    for name, gamma in gammas.items():
        set_record(home(name), calibration=gamma)
    home.mix([1, 4])
    plain = home.classify("plain", no_calibration=True)
    version = home.classify()
    noted = {item["calibration"] for item in version.summary["models"].values()}
    assert noted == set(gammas.values())
    before, after = rows_of(home("plain"), plain), rows_of(home("predictions"), version)
    for shard in before:
        gamma = gammas["new" if shard in (home.stem(1), home.stem(4)) else "old"]
        down = before[shard]["seen_score"].to_numpy() - after[shard]["seen_score"].to_numpy()
        np.testing.assert_allclose(down, gamma, atol=1e-6)
    # Judged afterwards or calibrated before: the same result.
    told = [
        api.evaluate(
            EvaluateJob(predictions=home(store), classes=home("classes.parquet"), where=home.where)
        )
        for store in ("plain", "predictions")
    ]
    assert told[0]["calibrated"]["H"] == pytest.approx(told[1]["H"])
    assert told[1]["calibrated"]["H"] == pytest.approx(told[1]["H"])
    assert told[0]["calibrated"]["ausuc"] == pytest.approx(told[1]["calibrated"]["ausuc"])
    assert len(told[0]["calibrated"]["gamma"]) == 2


def test_a_model_without_calibration_is_named(home: Any) -> None:
    set_record(home("old"), calibration=0.1)
    forget_calibration(home("new"))
    version = home.mix([3])
    with pytest.raises(ModelError, match=version.shards[3].model):
        home.classify(calibration="model")
