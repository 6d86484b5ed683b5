"""Jobs of retrieval: search, near-duplicates, evaluation, FAISS exchange."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raypq.config.job import ClusterSettings, Columns, Job
from raypq.config.places import (
    InputFile,
    ModelFolder,
    NewModel,
    NewStore,
    Paths,
    Store,
    Text,
    Uri,
    Writes,
)
from raypq.config.settings import Distance, Metric, Positive, UserSettings


class SearchJob(Job):
    """``raypq search``: queries are features, or (SDC only) ids of stored codes."""

    codes: Store
    version: Annotated[int, Field(ge=1)] | None = None
    model: ModelFolder | None = Field(
        None, description="default: the models that the code store keeps"
    )
    queries: Paths | None = None
    query_ids: InputFile | None = Field(None, description="a file of stored ids, one a line")
    top_k: Positive = 100
    metric: Metric | None = Field(None, description="default: the model's")
    distance: Distance = "adc"
    filter: Text | None = Field(None, description="rows to search, such as label = 'x'")
    ids: InputFile | None = Field(None, description="only rows with these ids: a file, one a line")
    rerank: Positive | None = Field(
        None, description="candidates of a query that are scored again by their original vectors"
    )
    features: Paths | None = Field(None, description="the original vectors, for rerank")
    output: NewStore
    columns: Columns = Columns()


class RetrievalJob(UserSettings):
    """``raypq evaluate retrieval``."""

    where: ClusterSettings = ClusterSettings()
    codes: Store
    version: Annotated[int, Field(ge=1)] | None = None
    model: ModelFolder | None = Field(
        None, description="default: the models that the code store keeps"
    )
    queries: Paths
    metric: Metric | None = Field(None, description="default: the model's")
    distance: Distance = "adc"
    at: tuple[Positive, ...] = Field((1, 10, 100), description="R of the figures @R")
    features: Paths | None = Field(
        None, description="the original vectors: recall is measured against exact search in them"
    )
    columns: Columns = Columns()


class DuplicatesJob(Job):
    """``raypq duplicates``."""

    codes: Store
    version: Annotated[int, Field(ge=1)] | None = None
    model: ModelFolder | None = Field(
        None, description="default: the model that the code store keeps"
    )
    metric: Metric | None = Field(None, description="default: the model's")
    threshold: float = Field(
        description="largest squared distance (l2) or smallest score (cosine, dot) of a pair"
    )
    max_pairs: Positive = Field(
        20_000_000, description="more are refused: they are sorted in one worker's memory"
    )
    output: NewStore


class ExportFaissJob(UserSettings):
    """``raypq export-faiss``."""

    codes: Store
    version: Annotated[int, Field(ge=1)] | None = None
    model: ModelFolder | None = Field(
        None, description="default: the model that the code store keeps"
    )
    metric: Metric | None = Field(None, description="default: the model's")
    output: Annotated[Uri, Writes("index")]


class ImportFaissJob(UserSettings):
    """``raypq import-faiss``."""

    index: InputFile
    output: NewModel
    overwrite: bool = Field(False, description="replace a model that is there already")
