"""ClassCounts and evaluation against cases computed by hand and against all γ by brute force."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from raypq import kernels
from raypq.config import EvaluateJob
from raypq.data import predictions, unknown_classes
from raypq.data.classes import ClassTable
from raypq.data.predictions import Best, PredictionBatch
from raypq.data.storage import Shard
from raypq.data.store import shard_writer, snapshot
from raypq.errors import InputError
from raypq.execution.local import LocalExecutor
from raypq.kernels import merge_topk
from raypq.metrics.accuracy import ClassCounts, harmonic
from raypq.metrics.confusion import Confusions
from raypq.stages.classification.evaluate import evaluate, share_limbs, value_of_limbs


def make_table(write, T: int, seen: np.ndarray | None = None) -> ClassTable:
    columns = {"class_id": [f"c{t}" for t in range(T)]}
    if seen is not None:
        columns["seen"] = seen
    return ClassTable.open(write("classes.parquet", **columns))


def batch_of(S: np.ndarray, y: np.ndarray, k: int, seen: np.ndarray | None) -> PredictionBatch:
    """What classification gives for scores S [n, T]: the k best, and the best of each group."""
    order = np.argsort(-S, axis=1, kind="stable")[:, :k]
    best = {}
    if seen is not None:
        for name, group in (("seen", np.flatnonzero(seen)), ("unseen", np.flatnonzero(~seen))):
            at = group[np.argmax(S[:, group], axis=1)]
            best[name] = Best(score=S[np.arange(len(S)), at].astype(np.float32), classes=at)
    return PredictionBatch(
        score=np.take_along_axis(S, order, 1).astype(np.float32),
        classes=order,
        y=y.astype(np.int32),
        best=best,
    )


class Store:
    """Writes a prediction store from scores."""

    def __init__(self, root: str, table: ClassTable, *, k: int, groups: bool, **summary) -> None:
        self.root, self.table, self.k, self.groups = root, table, k, groups
        self.summary = {"candidates": "all", "calibration": 0.0} | summary

    def write(self, shards: list[tuple[np.ndarray, np.ndarray]], *, labels: bool = True) -> None:
        schema = predictions.schema(
            id_type=pa.int64(), label=labels, groups=self.groups, metadata={}
        )
        receipts = []
        for index, (S, y) in enumerate(shards):
            batch = batch_of(S, y, self.k, self.table.seen if self.groups else None)
            names = pa.array([f"c{t}" if t >= 0 else None for t in y], pa.string())
            record = predictions.record_batch(
                schema,
                self.table,
                batch,
                ids=pa.array(range(len(y)), pa.int64()),
                labels=names if labels else None,
            )
            shard = Shard(index=index, uri=f"/{index}", stem=f"s{index}", size=1, modified="")
            receipts.append(
                shard_writer.write_shard(
                    self.root,
                    shard,
                    model="f",
                    work="w",
                    schema=schema,
                    batches=[record] if len(y) else [],
                    options=predictions.WRITE_OPTIONS,
                )
            )
        snapshot.commit(
            self.root, kind="predictions", run_id="r", expected=[r.shard for r in receipts],
            receipts=receipts, summary=self.summary,
        )  # fmt: skip

    def evaluate(self, **settings) -> dict:
        job = EvaluateJob(predictions=self.root, classes=self.table.uri, **settings)
        return evaluate(job, LocalExecutor(1))


# Four classes, 0 and 1 seen; rows are images with their label, best class first.
SEEN = np.array([True, True, False, False])
LABELS = np.array([0, 0, 0, 1, 2, 2, 3, -1])
RANKS = [
    [0, 1, 2, 3],  # right
    [1, 0, 2, 3],  # second
    [2, 3, 1, 0],  # last, and wrong within the seen
    [1, 2, 3, 0],  # right
    [2, 0, 1, 3],  # right
    [0, 2, 1, 3],  # second, but right within the unseen
    [1, 2, 0, 3],  # last, and wrong within the unseen
    [3, 2, 1, 0],  # no label
]


def scores(ranks: list[list[int]]) -> np.ndarray:
    S = np.empty((len(ranks), len(ranks[0])))
    for row, order in enumerate(ranks):
        S[row, order] = -np.arange(len(order))
    return S


def test_tally_by_hand():
    tally = ClassCounts.empty(4)
    tally.add(batch_of(scores(RANKS), LABELS, 4, SEEN))
    assert tally.rows[0] == 8
    assert tally.images.tolist() == [3, 1, 2, 1]
    assert tally.hits[0].tolist() == [1, 1, 1, 0]
    assert tally.group_hits.tolist() == [1, 1, 2, 0]
    assert tally.predicted.tolist() == [2, 3, 2, 1]
    accuracy = tally.accuracy()
    assert accuracy["classes"] == 4
    assert accuracy["images"] == 7
    assert accuracy["hit@1"] == pytest.approx((1 / 3 + 1 + 1 / 2 + 0) / 4), "mean over classes"
    assert accuracy["hit@1_image_mean"] == pytest.approx(3 / 7), "mean over images"
    assert "hit@5" not in accuracy, "four predictions cannot tell"


def test_tally_of_chosen_classes():
    tally = ClassCounts.empty(4)
    tally.add(batch_of(scores(RANKS), LABELS, 4, SEEN))
    assert tally.accuracy(~SEEN)["hit@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert tally.accuracy(np.zeros(4, bool)) == {"classes": 0, "images": 0}


def test_hit_at_k():
    rng = np.random.default_rng(0)
    S, y = rng.standard_normal((400, 15)), rng.integers(0, 15, 400)
    tally = ClassCounts.empty(15)
    tally.add(batch_of(S, y, 12, None))
    right = S[np.arange(400), y][:, None]
    rank = np.greater(S, right).sum(axis=1)
    for k in (1, 5, 10):
        by_class = [np.mean(rank[y == t] < k) for t in range(15)]
        assert tally.accuracy()[f"hit@{k}"] == pytest.approx(np.mean(by_class))
        assert tally.accuracy()[f"hit@{k}_image_mean"] == pytest.approx(np.mean(rank < k))


def test_tallies_add_up_in_any_order():
    rng = np.random.default_rng(1)
    S, y = rng.standard_normal((60, 6)), rng.integers(-1, 6, 60)
    whole = ClassCounts.empty(6)
    whole.add(batch_of(S, y, 5, None))
    parts = []
    for rows in np.split(np.arange(60), [0, 7, 30, 31]):
        part = ClassCounts.empty(6)
        part.add(batch_of(S[rows], y[rows], 5, None))
        parts.append(part)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        total = ClassCounts.empty(6)
        for index in order:
            total.merge(parts[index])
        for name in ("rows", "k", "predicted", "images", "hits", "group_hits"):
            np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))


def random_tally(rng: np.random.Generator, T: int = 6) -> ClassCounts:
    """Counts of a few batches, with labels and answers that the table lacks."""
    tally = ClassCounts.empty(T)
    for _ in range(rng.integers(4)):
        n, k = rng.integers(5), rng.integers(1, T)
        batch = batch_of(rng.standard_normal((n, T)), rng.integers(-1, T, n), k, None)
        names = [f"x{i}" for i in rng.integers(0, 30, rng.integers(20))]
        tally.add(replace(batch, unknown_labels=pa.array(names, pa.string())))
    return tally


@pytest.mark.parametrize("kept", [1000, 7])
def test_what_was_added_can_be_subtracted(write, monkeypatch, kept):
    """Any sequence of shards that come and go: as long as it says that it is exact, the summary is
    that of a recount; and it is exact unless many more names went than are kept."""
    monkeypatch.setattr(unknown_classes, "KEPT", kept)
    table, exact = make_table(write, 6), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        total, held = ClassCounts.empty(6), []
        for _ in range(30):
            if held and rng.random() < 0.45:
                total.subtract(held.pop(rng.integers(len(held))))
            else:
                held.append(random_tally(rng))
                total.merge(held[-1])
            again = ClassCounts.empty(6)
            for part in held:
                again.merge(part)
            assert total.valid
            if not total.exact:
                break
            exact += 1
            assert total.summary(table) == again.summary(table)
            assert total.k == again.k
            total = ClassCounts.of_plain(json.loads(json.dumps(total.plain())), 6)
    assert exact == 1800 if kept == 1000 else exact > 600


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("hits"),
        lambda plain: plain["predicted"].append(0),
        lambda plain: plain["images"].__setitem__(0, -1),
        lambda plain: plain["images"].__setitem__(0, 1 << 80),
        lambda plain: plain["rows"].__setitem__(0, 99),
        lambda plain: plain.__setitem__("widths", {"4": 8}),
        lambda plain: plain.__setitem__("widths", []),
        lambda plain: plain.__setitem__("unknown_labels", {"rows": 1, "counts": {"a": 2}}),
        lambda plain: plain.__setitem__("unknown_labels", 7),
    ],
)
def test_counts_that_contradict_each_other_are_refused(damage):
    tally = ClassCounts.empty(4)
    tally.add(batch_of(scores(RANKS), LABELS, 4, SEEN))
    plain = json.loads(json.dumps(tally.plain()))
    ClassCounts.of_plain(plain, 4)
    damage(plain)
    with pytest.raises(ValueError, match=r"."):
        ClassCounts.of_plain(plain, 4)


def test_the_summary_lists_predicted_classes_by_how_often(write):
    tally = ClassCounts.empty(4)
    tally.add(batch_of(scores(RANKS), LABELS, 4, SEEN))
    found = tally.summary(make_table(write, 4))
    assert list(found["predicted"].items()) == [("c1", 3), ("c0", 2), ("c2", 2), ("c3", 1)]


def test_merging_the_best_of_two_groups():
    a = np.array([[3.0, 1.0]], np.float32), np.array([[5, 2]])
    b = np.array([[3.0, 2.0]], np.float32), np.array([[1, 9]])
    score, index = merge_topk([a, b], 3)
    assert score.tolist() == [[3.0, 3.0, 2.0]]
    assert index.tolist() == [[1, 5, 9]], "ties to the lower index"


@pytest.mark.parametrize(("ts", "tr", "H"), [(0, 0, 0), (1, 1, 1), (0.5, 1, 2 / 3), (0, 1, 0)])
def test_harmonic_mean(ts, tr, H):
    assert harmonic(ts, tr) == pytest.approx(H)


def test_gzsl_by_hand(write, tmp_path):
    store = Store(str(tmp_path / "p"), make_table(write, 4, SEEN), k=4, groups=True)
    S = scores(RANKS)
    store.write([(S[:3], LABELS[:3]), (S[3:3], LABELS[3:3]), (S[3:], LABELS[3:])])
    found = store.evaluate()
    assert found["images"] == 8
    tr, ts = (1 / 3 + 1) / 2, (1 / 2 + 0) / 2
    assert found["tr"] == pytest.approx(tr)
    assert found["ts"] == pytest.approx(ts)
    assert found["H"] == pytest.approx(2 * ts * tr / (ts + tr))
    assert found["zsl"] == pytest.approx((1 + 0) / 2), "among the unseen classes alone"
    assert found["seen_only"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["unseen"]["hit@1_image_mean"] == pytest.approx(1 / 3)
    assert found["top1"]["hit@1"] == pytest.approx((1 / 3 + 1 + 1 / 2 + 0) / 4)


def test_zsl_when_only_unseen_classes_are_candidates(write, tmp_path):
    table = make_table(write, 4, SEEN)
    S = scores(RANKS)[4:7]
    S[:, :2] = -99
    store = Store(str(tmp_path / "p"), table, k=2, groups=False, candidates="unseen")
    store.write([(S, LABELS[4:7])])
    found = store.evaluate(split="unseen")
    assert found["zsl"] == pytest.approx(0.5)
    assert "H" not in found
    assert "calibrated" not in found


def test_a_split_judges_its_images_only(write, tmp_path):
    store = Store(str(tmp_path / "p"), make_table(write, 4, SEEN), k=4, groups=True)
    store.write([(scores(RANKS), LABELS)])
    found = store.evaluate(split="seen")
    assert found["top1"]["images"] == 4
    assert found["tr"] == pytest.approx((1 / 3 + 1) / 2)
    assert "ts" not in found


def test_without_a_seen_column(write, tmp_path):
    store = Store(str(tmp_path / "p"), make_table(write, 4), k=4, groups=False)
    store.write([(scores(RANKS), LABELS)])
    found = store.evaluate()
    assert "ts" not in found
    assert found["top1"]["hit@1_image_mean"] == pytest.approx(3 / 7)


def brute_force(S: np.ndarray, y: np.ndarray, seen: np.ndarray, gamma: float) -> tuple:
    """ts, tr and H when γ is taken off every seen class's score, by class and by argmax."""
    # At equal scores a seen class loses, as the margin rule has it: order unseen first.
    order = np.concatenate([np.flatnonzero(~seen), np.flatnonzero(seen)])
    shifted = (S - gamma * seen)[:, order]
    predicted = order[np.argmax(shifted, axis=1)]
    by_class = np.array([np.mean(predicted[y == t] == t) for t in range(len(seen))])
    ts, tr = by_class[~seen].mean(), by_class[seen].mean()
    return ts, tr, harmonic(ts, tr)


