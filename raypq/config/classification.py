"""Jobs that classify codes or features and evaluate predictions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raypq.config.job import (
    ClusterSettings,
    Columns,
    CpuJob,
    MonitoredJob,
    OnBadShard,
    Overwrite,
    Version,
)
from raypq.config.places import (
    InputFile,
    ModelFolder,
    NewModel,
    NewShards,
    NewStore,
    Paths,
    Reads,
    Split,
    Store,
    Text,
    Uri,
)
from raypq.config.settings import Metric, Positive, UserSettings, Workers

UnknownLabels = Annotated[
    Literal["report", "refuse"],
    Field(description="labels and candidates that the class table lacks: warn or fail"),
]

_LARGEST = 3.4e38  # float32
LogitScale = Annotated[float, Field(gt=0)]


class ClassificationTarget(UserSettings):
    """Classes to choose from and the prediction store to write: a section ``classify`` of a
    nightly job, and part of a ``ClassifyJob``."""

    classes: InputFile = Field(description="class table (Parquet)")
    candidates: Split = Field(
        "all",
        description="classes to choose from: all, seen, unseen, 2-hops, 3-hops, most-N, least-N, a "
        "file, or several joined by +",
    )
    top_k: Positive = Field(10, description="classes per image")
    metric: Metric | None = Field(
        None, description="similarity of image and class; default: the model's"
    )
    calibration: float | Literal["model"] | None = Field(
        None,
        description="number subtracted from the scores of seen classes, or 'model', whose "
        "calibration is then required; default: the model's, if it has one",
    )
    no_calibration: bool = Field(
        False, description="scores as they are, as in the papers' protocols"
    )
    logit_scale: LogitScale | Literal["encoder"] | None = Field(
        None,
        description="factor of scores for probabilities, 100 for CLIP, or 'encoder' for what the "
        "class table says; default: scores only",
    )
    logit_bias: float = Field(0.0, description="added to the logits (sigmoid)")
    probability: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="softmax over the candidates (CLIP), or sigmoid of each class (SigLIP)",
    )
    threshold: Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)] | None = Field(
        None,
        description="also list all classes of at least this probability (without logit_scale: "
        "score)",
    )
    unknown_labels: UnknownLabels = "report"
    output: NewStore = Field(description="prediction store to write a version of")

    @model_validator(mode="after")
    def _one_calibration(self) -> Self:
        if self.no_calibration and self.calibration is not None:
            raise ValueError(
                f"calibration, no_calibration: expected one of them, found {self.calibration} and "
                "no_calibration"
            )
        return self

    @model_validator(mode="after")
    def _logits_are_used(self) -> Self:
        sigmoid = self.probability == "sigmoid"
        if self.logit_scale is None and (sigmoid or self.logit_bias):
            raise ValueError("probability, logit_bias: expected a logit_scale too, found none")
        if self.logit_scale is not None and not 0 <= (self.threshold or 0) <= 1:
            raise ValueError(
                "threshold: expected a probability from 0 to 1, as there is a logit_scale, found "
                f"{self.threshold:g}; without logit_scale it is a score"
            )
        if self.logit_bias and (not sigmoid or self.logit_scale == "encoder"):
            raise ValueError(
                "logit_bias: expected with probability: sigmoid and a number for logit_scale "
                "(a softmax ignores it, and an encoder has its own)"
            )
        return self


class ClassifyJob(MonitoredJob, ClassificationTarget):
    """``raypq classify``: from codes, or exactly from features (no compression)."""

    verb: ClassVar[str] = "raypq classify"

    model: ModelFolder | None = Field(
        None,
        description="model directory; needed for features. With codes: refuse those of another "
        "model; default: the models that the code store carries, each for its own shards",
    )
    codes: Store | None = Field(None, description="code store")
    version: Version | None = Field(None, description="version of the code store; default: latest")
    features: Paths | None = Field(
        None, description="instead of codes: score features exactly, uncompressed"
    )
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()


class EvaluateJob(CpuJob):
    """``raypq evaluate classification``."""

    verb: ClassVar[str] = "raypq evaluate classification"

    predictions: Store = Field(description="prediction store")
    version: Version | None = Field(
        None, description="version of the prediction store; default: latest"
    )
    classes: InputFile = Field(description="class table (Parquet)")
    split: Split = Field("all", description="classes whose images are evaluated (as --candidates)")
    calibration: float | None = Field(
        None, description="class split for calibrated stacking; default: the model's"
    )
    unknown_labels: UnknownLabels = "report"


class AddClassesJob(MonitoredJob):
    """``raypq add-classes``."""

    verb: ClassVar[str] = "raypq add-classes"

    model: Annotated[Uri, Reads("model", in_place=True)] = Field(description="model directory")
    classes: InputFile = Field(description="class table (Parquet) of the classes to add")
    output: NewModel = Field(description="model directory to write")
    overwrite: Overwrite = False
    workers: Workers | None = Field(None, description="CPU threads; default: CPU cores")


class InferSemanticsJob(CpuJob):
    """``raypq infer-semantics``."""

    verb: ClassVar[str] = "raypq infer-semantics"

    model: ModelFolder = Field(description="model directory")
    codes: Store = Field(description="code store")
    version: Version | None = Field(None, description="version of the code store; default: latest")
    classes: InputFile = Field(description="class table (Parquet) of the known classes")
    candidates: Split = Field("all", description="classes to choose from")
    by: Literal["image", "label"] = Field(
        "image", description="one result per image, or one for all images of a label together"
    )
    labels: tuple[Text, ...] = Field(
        (), description="only images of these labels; may be repeated; default: all"
    )
    top_k: Positive = Field(3, description="classes per image")
    tau: float = Field(0.0, ge=-1, le=1, description="smallest cosine of similar classes")
    output: NewShards = Field(description="folder to write Parquet files to")
    on_bad_shard: OnBadShard = "fail"
