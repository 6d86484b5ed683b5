"""Typed, frozen settings of every job. An unknown or bad key is an error that names it.

The same models serve the command line, YAML files and Python. Names follow the legend of the
README: ``M`` sub-codebooks, ``K`` codewords in each, ``metric``, ``seed``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raypq.errors import ConfigError

Precision = Literal["fp32", "bf16"]
Metric = Literal["l2", "cosine", "dot"]
Distance = Literal["adc", "sdc"]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, errors that name the key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "settings") -> Self:
        """Builds the settings from plain values.

        Raises:
            ConfigError: naming the key, the value and what is allowed.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            lines = []
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"])
                if item["type"] == "extra_forbidden":
                    allowed = ", ".join(_allowed(cls, item["loc"][:-1]))
                    lines.append(f"{origin}: unknown key '{key}'; allowed: {allowed}")
                elif item["type"] == "missing":
                    lines.append(f"{origin}: key '{key}' is required")
                else:
                    lines.append(f"{origin}: key '{key}': {item['msg']}, found {item['input']!r}")
            raise ConfigError("\n".join(lines)) from None
        except TypeError as error:  # a key that is not a string
            raise ConfigError(f"{origin}: {error}") from None


def _allowed(settings: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys of a section: ``place`` leads to it through lists and sections."""
    for part in place:
        if isinstance(part, str) and part in settings.model_fields:
            kinds = [settings.model_fields[part].annotation]
            while kinds:
                kind = kinds.pop()
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    settings = kind
                kinds += get_args(kind)
    return sorted(settings.model_fields)


class Columns(Settings):
    """Names of the columns in feature files."""

    id: str = "id"
    feature: str = "feature"
    label: str = "label"
    width: Positive | None = Field(
        None, description="feature width; needed for fixed_size_binary where no model tells it"
    )
    image_size: Positive | None = Field(
        None, description="pixels on a side, where the feature column holds encoded images"
    )
    bad_images: int = Field(
        0, ge=0, description="undecodable images of one shard that are left out; more make it bad"
    )


class ClusterSettings(Settings):
    """Where the work runs."""

    cluster: str = Field("local", description="none, local, or the address of a Ray cluster")
    workers: Positive = Field(default_factory=lambda: max(1, os.cpu_count() or 1))
    threads: Positive = Field(1, description="CPU threads of one worker; also its num_cpus on Ray")
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    device: Literal["cpu", "cuda"] = "cpu"


class Job(Settings):
    """What all jobs share."""

    where: ClusterSettings = ClusterSettings()
    on_bad_shard: Literal["fail", "quarantine"] = "fail"


class TrainJob(Job):
    """``raypq train``."""

    method: str
    features: list[str]
    unlabelled: list[str] = Field(default_factory=list)
    classes: str | None = None
    output: str
    settings: dict[str, Any] = Field(default_factory=dict)
    columns: Columns = Columns()
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        4 << 30, description="features are kept in the workers' memory up to this many bytes each"
    )
    tune: bool = False
    overwrite: bool = Field(False, description="replace a model that is there already")


class RepackJob(Job):
    """``raypq repack``."""

    features: list[str]
    output: str
    dtype: Literal["float32", "float16"] = "float32"
    columns: Columns = Columns()
    overwrite: bool = Field(False, description="write over shards that are there already")


class ExtractJob(Job):
    """``raypq extract``."""

    images: list[str]
    backbone: str = Field(
        description="torchvision:NAME, timm:NAME, a TorchScript (.pt) or ONNX (.onnx) file, "
        "or a model directory"
    )
    output: str
    columns: Columns = Columns(feature="image")
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(
        [0.229, 0.224, 0.225], min_length=3, max_length=3
    )


class SplitJob(Job):
    """``raypq split``."""

    protocol: Literal[1, 2]
    features: list[str]
    test: list[str] = Field(default_factory=list)
    output: str
    labelled: Positive | None = Field(None, description="rows of each class; default: all")
    queries: Annotated[int, Field(ge=0)] = Field(1000, description="rows that ask, protocol 1")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.75, description="of the classes whose labels are known, protocol 2"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    columns: Columns = Columns()


class AblationJob(Job):
    """``raypq ablation``."""

    name: str
    train: list[str]
    test: list[str] = Field(default_factory=list)
    classes: str
    seeds: Positive = 1
    queries: Positive = 1000
    labelled: Positive = Field(500, description="rows of each class that keep their label, GPQ")
    settings: dict[str, Any] = Field(default_factory=dict)
    columns: Columns = Columns()
    json_file: str | None = None


DuplicateIds = Annotated[
    Literal["report", "refuse", "ignore"],
    Field(description="ids that are there more than once, within a shard or across shards"),
]


class EncodeJob(Job):
    """``raypq encode``."""

    model: str
    features: list[str]
    output: str
    precision: Precision = Field("fp32", description="of the projection; bf16 changes some codes")
    duplicate_ids: DuplicateIds = "report"
    columns: Columns = Columns()


class ClassifyJob(Job):
    """``raypq classify``: from codes, or exactly from features (no compression)."""

    model: str | None = Field(
        None, description="needed for features; with codes a check, or each shard's own model"
    )
    codes: str | None = None
    version: Annotated[int, Field(ge=1)] | None = None
    features: list[str] | None = None
    classes: str
    candidates: str = "all"
    top_k: Positive = 10
    metric: Metric | None = None
    calibration: float | Literal["model"] = 0.0
    output: str
    columns: Columns = Columns()


class Answers(Settings):
    """One section ``classify`` of a nightly job: a prediction store that follows the codes."""

    classes: str
    candidates: str = "all"
    top_k: Positive = 10
    metric: Metric | None = None
    calibration: float | Literal["model"] = 0.0
    output: str


class SearchJob(Job):
    """``raypq search``: queries are features, or (SDC only) ids of stored codes."""

    codes: str
    version: Annotated[int, Field(ge=1)] | None = None
    model: str | None = Field(None, description="default: the models that the code store keeps")
    queries: list[str] | None = None
    query_ids: str | None = Field(None, description="a file of stored ids, one a line")
    top_k: Positive = 100
    metric: Metric | None = Field(None, description="default: the model's")
    distance: Distance = "adc"
    filter: str | None = Field(None, description="rows to search, such as label = 'x'")
    ids: str | None = Field(None, description="only rows with these ids: a file, one a line")
    rerank: Positive | None = Field(
        None, description="candidates of a query that are scored again by their original vectors"
    )
    features: list[str] | None = Field(None, description="the original vectors, for rerank")
    output: str
    columns: Columns = Columns()


class RetrievalJob(Settings):
    """``raypq evaluate retrieval``."""

    where: ClusterSettings = ClusterSettings()
    codes: str
    version: Annotated[int, Field(ge=1)] | None = None
    model: str | None = Field(None, description="default: the models that the code store keeps")
    queries: list[str]
    metric: Metric | None = Field(None, description="default: the model's")
    distance: Distance = "adc"
    at: tuple[Positive, ...] = Field((1, 10, 100), description="R of the figures @R")
    features: list[str] | None = Field(
        None, description="the original vectors: recall is measured against exact search in them"
    )
    columns: Columns = Columns()


class DuplicatesJob(Job):
    """``raypq duplicates``."""

    codes: str
    version: Annotated[int, Field(ge=1)] | None = None
    model: str | None = Field(None, description="default: the model that the code store keeps")
    metric: Metric | None = Field(None, description="default: the model's")
    threshold: float = Field(
        description="largest squared distance (l2) or smallest score (cosine, dot) of a pair"
    )
    max_pairs: Positive = Field(
        20_000_000, description="more are refused: they are sorted in one worker's memory"
    )
    output: str


class ExportFaissJob(Settings):
    """``raypq export-faiss``."""

    codes: str
    version: Annotated[int, Field(ge=1)] | None = None
    model: str | None = Field(None, description="default: the model that the code store keeps")
    metric: Metric | None = Field(None, description="default: the model's")
    output: str


class ImportFaissJob(Settings):
    """``raypq import-faiss``."""

    index: str
    output: str
    overwrite: bool = Field(False, description="replace a model that is there already")


class AddClassesJob(Job):
    """``raypq add-classes``."""

    model: str
    classes: str
    output: str
    overwrite: bool = Field(False, description="replace a model that is there already")


class InferSemanticsJob(Job):
    """``raypq infer-semantics``."""

    model: str
    codes: str
    version: Annotated[int, Field(ge=1)] | None = None
    classes: str
    candidates: str = "all"
    by: Literal["image", "label"] = "image"
    labels: tuple[str, ...] = Field((), description="only images of these labels; default: all")
    top_k: Positive = 3
    tau: float = Field(0.0, ge=-1, le=1, description="similar from this cosine on")
    output: str


Space = Literal["raw", "mapped", "codes"]


class FewShotJob(Job):
    """``raypq evaluate fewshot``."""

    features: list[str]
    model: str | None = None
    classes: str | None = None
    split: str = "unseen"
    space: Space = "mapped"
    ways: Annotated[int, Field(ge=2)] = 5
    shots: tuple[Positive, ...] = (1, 5)
    queries: Positive = Field(15, description="of each class in an episode, at most")
    episodes: Positive = 600
    seed: Annotated[int, Field(ge=0)] = 0
    columns: Columns = Columns()


class ClusterabilityJob(Job):
    """``raypq evaluate clusterability``."""

    features: list[str]
    model: str | None = None
    classes: str | None = None
    split: str = "all"
    space: Space = "mapped"
    restarts: Positive = 5
    seed: Annotated[int, Field(ge=0)] = 0
    columns: Columns = Columns()


class ImportXlsa17Job(Settings):
    """``raypq import-xlsa17``."""

    source: str = Field(description="folder of res101.mat and att_splits.mat")
    output: str
    rows: Positive = Field(5000, description="of a Parquet file")


class DriftLimits(Settings):
    """How far a shard may be from the training data before it is called drifted."""

    error: Annotated[float, Field(ge=0)] = Field(0.25, description="rise of the relative error")
    norm: Annotated[float, Field(ge=0)] = Field(0.25, description="relative change, either way")
    entropy: Annotated[float, Field(ge=0)] = Field(0.5, description="bits lost")
    sigmas: Annotated[float, Field(ge=0)] = Field(
        4.0, description="standard deviations (of shards, and of a sample's mean) that are chance"
    )


class ReindexJob(Job):
    """``raypq reindex``: codes and predictions brought up to date with a feature store."""

    model: str
    features: list[str]
    codes: str
    precision: Precision = "fp32"
    duplicate_ids: DuplicateIds = "report"
    columns: Columns = Columns()
    classify: list[Answers] = Field(default_factory=list)
    compare: Literal["listing", "content"] = Field(
        "listing", description="content keeps a shard that was touched but holds the same bytes"
    )
    max_removed: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="a source that lost a larger share of its shards is refused"
    )
    rollout: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of all shards that a night moves to another model or settings"
    )
    drift: DriftLimits = DriftLimits()
    fail_on_drift: bool = False
    lease_seconds: Annotated[float, Field(ge=1)] = Field(
        60.0, description="a run without a sign of life for so long counts as crashed"
    )
    dry_run: bool = False

    @field_validator("classify", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value


class EvaluateJob(Job):
    """``raypq evaluate classification``."""

    predictions: str
    version: Annotated[int, Field(ge=1)] | None = None
    classes: str
    split: str = "all"
    calibration: float | None = None


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a valid config: {error}") from None
    try:
        values = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a valid config: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def parse_assignments(pairs: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Turns ``key=value`` strings into a mapping; values are read as YAML scalars."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found or not key.strip():
            raise ConfigError(f"--set {pair!r}: expected key=value")
        values[key.strip()] = _scalar(value)
    return values


def _scalar(text: str) -> Any:
    # YAML 1.1 reads 1e4 as a string; people mean a number.
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
