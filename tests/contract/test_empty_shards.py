"""The contract of shards without rows: wherever such a shard stands, every verb gives what it gives
without it. Of a store that has no row at all a verb gives an empty result or a clear error."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tinystore import ALONE, DX, encode, model_at, rows_of, search, shard, vectors

import raypq
from raypq import api
from raypq.config import (
    AddClassesJob,
    ClassifyJob,
    ClusterabilityJob,
    Columns,
    DuplicatesJob,
    EvaluateJob,
    ExportFaissJob,
    ExtractJob,
    FewShotJob,
    InferSemanticsJob,
    ReindexJob,
    RepackJob,
    RetrievalJob,
    SplitJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.errors import RaypqError
from raypq.stages.stores import versions

CLASSES, SEEN, N = 12, 9, 96  # N rows in each of the two shards that have any
POSITIONS = {"first": 0, "middle": 1, "last": 2}
SMALL = {"M": 2, "K": 16}


class World:
    """A folder with features (and images) of two shards, and one without rows at some place."""

    def __init__(self, root: Path, position: int | None, *, full: bool, typed: bool) -> None:
        self.root = root
        self.empty = not full
        rng = np.random.default_rng(1)
        E = rng.standard_normal((CLASSES, 6)).astype("f4")
        y = rng.permutation(np.arange(2 * N) % SEEN)
        X = (E[y] @ rng.standard_normal((6, DX)) + vectors(2 * N, 2) / 4).astype("f4")
        pictures = [self._picture(rng) for _ in range(2 * N)]
        self.write("classes.parquet", {
            "class_id": [f"c{t}" for t in range(CLASSES)],
            "embedding": arrays.fixed_list(E), "seen": np.arange(CLASSES) < SEEN,
        })  # fmt: skip
        places = [0, 1, 2] if position is None else [p for p in range(3) if p != position]
        for part in range(3):
            if part in places[:2] and full:
                at = slice(places.index(part) * N, (places.index(part) + 1) * N)
                self._shard(part, range(at.start, at.stop), X[at], y[at], pictures[at])
            elif part == position or not full:
                self._without_rows(part, typed)
        queries = {
            "id": [f"q{row}" for row in range(7)], "feature": arrays.fixed_list(X[:7]),
            "label": [f"c{label}" for label in y[:7]],
        }  # fmt: skip
        self.write("queries.parquet", queries)
        (root / "ids.txt").write_text("3\n77\n150\n")

    @staticmethod
    def _picture(rng: np.random.Generator) -> bytes:
        content = io.BytesIO()
        pixels = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)  # 2 × 2 × 3 = DX values
        Image.fromarray(pixels).save(content, "png")
        return content.getvalue()

    def write(self, name: str, columns: dict[str, Any]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)

    def _shard(self, part: int, ids: range, X: Any, y: Any, pictures: list[bytes]) -> None:
        ids, labels = pa.array(ids, pa.int32()), [f"c{label}" for label in y]
        feature = arrays.fixed_list(X)
        self.write(f"features/p{part}.parquet", {"id": ids, "feature": feature, "label": labels})
        self.write(f"images/p{part}.parquet", {"id": ids, "image": pictures, "label": labels})

    def _without_rows(self, part: int, typed: bool) -> None:
        nothing = pa.nulls(0)
        feature = arrays.fixed_list(np.empty((0, DX), "f4")) if typed else nothing
        ids = nothing.cast(pa.int32()) if typed else nothing
        labels = nothing.cast(pa.string()) if typed else nothing
        image = nothing.cast(pa.binary())
        self.write(f"features/p{part}.parquet", {"id": ids, "feature": feature, "label": labels})
        self.write(f"images/p{part}.parquet", {"id": ids, "image": image, "label": labels})

    def __call__(self, name: str) -> str:
        return str(self.root / name)

    def train(self, method: str, settings: dict[str, Any], **more: Any) -> Any:
        job = TrainJob(
            method=method, features=[self("features")], output=self(f"model-{method}"),
            classes=self("classes.parquet"), settings=settings, where=ALONE, **more,
        )  # fmt: skip
        return api.train(job).model

    def codes(self, **changes: Any) -> str:
        encode(self.root, self("features"), **changes)
        return self("codes")

    def zeroshot(self) -> tuple[str, str]:
        """A model that classifies, trained elsewhere, and the codes of it."""
        shutil.copytree(self.root.parent / "zeroshot", self.root / "zeroshot")
        job = raypq.EncodeJob(
            model=self("zeroshot"), features=[self("features")], output=self("zcodes"), where=ALONE
        )
        api.encode(job)
        return self("zeroshot"), self("zcodes")


def files(folder: str) -> list[dict[str, Any]]:
    """All rows of a folder of Parquet files, in the order of their names."""
    places = sorted(Path(folder).rglob("*.parquet"))
    return [row for place in places for row in pq.read_table(place).to_pylist()]


def id_types(folder: str, version: Any) -> set[str]:
    """The types of ids that a version's files have."""
    places = [Path(folder, one.path) for one in version.shards]
    return {str(pq.read_schema(place).field("id").type) for place in places}


