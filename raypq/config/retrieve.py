"""Jobs that find images: search, near-duplicates, their figures, and FAISS in and out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raypq.config.job import ClusterSettings, Columns, Job
from raypq.config.settings import Distance, Metric, Positive, Settings


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
