"""Jobs that train models."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raypq.config.job import (
    ClusterSettings,
    Columns,
    Job,
    MonitoredJob,
    OnBadShard,
    Overwrite,
    Version,
)
from raypq.config.option import Option
from raypq.config.places import (
    InputFile,
    MaybePaths,
    ModelFolder,
    NewFile,
    NewModel,
    Paths,
    Store,
    Text,
)
from raypq.config.settings import Positive

_GIB = 2**30


class TrainJob(MonitoredJob):
    """``raypq train``."""

    verb: ClassVar[str] = "raypq train"

    method: Annotated[Text, Option(argument=True)]
    features: MaybePaths = Field(
        default_factory=list,
        description="feature store: folder, file or glob; may be repeated; needed by all methods "
        "but linear",
    )
    unlabelled: MaybePaths = Field(
        default_factory=list,
        description="rows without labels, for methods that learn from them too; may be repeated",
    )
    codes: Store | None = Field(None, description="linear: code store to learn from")
    version: Version | None = Field(
        None, description="linear: version of the code store; default: latest"
    )
    model: ModelFolder | None = Field(
        None,
        description="linear: model whose codes to learn from, where the store has codes of "
        "several; default: the model that the code store carries",
    )
    labels: InputFile | None = Field(
        None,
        description="linear: Parquet file of ids and labels; only these rows are learned from; "
        "default: the labels of the code store",
    )
    classes: InputFile | None = Field(None, description="class table (Parquet)")
    output: NewModel = Field(description="model directory to write")
    settings: Annotated[dict[str, Any], Option(names=("--set",), metavar="KEY=VALUE")] = Field(
        default_factory=dict, description="a method setting, such as M=37; may be repeated"
    )
    overwrite: Overwrite = False
    tune: bool = Field(False, description="first choose settings on held-out training classes")
    calibrate: bool = Field(
        True,
        description="hold training classes out to choose the calibration of seen classes that "
        "classify applies, for methods with class embeddings",
    )
    cache_bytes: Annotated[int | None, Option(names=("--cache-gb",), unit=_GIB)] = Field(
        None,
        ge=0,
        description="features or codes that a worker keeps in memory, in GiB (cache_bytes: in "
        "bytes); "
        "default: what its memory leaves, 4 GiB at most",
    )
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()


class AblationJob(Job):
    """``raypq ablation``."""

    verb: ClassVar[str] = "raypq ablation"

    name: Annotated[
        Literal["dpq-bits", "dpq-central", "dpq-gini", "gpq-bits", "gpq-terms"],
        Option(argument=True),
    ]
    train: Paths = Field(description="labelled rows; may be repeated")
    test: MaybePaths = Field(
        default_factory=list,
        description="test rows; may be repeated; default: a tenth of --train, held out",
    )
    classes: InputFile = Field(description="class table (Parquet)")
    seeds: Positive = Field(1, description="trainings per variant")
    queries: Positive = Field(1000, description="number of query rows")
    labelled: Positive = Field(
        500, description="rows of each class that keep their label (gpq only)"
    )
    settings: Annotated[dict[str, Any], Option(names=("--set",), metavar="KEY=VALUE")] = Field(
        default_factory=dict,
        description="a method setting for every variant, such as epochs=8; may be repeated",
    )
    json_file: Annotated[NewFile | None, Option(names=("--json",))] = Field(
        None, description="file to write the figures to; its rows are kept"
    )
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()