VERBS: dict[str, Callable[[World], Any]] = {}
WORDS = (
    "empty shards only",
    "an empty store",
    "found none",
    "found 0",
    "of 0 classes",
    "no labelled image",
)
ANSWERS_NOTHING = {
    "encode", "classify codes", "classify features", "add classes", "repack", "extract", "reindex",
    "snapshots",
}  # fmt: skip


def verb(function: Callable[[World], Any]) -> Callable[[World], Any]:
    VERBS[function.__name__.replace("_", " ")] = function
    return function


@verb
def encode_(world: World) -> Any:
    store = world.codes()
    (kind,) = id_types(store, snapshot.read(store))
    return rows_of(store).to_pylist(), None if world.empty else kind


def of_model(model: Any) -> Any:
    tensors = {name: np.asarray(value).tolist() for name, value in model.tensors.items()}
    return model.method, tensors


for _method, _settings in {
    "pq": SMALL | {"iterations": 2},
    "opq": SMALL | {"iterations": 2},
    "vq": {"K": 16, "iterations": 2},
    "pqzsl": SMALL | {"iterations": 2, "polish": 1},
    "eszsl": {"M": 2, "K": 16},
    "sae": {"M": 2, "K": 16},
    "dpq": SMALL | {"epochs": 1, "hidden": 8, "width": 8, "batch": 16},
    "psr": SMALL | {"D": 4, "epochs": 1},
}.items():

    def _train(world: World, method: str = _method, settings: Any = _settings) -> Any:
        return of_model(world.train(method, settings))

    VERBS[f"train {_method}"] = _train


@verb
def tune(world: World) -> Any:
    return of_model(world.train("pqzsl", SMALL | {"iterations": 1, "polish": 0}, tune=True))


@verb
def classify_codes(world: World) -> Any:
    _, codes = world.zeroshot()
    return classified(world, codes=codes)


@verb
def classify_features(world: World) -> Any:
    model, _ = world.zeroshot()
    return classified(world, features=[world("features")], model=model)


def classified(world: World, **changes: Any) -> Any:
    job = ClassifyJob(
        classes=world("classes.parquet"), output=world("predictions"), where=ALONE, **changes
    )
    version = api.classify(job)
    assert len(id_types(world("predictions"), version)) == 1
    rows = rows_of(world("predictions"), version).to_pylist()
    if rows:
        again = EvaluateJob(
            predictions=world("predictions"), classes=world("classes.parquet"), where=ALONE
        )
        figures = api.evaluate(again)
        for name in ("predictions", "models", "run"):
            figures.pop(name)
        return rows, figures
    return rows


@verb
def evaluate_classification(world: World) -> Any:
    _, codes = world.zeroshot()
    classified(world, codes=codes)
    job = EvaluateJob(
        predictions=world("predictions"), classes=world("classes.parquet"), where=ALONE
    )
    return api.evaluate(job)["top1"]


def searched(**settings: Any) -> Callable[[World], Any]:
    def run(world: World) -> Any:
        codes = world.codes()
        more = {name: world(value) if name in ("ids", "query_ids") else value
                for name, value in settings.items()}  # fmt: skip
        if "rerank" in settings:
            more["features"] = [world("features")]
        if "query_ids" not in settings:
            more["queries"] = [world("queries.parquet")]
        return search(codes, world("out"), top_k=500 if "rerank" not in settings else 5, **more)

    return lambda world: run(world).to_pylist()


