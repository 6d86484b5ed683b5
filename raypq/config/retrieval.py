"""Jobs of retrieval: search, near-duplicates, clusters, evaluation, FAISS exchange."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raypq.config.job import (
    ClusterSettings,
    Columns,
    MonitoredJob,
    OnBadShard,
    Overwrite,
    Seed,
    Version,
)
from raypq.config.option import Option
from raypq.config.places import (
    InputFile,
    ModelFolder,
    NewFile,
    NewModel,
    NewStore,
    Paths,
    Store,
    Text,
    Uri,
    Writes,
)
from raypq.config.settings import Distance, Metric, Positive, UserSettings

CodeStore = Annotated[Store, Field(description="code store")]
CodeVersion = Annotated[
    Version | None, Field(description="version of the code store; default: latest")
]
CodeModel = Annotated[
    ModelFolder | None,
    Field(description="model directory; default: the models kept in the code store"),
]
ModelMetric = Annotated[
    Metric | None, Field(description="similarity of two vectors; default: the model's")
]
QueryDistance = Annotated[
    Distance,
    Field(description="queries uncompressed (asymmetric) or compressed too (symmetric)"),
]


class SearchJob(MonitoredJob):
    """``raypq search``: queries are features, or (SDC only) ids of stored codes."""

    verb: ClassVar[str] = "raypq search"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    queries: Paths | None = Field(
        None, description="query features: folder, file or glob; may be repeated"
    )
    query_ids: InputFile | None = Field(
        None,
        description="file of ids of stored codes as queries, one a line; needs --distance sdc",
    )
    top_k: Positive = Field(100, description="results per query")
    metric: ModelMetric = None
    distance: QueryDistance = "adc"
    filter: Annotated[Text | None, Option(names=("--where", "--filter"), metavar="EXPRESSION")] = (
        Field(None, description="rows to search: \"label = 'x'\"")
    )
    ids: InputFile | None = Field(
        None, description="file of ids to search, one a line; default: all"
    )
    rerank: Positive | None = Field(
        None, description="candidates per query to rescore by their original vectors"
    )
    features: Paths | None = Field(
        None, description="original vectors for --rerank; may be repeated"
    )
    output: NewStore = Field(description="result store to write a version of")
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()


class RetrievalJob(MonitoredJob):
    """``raypq evaluate retrieval``."""

    verb: ClassVar[str] = "raypq evaluate retrieval"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    queries: Paths = Field(description="labelled features: folder, file or glob; may be repeated")
    metric: ModelMetric = None
    distance: QueryDistance = "adc"
    at: tuple[Positive, ...] = Field(
        (1, 10, 100), description="R of mAP@R, precision@R and recall@R; may be repeated"
    )
    features: Paths | None = Field(
        None,
        description="the store's features: measures recall@R against exact search in them; may be "
        "repeated",
    )
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()


_LARGEST = 3.4e38  # float32
Threshold = Annotated[
    float,
    Field(
        ge=-_LARGEST,
        le=_LARGEST,
        description="largest squared distance (l2) or smallest score (cosine, dot) of "
        "near-duplicates",
    ),
]
Rerank = Annotated[
    bool,
    Field(
        description="keep only pairs whose original vectors (--features) are within the threshold, "
        "too"
    ),
]


class DuplicatesJob(MonitoredJob):
    """``raypq duplicates``."""

    verb: ClassVar[str] = "raypq duplicates"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    threshold: Threshold
    metric: ModelMetric = None
    against: Store | None = Field(
        None,
        description="code store of the same model, of which each pair has one image (id_b); "
        "default: pairs within --codes",
    )
    rerank: Rerank = False
    features: Paths | None = Field(
        None, description="original vectors for --rerank; may be repeated"
    )
    max_pairs: Positive | None = Field(
        None, description="largest number of pairs; default: a twentieth of all, or 20 million"
    )
    output: NewStore = Field(description="store of pairs to write a version of")
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()


class DeduplicationTarget(UserSettings):
    """What near-duplicates are, which of them are kept, and what is written: a section
    ``deduplicate`` of a nightly job, and part of a ``DeduplicateJob``."""

    threshold: Threshold
    metric: ModelMetric = None
    linkage: Literal["single", "complete"] = Field(
        "single",
        description="images of a group are connected by pairs within the threshold, or every two "
        "of them are within it",
    )
    rerank: Rerank = False
    prefer: InputFile | None = Field(
        None, description="file of ids, one a line, of which one is kept where a group has any"
    )
    keep: Literal["first", "largest", "smallest"] = Field(
        "first",
        description="image of a group that is kept: that with the smallest id, or with the largest "
        "or smallest value of the column --keep-by",
    )
    keep_by: Text | None = Field(
        None, description="column of --features for --keep, such as the width or a score"
    )
    output: NewStore = Field(description="store of groups to write a version of")
    keep_list: NewFile | None = Field(
        None, description="text file to write: the ids of all images that are kept, one a line"
    )
    drop_list: NewFile | None = Field(
        None, description="text file to write: the ids of the other images, one a line"
    )


class DeduplicateJob(MonitoredJob, DeduplicationTarget):
    """``raypq deduplicate``."""

    verb: ClassVar[str] = "raypq deduplicate"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    features: Paths | None = Field(
        None,
        description="source of the codes, for --rerank and --keep-by; may be repeated",
    )
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()


class NeighborsJob(MonitoredJob):
    """``raypq neighbors``."""

    verb: ClassVar[str] = "raypq neighbors"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    top_k: Positive = Field(10, description="neighbours of each image")
    metric: ModelMetric = None
    output: NewStore = Field(description="result store to write a version of")
    where: ClusterSettings = ClusterSettings()


class ClusterJob(MonitoredJob):
    """``raypq cluster``."""

    verb: ClassVar[str] = "raypq cluster"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    k: int = Field(ge=2, le=2**31 - 1, description="number of clusters")
    metric: Literal["l2", "cosine"] | None = Field(
        None, description="distance, or cosine of codes of unit length; default: the model's metric"
    )
    iterations: Positive = Field(
        20, description="largest number of passes over the codes; fewer where they help no more"
    )
    seed: Seed = 0
    refit: bool = Field(
        False, description="find new centres; default: those of the last version, if it has any"
    )
    output: NewStore = Field(description="store of clusters to write a version of")
    where: ClusterSettings = ClusterSettings()


class ExportFaissJob(MonitoredJob):
    """``raypq export-faiss``."""

    verb: ClassVar[str] = "raypq export-faiss"

    codes: CodeStore
    version: CodeVersion = None
    model: CodeModel = None
    metric: ModelMetric = None
    output: Annotated[Uri, Writes("index")] = Field(description="index file to write")


class ImportFaissJob(MonitoredJob):
    """``raypq import-faiss``."""

    verb: ClassVar[str] = "raypq import-faiss"

    index: Annotated[InputFile, Option(argument=True)] = Field(description="trained FAISS index")
    output: NewModel = Field(description="model directory to write")
    overwrite: Overwrite = False
