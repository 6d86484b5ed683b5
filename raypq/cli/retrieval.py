"""Commands of retrieval: search, near-duplicates, clusters, evaluation, exchange with FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq.cli import result_tables
from raypq.cli.classification import evaluate
from raypq.cli.job_command import job_command
from raypq.cli.options import show, show_result

if TYPE_CHECKING:
    from raypq.config import (
        ClusterJob,
        DeduplicateJob,
        DuplicatesJob,
        ExportFaissJob,
        ImportFaissJob,
        NeighborsJob,
        RetrievalJob,
        SearchJob,
    )


@job_command("raypq.config:SearchJob")
def search(job: SearchJob) -> None:
    """Find the nearest stored images of every query.

    \b
    Example:
      raypq search --codes codes --queries queries/ --top-k 100 --output results
    """
    from raypq import api

    show_result(job, api.search(job))


@job_command("raypq.config:DuplicatesJob")
def duplicates(job: DuplicatesJob) -> None:
    """Find every pair of stored images within a threshold, from their codes alone.

    \b
    Example:
      raypq duplicates --codes codes --threshold 0.05 --output pairs
    """
    from raypq import api

    show_result(job, api.duplicates(job))


@job_command("raypq.config:DeduplicateJob")
def deduplicate(job: DeduplicateJob) -> None:
    """Group near-duplicates, and list what to keep of a store and what to drop.

    \b
    Example:
      raypq deduplicate --codes codes --threshold 0.05 --output groups --drop-list drop.txt
    """
    from raypq import api

    show_result(job, api.deduplicate(job))


@job_command("raypq.config:NeighborsJob")
def neighbors(job: NeighborsJob) -> None:
    """Find the nearest stored images of every stored image, itself left out.

    \b
    Example:
      raypq neighbors --codes codes --top-k 10 --output graph
    """
    from raypq import api

    show_result(job, api.neighbors(job))


@job_command("raypq.config:ClusterJob")
def cluster(job: ClusterJob) -> None:
    """Divide stored images into clusters by k-means of their codes.

    \b
    Example:
      raypq cluster --codes codes --k 1000 --output clusters
    """
    from raypq import api

    show_result(job, api.cluster(job))


@job_command("raypq.config:ExportFaissJob", "export-faiss")
def export_faiss(job: ExportFaissJob) -> None:
    """Write a code store and its model as a FAISS index.

    \b
    Example:
      raypq export-faiss --codes codes --output codes.faiss
    """
    from raypq import api

    show(api.export_faiss(job))


@job_command("raypq.config:ImportFaissJob", "import-faiss")
def import_faiss(job: ImportFaissJob) -> None:
    """Make a model of the FAISS index INDEX: a trained PQ or OPQ, and its transforms.

    \b
    Example:
      raypq import-faiss opq.faiss --output model
    """
    from raypq import api

    show(api.import_faiss(job))


@job_command("raypq.config:RetrievalJob", "retrieval", group=evaluate)
@result_tables.json_file
def evaluate_retrieval(job: RetrievalJob, json_file: str | None) -> None:
    """Mean average precision of the full ranking, mAP@R, precision@R and recall@R of a code store.

    \b
    Example:
      raypq evaluate retrieval --codes codes --queries queries/ --features features/
    """
    from raypq import api

    result_tables.output(api.evaluate_retrieval(job), json_file, result_tables.retrieval)