VERBS |= {
    "search adc": searched(),
    "search sdc": searched(distance="sdc"),
    "search by ids": searched(query_ids="ids.txt", distance="sdc"),
    "search rerank": searched(rerank=20),
    "search ids": searched(ids="ids.txt"),
    "search where label": searched(filter="label = 'c1' AND id < 150"),
    "search where null": searched(filter="label IS NULL"),
    "search where nothing": searched(filter="label = 'nothing'"),
}


@verb
def duplicates(world: World) -> Any:
    found = []
    for threshold in (0.5, 0.0):
        job = DuplicatesJob(
            codes=world.codes(), threshold=threshold, output=world(f"p{threshold}"), where=ALONE
        )
        found.append(rows_of(job.output, api.duplicates(job)).to_pylist())
    return found


@verb
def evaluate_retrieval(world: World) -> Any:
    job = RetrievalJob(
        codes=world.codes(), queries=[world("queries.parquet")], features=[world("features")],
        at=(1, 10), where=ALONE,
    )  # fmt: skip
    found = api.evaluate_retrieval(job)
    return {name: value for name, value in found.items() if name not in ("codes", "run")}


@verb
def fewshot(world: World) -> Any:
    job = FewShotJob(
        features=[world("features")], space="raw", classes=world("classes.parquet"), split="seen",
        ways=3, shots=(1,), episodes=4,
    )  # fmt: skip
    return api.fewshot(job)


@verb
def clusterability(world: World) -> Any:
    job = ClusterabilityJob(features=[world("features")], space="raw", restarts=2)
    return api.clusterability(job)


@verb
def index(world: World) -> Any:
    found = raypq.open(world.codes())
    D, names = found.search(vectors(3, 8), 5)
    return found.ids.tolist(), D.tolist(), names.tolist()


@verb
def export_faiss(world: World) -> Any:
    pytest.importorskip("faiss")
    told = api.export_faiss(ExportFaissJob(codes=world.codes(), output=world("x.faiss")))
    return told["rows"], Path(world("x.faiss")).read_bytes()


@verb
def repack(world: World) -> Any:
    where = {"features": [world("features")], "output": world("packed"), "where": ALONE}
    api.repack(RepackJob(**where))
    encode(world.root, world("packed"), output="codes-of-packed")
    return rows_of(world("codes-of-packed")).to_pylist()


@verb
def extract(world: World) -> Any:
    job = ExtractJob(
        images=[world("images")], backbone=model_at(world.root), output=world("extracted"),
        columns=Columns(feature="image", image_size=2), where=ALONE,
    )  # fmt: skip
    told = api.extract(job)
    assert told.summary["dx"] == DX
    widths = {pq.read_schema(path).field("feature").type.byte_width
              for path in Path(world("extracted")).rglob("*.parquet")}  # fmt: skip
    assert widths == {4 * DX}
    encode(world.root, world("extracted"), output="codes-of-extracted")
    return files(world("extracted")), rows_of(world("codes-of-extracted")).to_pylist()


@verb
def split_1(world: World) -> Any:
    return halves(world, protocol=1, queries=10, labelled=4)


@verb
def split_2(world: World) -> Any:
    return halves(world, protocol=2)


def halves(world: World, **settings: Any) -> Any:
    job = SplitJob(features=[world("features")], output=world("parts"), where=ALONE, **settings)
    return api.split(job)["parts"], {
        part.name: sorted(row["id"] for row in files(str(part)))
        for part in sorted(Path(world("parts")).iterdir()) if part.is_dir()
    }  # fmt: skip


@verb
def infer_semantics(world: World) -> Any:
    model, codes = world.zeroshot()
    found = []
    for by in ("image", "label"):
        job = InferSemanticsJob(
            model=model, codes=codes, classes=world("classes.parquet"), by=by,
            output=world(f"like-{by}"), where=ALONE,
        )  # fmt: skip
        api.infer_semantics(job)
        found.append(files(job.output))
    return found


@verb
def add_classes(world: World) -> Any:
    model, codes = world.zeroshot()
    job = AddClassesJob(model=model, classes=world("classes.parquet"), output=world("more"))
    api.add_classes(job)
    return classified(world, codes=codes, model=world("more"))


@verb
def reindex(world: World) -> Any:
    model, _ = world.zeroshot()
    job = ReindexJob(
        model=model, features=[world("features")], codes=world("night"), where=ALONE,
        classify=[{"classes": world("classes.parquet"), "output": world("answers")}],
    )  # fmt: skip
    api.reindex(job)
    assert api.reindex(job)["nothing_to_do"]
    return rows_of(world("night")).to_pylist(), rows_of(world("answers")).to_pylist()


