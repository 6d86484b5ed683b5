"""The command line: parse, build the job, call, print. No logic, and no heavy imports."""

from __future__ import annotations

import click

from raypq import __version__
from raypq.cli import (
    answer,
    build,
    learned,
    machine,
    nightly,
    retrieve,
    sizes,
    tell,
    versions,
    zeroshot,
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
    build.train,
    build.encode,
    build.repack,
    learned.extract,
    learned.split,
    learned.ablation,
    answer.classify,
    answer.evaluate,
    retrieve.search,
    retrieve.duplicates,
    retrieve.export_faiss,
    retrieve.import_faiss,
    zeroshot.add_classes,
    zeroshot.infer_semantics,
    zeroshot.import_xlsa17,
    nightly.reindex,
    versions.snapshots,
    tell.report,
    sizes.plan,
    machine.bench,
    machine.doctor,
    machine.demo,
):
    main.add_command(command)