def generated(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that are multiples of 1/8, labels, and who is seen; unseen classes score lower."""
    rng = np.random.default_rng(seed)
    seen = np.arange(8) < 5
    y = np.concatenate([np.arange(8), rng.integers(0, 8, 300)])
    S = rng.integers(-16, 16, (len(y), 8)) / 8 + 1.5 * seen
    S[np.arange(len(y)), y] += rng.integers(0, 16, len(y)) / 8
    return S, y, seen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.25, -1.0, 3.0])
def test_figures_at_gamma_against_brute_force(write, tmp_path, seed, gamma):
    S, y, seen = generated(seed)
    store = Store(str(tmp_path / "p"), make_table(write, 8, seen), k=8, groups=True)
    store.write([(S[:100], y[:100]), (S[100:], y[100:])])
    found = store.evaluate(calibration=gamma)["calibrated"]
    ts, tr, H = brute_force(S, y, seen, gamma)
    assert found["gamma"] == gamma
    assert (found["ts"], found["tr"], found["H"]) == pytest.approx((ts, tr, H))


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_against_brute_force(write, tmp_path, seed):
    S, y, seen = generated(seed)
    store = Store(str(tmp_path / "p"), make_table(write, 8, seen), k=8, groups=True)
    store.write([(S[:100], y[:100]), (S[100:], y[100:])])
    found = store.evaluate()["calibrated"]
    margins = S[:, seen].max(axis=1) - S[:, ~seen].max(axis=1)
    # Every value that changes anything, and one below them all.
    curve = np.array([brute_force(S, y, seen, g) for g in [margins.min() - 1, *np.unique(margins)]])
    ts, tr, H = curve.T
    area = float(np.sum(0.5 * (tr[1:] + tr[:-1]) * np.diff(ts)))
    assert found["ausuc"] == pytest.approx(area, abs=1e-9)
    assert found["best_H"] == pytest.approx(H.max(), abs=1e-9)
    assert brute_force(S, y, seen, found["best_gamma"])[2] == pytest.approx(H.max(), abs=1e-9)
    assert "gamma" not in found, "no γ was given"


def test_margins_on_the_edge_of_the_curve(write, tmp_path):
    """γ equal to an unseen image's margin already lets the unseen class win."""
    S = np.array([[2.0, 0, 1, 0], [1.0, 0, 2, 0]])  # margins 1 (seen label) and −1 (unseen)
    store = Store(str(tmp_path / "p"), make_table(write, 4, SEEN), k=4, groups=True)
    store.write([(S, np.array([0, 2]))])
    found = store.evaluate(calibration=-1.0)["calibrated"]
    assert (found["best_H"], found["best_gamma"]) == (1.0, -1.0)
    assert (found["ts"], found["tr"]) == (1.0, 1.0)
    found = store.evaluate(calibration=1.0)["calibrated"]
    assert (found["ts"], found["tr"]) == (1.0, 0.0)


def test_scores_that_are_calibrated_already(write, tmp_path):
    """The store says which γ is in its scores; the figures are those of the plain scores."""
    S, y, seen = generated(9)
    table = make_table(write, 8, seen)
    plain = Store(str(tmp_path / "plain"), table, k=8, groups=True)
    moved = Store(str(tmp_path / "moved"), table, k=8, groups=True, calibration=0.8125)
    plain.write([(S, y)])
    moved.write([(S - 0.8125 * seen, y)])
    a, b = (store.evaluate(calibration=1.0)["calibrated"] for store in (plain, moved))
    assert a == pytest.approx(b)
    assert moved.evaluate()["H"] == pytest.approx(brute_force(S, y, seen, 0.8125)[2])


def test_the_models_calibration_is_the_default(write, tmp_path):
    S, y, seen = generated(3)
    store = Store(
        str(tmp_path / "p"), make_table(write, 8, seen), k=8, groups=True, model_calibration=0.5
    )
    store.write([(S, y)])
    assert store.evaluate()["calibrated"]["gamma"] == 0.5
    assert store.evaluate(calibration=0.25)["calibrated"]["gamma"] == 0.25


def test_no_labels(write, tmp_path):
    store = Store(str(tmp_path / "p"), make_table(write, 4, SEEN), k=4, groups=True)
    store.write([(scores(RANKS), LABELS)], labels=False)
    with pytest.raises(InputError, match="predictions with labels, found no labelled image"):
        store.evaluate()


def test_a_store_of_codes_is_refused(write, tmp_path):
    table = make_table(write, 4)
    snapshot.commit(str(tmp_path / "c"), kind="codes", run_id="r", expected=[], receipts=[])
    with pytest.raises(InputError, match="expected a prediction store, found codes"):
        Store(str(tmp_path / "c"), table, k=1, groups=False).evaluate()


@pytest.mark.parametrize("groups", [False, True])
def test_a_class_table_that_lacks_a_class(write, tmp_path, caplog, groups):
    """A newer table without class 3: its label counts nowhere, and as an answer it is wrong."""
    seen = SEEN if groups else None
    store = Store(str(tmp_path / "p"), make_table(write, 4, seen), k=4, groups=groups)
    store.write([(scores(RANKS), LABELS)])
    newer = {"class_id": ["c0", "c1", "c2"], **({"seen": SEEN[:3]} if groups else {})}
    store.table = ClassTable.open(write("other.parquet", **newer))
    with caplog.at_level("WARNING", "raypq"):
        found = store.evaluate()
    assert found["unknown_labels"] == {"rows": 1, "names": {"c3": 1}}
    assert found["unknown_classes"] == {"rows": 8, "names": {"c3": 8}}
    assert "1 row(s) with a label that is none of its class_ids, such as 'c3' (1)" in caplog.text
    assert "8 prediction(s) of a class that is none of" in caplog.text
    assert [(one["class_id"], one["images"]) for one in found["per_class"]] == [
        ("c0", 3), ("c1", 1), ("c2", 2),
    ]  # fmt: skip
    assert found["top1"]["hit@1"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert {one["answer_id"] for one in found["confusions"]} <= {"c0", "c1", "c2"}
    with pytest.raises(InputError, match=r"unknown_labels: refuse.*such as 'c3' \(1\)"):
        store.evaluate(unknown_labels="refuse")


def test_an_answer_whose_class_has_no_embedding_any_more_is_wrong(write, tmp_path):
    store = Store(str(tmp_path / "p"), make_table(write, 4), k=4, groups=False)
    store.write([(scores(RANKS), LABELS)])
    vectors = pa.array([None, [1.0], [2.0], [3.0]], pa.list_(pa.float32()))
    names = ["c0", "c1", "c2", "c3"]
    store.table = ClassTable.open(write("other.parquet", class_id=names, embedding=vectors))
    found = store.evaluate()
    assert found["unknown_classes"] == {"rows": 8, "names": {"c0": 8}}
    assert [one["class_id"] for one in found["per_class"]] == ["c1", "c2", "c3"]


def test_predictions_read_back(write, tmp_path):
    """What classification wrote is what evaluation reads, over many batches."""
    rng = np.random.default_rng(5)
    S, y = rng.standard_normal((500, 4)), rng.integers(0, 4, 500)
    table = make_table(write, 4, SEEN)
    store = Store(str(tmp_path / "p"), table, k=3, groups=True)
    store.write([(S, y)])
    (receipt,) = snapshot.read(store.root).shards
    wanted = batch_of(S, y, 3, SEEN)
    found = list(predictions.read(f"{store.root}/{receipt.path}", table, rows=64))
    assert len(found) > 1
    for name in ("score", "classes", "y"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in found]), getattr(wanted, name)
        )
    for group in ("seen", "unseen"):
        np.testing.assert_array_equal(
            np.concatenate([part.best[group].classes for part in found]),
            wanted.best[group].classes,
        )