@verb
def snapshots(world: World) -> Any:
    codes = world.codes()
    versions.verify(codes, None, sha256=True)
    return [line["images"] for line in versions.listing(codes)]


VERBS["encode"] = VERBS.pop("encode ")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where worlds lie, beside a model that classifies."""
    root = tmp_path_factory.mktemp("worlds")
    world = World(root / "trained", None, full=True, typed=True)
    model = world.train("pqzsl", SMALL | {"iterations": 2, "polish": 1})
    model.save(str(root / "zeroshot"))
    return root


@pytest.fixture(scope="module")
def wanted(worlds: Path) -> Callable[[str], Any]:
    """What a verb gives of the two shards that have rows."""
    known: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in known:
            place = worlds / f"without-{len(known)}"
            known[name] = VERBS[name](World(place, None, full=True, typed=True))
        return known[name]

    return of


@pytest.mark.parametrize(
    ("position", "typed"),
    [("first", True), ("first", False), ("middle", False), ("last", False)],
    ids=["first", "first, null types", "middle, null types", "last, null types"],
)
@pytest.mark.parametrize("name", VERBS)
def test_a_shard_without_rows_changes_nothing(worlds, wanted, tmp_path, name, position, typed):
    place = worlds / tmp_path.name
    found = VERBS[name](World(place, POSITIONS[position], full=True, typed=typed))
    assert found == wanted(name)


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "null types"])
@pytest.mark.parametrize("name", VERBS)
def test_a_store_without_rows(worlds, tmp_path, name, typed):
    world = World(worlds / tmp_path.name, None, full=False, typed=typed)
    if name in ANSWERS_NOTHING:
        found = VERBS[name](world)
        parts = found if isinstance(found, tuple) else (found,)
        assert all(part in ([], None, [0]) for part in parts)
        return
    with pytest.raises(RaypqError) as caught:
        VERBS[name](world)
    assert any(word in str(caught.value) for word in WORDS), caught.value


NOTHING_YET = {"text": pa.string(), "whole numbers": pa.int64(), "the type null": pa.null()}
OF_IDS: dict[str, tuple[Callable[[range], list[Any]], list[str]]] = {
    "whole numbers": (list, ["id < 150", "id IN (3, 77)", "id = 5 OR label = 'c1'"]),
    "text": (lambda rows: [f"r{row:03d}" for row in rows], ["id < 'r150'", "id IN ('r003')"]),
}


def one_day(root: Path, day: str, ids: pa.Array, **changes: Any) -> None:
    """A day of features, encoded or met by a night."""
    at, name = slice(0, len(ids)), f"features/{day}.parquet"
    labels = pa.array([f"c{row % 3}" for row in range(len(ids))], pa.string())
    shard(root / name, vectors(2 * N)[at], ids, labels)
    if "night" not in changes:
        encode(root, str(root / name), append=(root / "codes").exists())
        return
    api.reindex(
        ReindexJob(
            model=model_at(root), features=[str(root / "features")], codes=str(root / "codes"),
            where=ALONE,
        )
    )  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"night": True}], ids=["encode", "reindex"])
@pytest.mark.parametrize("kind", OF_IDS)
@pytest.mark.parametrize("before", NOTHING_YET)
def test_an_empty_day_before_all_others_does_not_say_what_ids_are(tmp_path, before, kind, how):
    named, filters = OF_IDS[kind]
    ids = pa.array(named(range(2 * N)))
    one_day(tmp_path / "a", "day1", pa.array([], NOTHING_YET[before]), **how)
    for root in (tmp_path / "a", tmp_path / "b"):
        one_day(root, "day2", ids, **how)
    (tmp_path / "ids.txt").write_text("\n".join(str(name) for name in ids[:5].to_pylist()))
    queries = shard(tmp_path / "queries.parquet", vectors(2), pa.array([0, 1]))
    asked = [{"filter": text} for text in filters] + [{"ids": str(tmp_path / "ids.txt")}]
    for number, settings in enumerate(asked):
        found = [
            search(root / "codes", root / f"o{number}", queries=[queries], top_k=50, **settings)
            for root in (tmp_path / "a", tmp_path / "b")
        ]
        assert found[0].equals(found[1])
        assert len(found[0]["id"][0].as_py()) > 0
