"""The command line: parse options, build the job, call the API, print the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from raypq import exits
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
    quickstart,
    report,
    representation,  # noqa: F401 - adds to `evaluate`
    results,
    retrieval,
    snapshots,
    training,
)

_GROUPS = {
    "Main path": (
        quickstart.quickstart,
        training.train,
        encoding.encode,
        classification.classify,
        classification.evaluate,
    ),
    "Retrieval": (
        retrieval.search,
        retrieval.duplicates,
        retrieval.deduplicate,
        retrieval.neighbors,
        retrieval.cluster,
        retrieval.export_faiss,
        retrieval.import_faiss,
    ),
    "Nightly": (nightly.reindex, snapshots.snapshots),
    "Results": (results.export, results.predictions),
    "Data": (
        preparation.extract,
        preparation.embed_classes,
        preparation.repack,
        preparation.split,
        preparation.import_xlsa17,
    ),
    "New classes and papers": (
        classification.add_classes,
        classification.infer_semantics,
        training.ablation,
    ),
    "Tools": (demo.demo, report.report, plan.plan, bench.bench, doctor.doctor),
}


_AS_JSON = f"{__name__}.as_json"  # key of the context: --log-json is among the arguments


class _Grouped(click.Group):
    """A group that lists its commands by topic, and reports usage errors as the log is written."""

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **options: Any
    ) -> click.Context:
        as_json = "--log-json" in args
        with _usage_errors(as_json=as_json):
            context = super().make_context(info_name, args, *more, **options)
        context.meta[_AS_JSON] = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _usage_errors(as_json=ctx.meta[_AS_JSON]):
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                rows = [(str(one.name), one.get_short_help_str(limit=80)) for one in commands]
                formatter.write_dl(rows)


@contextmanager
def _usage_errors(*, as_json: bool) -> Iterator[None]:
    """Reports errors of the command line as JSON lines, also where no option is parsed yet."""
    try:
        yield
    except click.ClickException as error:
        if not as_json:
            raise
        exits.refuse_usage(error.format_message(), kind=type(error).__name__, code=error.exit_code)


@click.group(
    cls=_Grouped,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Compress image features to a few dozen bytes each; classify and search by the codes alone.

    \b
    raypq demo                                   every step below on generated data
    raypq quickstart --images PICTURES --names NAMES --output FOLDER
    raypq train pqzsl --features F --classes C --output MODEL
    raypq encode --model MODEL --features F --output CODES
    raypq classify --codes CODES --classes C --output PREDICTIONS
    raypq evaluate classification --predictions PREDICTIONS --classes C
    raypq search --codes CODES --queries F --output FOUND
    """


for commands in _GROUPS.values():
    for command in commands:
        main.add_command(command)
