"""Training by gradient in this process: resume, early stop, phases, follow-ups, and bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from raypq import api, kernels
from raypq.cli import main
from raypq.config import ClassifyJob, ClusterSettings, DuplicatesJob, EncodeJob, TrainJob
from raypq.data import arrays
from raypq.data.model_files import ModelFiles
from raypq.data.store import snapshot
from raypq.errors import ConfigError, DivergenceError, InputError, JobError, ModelError
from raypq.execution.local import LocalExecutor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.methods.base import Model, ReductionMethod, TrainingSetInfo
from raypq.methods.gradient import (
    Batch,
    GradientMethod,
    GradientSettings,
    Network,
    NetworkModel,
    Phase,
)
from raypq.methods.pq import PQ, PQSettings
from raypq.stages.training import trainer
from raypq.stages.training.dataset import TrainingPlan
from raypq.stages.training.gradient import fit_gradient

HELD_OUT = 30  # of 300 labelled rows: the table has unseen classes
SMALL = {"M": 2, "K": 16, "hidden": 32, "epochs": 4, "batch": 50, "rate": 0.01}


def job(world: Any, output: Path, method: str = "dpq", **changes: Any) -> TrainJob:
    own = {"dpq": {"width": 16}, "gpq": {"dropout": 0.0, "lambda1": 1.0}}[method]
    settings = {**SMALL, **own, **changes.pop("set", {})}
    values = {
        "method": method,
        "features": [world.train],
        "unlabelled": [world.train] if method == "gpq" else [],
        "classes": world.classes,
        "output": str(output),
        "settings": settings,
        "where": ClusterSettings(cluster="none", workers=1),
        **changes,
    }
    return TrainJob(**values)


def fingerprint(folder: Path) -> str:
    return ModelFiles.load(str(folder)).fingerprint


@pytest.mark.parametrize("method", ["dpq", "gpq"])
def test_the_chain_from_features_to_classes(world, tmp_path, method):
    # Chosen from codes alone, classes want more than two parts of GPQ's.
    trained = api.train(job(world, tmp_path / "m", method, set={"M": 4, "epochs": 30}))
    history = trained.model.record["history"]
    assert [note["epoch"] for note in history] == list(range(30))
    assert history[-1]["loss"] < history[0]["loss"]
    assert trained.summary["images"] == (300 if method == "dpq" else 600) - HELD_OUT
    assert not (tmp_path / "m" / "training" / "checkpoint.safetensors").exists()
    api.encode(EncodeJob(model=str(tmp_path / "m"), features=[world.train],
                         output=str(tmp_path / "codes"), where=trained_where()))  # fmt: skip
    duplicates = DuplicatesJob(codes=str(tmp_path / "codes"), threshold=0.9,
                               output=str(tmp_path / "pairs"), where=trained_where())  # fmt: skip
    with pytest.raises(ModelError, match="found codes of class probabilities"):
        api.duplicates(duplicates)
    version = api.classify(
        ClassifyJob(
            model=str(tmp_path / "m"), codes=str(tmp_path / "codes"), classes=world.classes,
            candidates="seen", top_k=1, output=str(tmp_path / "p"), where=trained_where(),
        )
    )  # fmt: skip
    assert version.summary["metric"] == "dot"
    result = version.summary["result"]
    model = registry.load(str(tmp_path / "m"))
    V, bias = model.class_prototypes(model.classes)
    B = model.encode(world.X)
    _, found = kernels.topk_per_code(B, model.tables(V, bias, model.class_metric), 1)
    right = np.mean(found[:, 0] == world.y)
    assert right > 0.9
    assert result["accuracy"]["hit@1_image_mean"] == pytest.approx(right)


def trained_where() -> ClusterSettings:
    return ClusterSettings(cluster="none", workers=1)


def test_classes_that_the_prediction_layer_does_not_know(world, tmp_path, write):
    api.train(job(world, tmp_path / "m"))
    classes = write("c.parquet", class_id=["c00", "c08", "c99"])
    with pytest.raises(
        Exception, match=r"among the 8 that it was trained on, or .*found 'c08' \(2"
    ):
        api.classify(
            ClassifyJob(model=str(tmp_path / "m"), features=[world.test], classes=classes,
                        output=str(tmp_path / "p"), where=trained_where())
        )  # fmt: skip


class PowerCutError(Exception):
    """The power goes."""


@pytest.mark.parametrize("method", ["dpq", "gpq"])
@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_training_goes_on_where_it_was_cut_off(world, tmp_path, monkeypatch, method, epoch):
    """The same bits as without the break, and no whole epoch is done twice."""
    api.train(job(world, tmp_path / "whole", method, set={"validation": 60}))
    seen = []
    judge = trainer.Trainer._validate

    def cut(self: trainer.Trainer) -> dict[str, float]:
        seen.append(self.progress.epoch)
        if len(seen) == epoch + 1:
            raise PowerCutError
        return judge(self)

    monkeypatch.setattr(trainer.Trainer, "_validate", cut)
    broken = job(world, tmp_path / "broken", method, set={"validation": 60})
    with pytest.raises(PowerCutError):
        api.train(broken)
    api.train(broken)
    assert seen == [*range(epoch + 1), *range(epoch, 4)]
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "whole")


def test_a_checkpoint_of_another_config(world, tmp_path, monkeypatch):
    def stop(self: trainer.Trainer) -> None:
        raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_restore_best", stop)
        with pytest.raises(PowerCutError):
            api.train(job(world, tmp_path / "m", set={"validation": 60, "patience": 9}))
    other = {"validation": 60, "patience": 9, "rate": 0.02}
    with pytest.raises(ConfigError, match=r"rate was 0.01 and is 0.02.*remove it to start anew"):
        api.train(job(world, tmp_path / "m", set=other))


def test_an_early_stop_keeps_the_best_epoch(world, tmp_path):
    settings = {"epochs": 60, "validation": 80, "patience": 2, "schedule": "constant"}
    trained = api.train(job(world, tmp_path / "m", set=settings))
    scores = [note["validation"] for note in trained.model.record["history"]]
    assert len(scores) < 60
    assert int(np.argmax(scores)) == len(scores) - 3
    assert not list((tmp_path / "m" / "training").iterdir())


def test_the_rate_follows_the_schedule(world, tmp_path):
    rates = {}
    for schedule in ("constant", "cosine", "exponential"):
        settings = {"schedule": schedule, "decay": 0.5}
        trained = api.train(job(world, tmp_path / schedule, set=settings))
        rates[schedule] = [note["rate"] for note in trained.model.record["history"]]
    assert set(rates["constant"]) == {0.01}
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert rates["cosine"][-1] < 0.001
    last = [0.01 * 0.5 ** (epoch + 4 / 5) for epoch in range(4)]  # the last of 5 steps
    assert rates["exponential"] == pytest.approx(last)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_terms(world, tmp_path):
    terms = r"epoch \d+, step \d+: head .*, soft .*, hard .*central"
    settings = {"rate": 1e30, "epochs": 3, "codes": "parts"}
    with pytest.raises(DivergenceError, match=terms):
        api.train(job(world, tmp_path / "m", set=settings))


def test_divergence_is_exit_code_1(world, tmp_path):
    options = [
        f"--set={key}={value}" for key, value in {**SMALL, "width": 16, "rate": 1e30}.items()
    ]
    run = CliRunner().invoke(
        main,
        ["train", "dpq", "--features", world.train, "--classes", world.classes, "--output",
         str(tmp_path / "m"), "--cluster", "none", "--workers", "1", *options],
    )  # fmt: skip
    assert run.exit_code == 1
    assert "training diverged in phase 'train'" in run.stderr
    assert "Traceback" not in run.stderr


def rewritten(world: Any, folder: Path, y: Sequence[int]) -> str:
    columns = {
        "id": np.arange(len(y)),
        "feature": arrays.fixed_list(world.X[: len(y)]),
        "label": [f"c{t:02d}" for t in y],
    }
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "part.parquet")
    return str(folder)


def test_a_class_with_one_sample(world, tmp_path):
    y = np.where(world.y == 3, 2, world.y)
    y[0] = 3
    features = rewritten(world, tmp_path / "f", y)
    with pytest.raises(InputError, match="at least 2 images of each, found fewer of c03"):
        api.train(job(world, tmp_path / "m", features=[features]))


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("gpq", {"unlabelled": []}, "gpq learns from unlabelled rows too.*--unlabelled"),
        ("dpq", {"unlabelled": ["x"]}, r"--unlabelled \(unlabelled\): dpq uses labelled rows only"),
        ("dpq", {"set": {"batch": 4}}, "batch: 4 rows .* fewer than the 8 training classes"),
        (
            "dpq",
            {"set": {"batch": 301}},
            r"batch: 301 rows are more than the 270 to train on \(300 less 30 held out",
        ),
        ("dpq", {"set": {"validation": 280}}, "300 less 310 held out"),
        ("dpq", {"set": {"width": 1, "codes": "parts"}}, "M: 2 parts need an embedding layer"),
        ("dpq", {"classes": None}, "--classes"),
        ("dpq", {"set": {"backbone": "lenet"}}, "backbone: unknown 'lenet'; expected mlp"),
        ("dpq", {"set": {"backbone": "timm:resnet18"}}, "width 16, found encoded images|timm"),
    ],
)
def test_settings_that_do_not_fit(world, tmp_path, method, changes, reason):
    with pytest.raises((ConfigError, InputError), match=reason):
        api.train(job(world, tmp_path / "m", method, **changes))


def test_unlabelled_rows_of_another_width(world, tmp_path, write):
    other = write("u/part.parquet", id=np.arange(50), feature=np.ones((50, 5), np.float32))
    with pytest.raises(InputError, match="width 16, as the labelled ones, found 5"):
        api.train(job(world, tmp_path / "m", "gpq", unlabelled=[other]))


def test_unlabelled_rows_need_no_label(world, tmp_path, write):
    other = write("u/part.parquet", id=np.arange(300), feature=world.X)
    with_labels = api.train(job(world, tmp_path / "a", "gpq"))
    without = api.train(job(world, tmp_path / "b", "gpq", unlabelled=[other]))
    assert with_labels.summary["images"] == without.summary["images"] == 600 - HELD_OUT


def test_a_bad_shard_is_told_before_training_or_left_out(world, tmp_path, write):
    X = world.X[:20].copy()
    X[7, 3] = np.nan
    bad = write("bad/part.parquet", id=np.arange(20), feature=X, label=["c00"] * 20)
    with pytest.raises(JobError, match="row 7"):
        api.train(job(world, tmp_path / "m", features=[world.train, bad]))
    trained = api.train(
        job(world, tmp_path / "m", features=[world.train, bad], on_bad_shard="quarantine")
    )
    assert len(trained.summary["quarantined"]) == 1
    assert 320 - 32 - 20 <= trained.summary["images"] <= 300  # some held out are of the bad shard


def test_a_class_table_without_embeddings_will_do(world, tmp_path, write):
    classes = write("c.parquet", class_id=[f"c{t:02d}" for t in range(8)])
    assert api.train(job(world, tmp_path / "m", classes=classes)).model.classes[-1] == "c07"


# A method with two phases, codebooks by reduction afterwards, and a class projection: what the
# contract offers beyond DPQ and GPQ.


class ToySettings(GradientSettings):
    M: int = 2
    K: int = 16


class ToyNetwork(Network):
    training_only = frozenset({"head"})

    def __init__(self, dx: int, da: int, L: int) -> None:
        super().__init__()
        self.da = da
        self.f, self.g = nn.Linear(dx, 4), nn.Linear(da, 4)
        self.head = nn.Linear(4, L)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        self.seen[0] += 1
        return {phase: nn.functional.cross_entropy(self.head(self.embed(batch.x)), batch.y)}

    def trainable(self, phase: str) -> list[nn.Parameter]:
        module = self.f if phase == "mapping" else self.head
        return list(module.parameters())

    def begin_phase(self, phase: str) -> None:
        self.seen[1] += 1

    def end_epoch(self, phase: str, epoch: int) -> None:
        self.seen[2] += 1

    def embed(self, x: Tensor) -> Tensor:
        return torch.tanh(self.f(x))

    def codes(self, x: Tensor) -> None:
        return None

    def codebooks(self) -> None:
        return None

    def project(self, e: Tensor) -> Tensor:
        return self.g(e)


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyModel(NetworkModel):
    method: ClassVar[str] = "toy"

    def build_network(self) -> Network:
        assert self.da is not None
        return ToyNetwork(self.dx, self.da, 1)


class Toy(GradientMethod):
    name = "toy"
    settings_class = ToySettings
    model_class = ToyModel
    needs_classes = True
    needs_embeddings = True

    def build(self, dataset_info: TrainingSetInfo) -> Network:
        assert dataset_info.A is not None
        return ToyNetwork(dataset_info.dx, dataset_info.A.shape[1], dataset_info.L)

    def phases(self, steps: int) -> list[Phase]:
        return [
            Phase(name="mapping", epochs=2, rate=0.1),
            Phase(name="head", epochs=3, rate=0.1, schedule="constant"),
        ]

    def follow_up(self) -> ReductionMethod:
        return PQ(PQSettings(M=self.settings.M, K=self.settings.K))


@pytest.fixture
def toy(world, tmp_path) -> Callable[..., Model]:
    def toy(name: str) -> Model:
        given = job(world, tmp_path / name)
        method = Toy(ToySettings(batch=50, normalise="zscore"))
        executor = LocalExecutor(1)
        record = RunRecord(given, executor)
        return fit_gradient(given, method, TrainingPlan.make(given, method), executor, record).model

    return toy


def test_phases_and_a_follow_up(toy, world, monkeypatch):
    model = toy("m")
    phases = [(note["phase"], note["epoch"]) for note in model.record["history"]]
    assert phases == [("mapping", 0), ("mapping", 1), ("head", 0), ("head", 1), ("head", 2)]
    assert "head.weight" not in "".join(model.tensors)
    assert model.tensors["net.seen"].tolist() == [5 * 6, 2, 5]
    assert model.C.shape == (2, 16, 2)
    U = model.embed(world.X)
    np.testing.assert_array_equal(model.encode(world.X), kernels.encode(U, model.C))
    assert np.mean((U - model.decode(model.encode(world.X))) ** 2) < 0.1 * U.var()
    V, _ = model.prototypes(world.E)
    assert V.shape == (12, 4)
    assert model.record["codebooks"]["history"]


def test_a_phase_moves_its_own_parameters_alone(toy, monkeypatch):
    weights = {}
    write = trainer.Checkpoints.write

    def note(self: Any, checkpoint: Any, *, best: bool = False) -> None:
        weights[len(weights)] = {k: v.clone() for k, v in checkpoint.weights.items()}
        write(self, checkpoint, best=best)

    monkeypatch.setattr(trainer.Checkpoints, "write", note)
    toy("m")
    first, last = weights[1], weights[6]  # the end of each phase's epochs
    assert torch.equal(first["f.weight"], last["f.weight"])
    assert not torch.equal(first["head.weight"], last["head.weight"])


def test_a_break_in_the_second_phase(toy, tmp_path, monkeypatch):
    whole = toy("whole")
    judge = trainer.Trainer._validate
    calls = []

    def cut(self: trainer.Trainer) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise PowerCutError
        return judge(self)

    monkeypatch.setattr(trainer.Trainer, "_validate", cut)
    with pytest.raises(PowerCutError):
        toy("broken")
    again = toy("broken")
    assert len(calls) == 6
    assert replace(again, record={}).fingerprint == replace(whole, record={}).fingerprint


def test_images_from_bytes_to_codes(tmp_path):
    """Stripes of two directions: a small CNN learns them, and the reader decodes the images."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    data, label = [], []
    for at in range(160):
        wave = np.sin(np.arange(16) * 1.5 + rng.uniform(0, 6)) * 90 + 128
        grey = np.tile(wave, (16, 1)) + rng.normal(0, 10, (16, 16))
        grey = grey if at % 2 else grey.T
        out = io.BytesIO()
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(out, "PNG")
        data.append(out.getvalue())
        label.append(f"c{at % 2}")
    data[5] = b"broken"
    (tmp_path / "i").mkdir()
    columns = {"id": np.arange(160), "image": data, "label": label}
    pq.write_table(pa.table(columns), tmp_path / "i" / "part.parquet")
    pq.write_table(pa.table({"class_id": ["c0", "c1"]}), tmp_path / "c.parquet")
    common = ["--features", str(tmp_path / "i"), "--feature-column", "image", "--bad-images", "1",
              "--cluster", "none", "--workers", "1"]  # fmt: skip
    settings = {"backbone": "dsh", "M": 2, "K": 16, "width": 16, "epochs": 15, "batch": 20,
                "rate": 0.003, "augment": "false"}  # fmt: skip
    options = [f"--set={key}={value}" for key, value in settings.items()]
    run = CliRunner()
    trained = run.invoke(
        main,
        ["train", "dpq", *common, "--image-size", "16", "--classes", str(tmp_path / "c.parquet"),
         "--output", str(tmp_path / "m"), *options],
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    encoded = run.invoke(
        main,
        ["encode", *common, "--model", str(tmp_path / "m"), "--output", str(tmp_path / "codes")],
    )
    assert encoded.exit_code == 0, encoded.output
    assert '"images_left_out": 1' in encoded.stdout
    assert snapshot.read(str(tmp_path / "codes")).rows == 159
    model = registry.load(str(tmp_path / "m"))
    assert model.dx == 3 * 16 * 16
    history = model.record["history"]
    assert history[-1]["head"] < 0.2
