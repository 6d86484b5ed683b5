"""The command line: parse options, build the job, call the API, print the result."""

from __future__ import annotations

import click

from raypq._version import __version__
from raypq.cli import (
    bench,
    classification,
    demo,
    doctor,
    encoding,
    nightly,
    plan,
    preparation,
    report,
    representation,  # noqa: F401 - adds to `evaluate`
    retrieval,
    snapshots,
    training,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Compress image features to a few dozen bytes each; classify and search straight from the
    codes.

    \b
    raypq demo                                   the whole path on generated data
    raypq train pqzsl --features F --classes C --output MODEL
    raypq encode --model MODEL --features F --output CODES
    raypq classify --model MODEL --codes CODES --classes C --output PREDICTIONS
    raypq evaluate classification --predictions PREDICTIONS --classes C
    raypq search --codes CODES --queries F --output FOUND
    """


for command in (
    training.train,
    encoding.encode,
    preparation.repack,
    preparation.extract,
    preparation.split,
    training.ablation,
    classification.classify,
    classification.evaluate,
    retrieval.search,
    retrieval.duplicates,
    retrieval.export_faiss,
    retrieval.import_faiss,
    classification.add_classes,
    classification.infer_semantics,
    preparation.import_xlsa17,
    nightly.reindex,
    snapshots.snapshots,
    report.report,
    plan.plan,
    bench.bench,
    doctor.doctor,
    demo.demo,
):
    main.add_command(command)