def test_scores_of_tables_against_their_definition():
    """eq. 23 and 24: −‖q − v‖², cosine and dot product of decoded codes and prototypes."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((3, 8, 2)).astype(np.float32)
    V = rng.standard_normal((5, 6)).astype(np.float32)
    bias = rng.standard_normal(5)
    B = rng.integers(0, 8, (20, 3)).astype(np.uint8)
    q = kernels.decode(B, C).astype(np.float64)
    inner = q @ V.T.astype(np.float64)
    lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(V, axis=1)
    wanted = {
        "dot": inner,
        "cosine": inner / lengths,
        "l2": -((q[:, None, :] - V) ** 2).sum(axis=2),
    }
    for metric, S in wanted.items():
        score, index = kernels.topk_per_code(B, kernels.build_tables(C, V, bias, metric), 5)
        order = np.argsort(-(S + bias), axis=1)
        np.testing.assert_array_equal(index, order)
        np.testing.assert_allclose(score, np.take_along_axis(S + bias, order, 1), atol=1e-5)


def counted(rng: np.random.Generator, T: int, n: int) -> tuple[PredictionBatch, Counter]:
    """Predictions with a few of them wrong, and their confusions."""
    y = rng.integers(-1, T, n).astype(np.int32)
    first = np.where(rng.random(n) < 0.5, y, rng.integers(0, T, n))
    first = np.where(first < 0, 0, first)
    batch = PredictionBatch(score=np.zeros((n, 1)), classes=first[:, None], y=y, best={})
    wrong = Counter((int(a), int(b)) for a, b in zip(y, first, strict=True) if a >= 0 and a != b)
    return batch, wrong


@pytest.mark.parametrize("seed", range(4))
def test_confusions_are_the_same_in_any_order(write, seed):
    T = 30
    table, rng = make_table(write, T), np.random.default_rng(seed)
    parts, wanted = [], Counter()
    for _ in range(40):
        batch, wrong = counted(rng, T, int(rng.choice([0, 1, 5, 200])))
        part = Confusions()
        part.add(batch, T)
        parts.append(part)
        wanted += wrong
    found = []
    for order in (np.arange(40), rng.permutation(40)):
        total = Confusions()
        for index in order:
            total.merge(parts[index])
        pairs, counts = total.counts()
        assert dict(zip(zip(*divmod(pairs, T), strict=True), counts, strict=True)) == wanted
        assert (np.diff(pairs) > 0).all()
        found.append(total.worst(table, np.ones(T, bool)))
    assert found[0] == found[1]
    assert [one["images"] for one in found[0]] == [n for _, n in wanted.most_common(50)]


def test_a_small_shard_does_not_sort_all_confusions_again():
    """Many runs at most stay apart, and a long one is left as it is by a short one."""
    T, total, rng = 21_841, Confusions(), np.random.default_rng(0)
    many = np.unique(rng.integers(0, T * T, 200_000))
    total.runs = [(many, np.ones(len(many), np.int64))]
    for _ in range(100):
        part = Confusions()
        part.runs = [(np.unique(rng.integers(0, T * T, 50)), np.ones(50, np.int64))]
        total.merge(part)
        assert any(run[0] is many for run in total.runs)
        assert len(total.runs) < 20
    lengths = [len(run[0]) for run in total.runs]
    assert all(a > 2 * b for a, b in pairwise(lengths))
    assert sum(total.counts()[1]) == len(many) + 5000


class Shuffled(LocalExecutor):
    """Results arrive in any order; notes how many of them are alive at once."""

    def __init__(self, seed: int) -> None:
        super().__init__(2)
        self._rng = np.random.default_rng(seed)
        self.most = 0

    @contextmanager
    def start_workers(self, make, *args, stage, cache=0):
        with super().start_workers(make, *args, stage=stage, cache=cache) as pool:
            yield _ShuffledPool(pool, self)


class _ShuffledPool:
    def __init__(self, pool, executor: Shuffled) -> None:
        self._pool, self._executor, self.stats = pool, executor, pool.stats

    def map(self, call, tasks, *shared, ordered=False):
        assert not ordered
        order = self._executor._rng.permutation(len(tasks))
        alive = weakref.WeakSet()
        for result in self._pool.map(call, [tasks[index] for index in order], *shared):
            result = replace(result, index=int(order[result.index]))
            alive.add(result.value)
            self._executor.most = max(self._executor.most, len(alive))
            yield result
            del result


def test_figures_do_not_depend_on_the_order_and_nothing_is_kept(write, tmp_path):
    """Shares of a third and a seventh cannot be added as floats in any order."""
    rng = np.random.default_rng(0)
    seen = np.arange(8) < 5
    store = Store(str(tmp_path / "p"), make_table(write, 8, seen), k=8, groups=True)
    shards = []
    for _ in range(40):
        y = rng.integers(0, 8, int(rng.integers(1, 12)))
        S = rng.standard_normal((len(y), 8)) + 1.5 * seen
        S[np.arange(len(y)), y] += rng.random(len(y))
        shards.append((S, y))
    store.write(shards)
    found = []
    for seed in range(4):
        executor = Shuffled(seed)
        job = EvaluateJob(
            predictions=store.root, classes=str(tmp_path / "classes.parquet"), calibration=0.7
        )
        figures = evaluate(job, executor)
        del figures["run"]
        found.append(figures)
        assert executor.most <= 6, "results of shards are kept"
    assert all(one == found[0] for one in found[1:])
    assert 0 < found[0]["calibrated"]["ausuc"] < 1


@pytest.mark.parametrize("images", [1, 2, 3, 7, 1000, 10**9 + 7, 10**11])
def test_shares_of_a_class_add_up_to_one(images):
    """As whole numbers, so also for a class of a hundred thousand million images."""
    limbs = np.array(share_limbs(images))[:, None]
    assert (limbs[1:] < 1 << 26).all()
    assert limbs.min() >= 0
    assert value_of_limbs(limbs * images)[0] == pytest.approx(1.0, abs=1e-12)
