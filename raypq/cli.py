"""The command line: parse, build the job, call, print. No logic, and no heavy imports."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raypq import __version__, console
from raypq.errors import RaypqError

if TYPE_CHECKING:
    from raypq.config import ClusterSettings, Columns, Settings

Command = Callable[..., Any]
_INTERRUPTED = 130


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_cluster = _options(
    click.option(
        "--cluster", default="local", show_default=True, help="none, local, or a Ray address."
    ),
    click.option("--workers", type=click.IntRange(1), help="Workers. [default: CPU cores]"),
    click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="CPU threads of a worker.",
    ),
    click.option("--gpus-per-worker", type=click.FloatRange(0), default=0.0, show_default=True),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
)
_bad_shard = click.option(
    "--on-bad-shard",
    type=click.Choice(["fail", "quarantine"]),
    default="fail",
    show_default=True,
    help="Fail after all good shards are done, or leave bad ones out and record them.",
)
_columns = _options(
    click.option("--id-column", default="id", show_default=True),
    click.option("--feature-column", default="feature", show_default=True),
    click.option("--label-column", default="label", show_default=True),
    click.option("--feature-width", type=click.IntRange(1), help="Needed for fixed_size_binary."),
)


def _verb(command: Command) -> Command:
    """Adds the options that every verb has, and turns errors into messages and exit codes."""

    @click.option("--quiet", is_flag=True, help="Warnings and results only.")
    @click.option("--log-json", is_flag=True, help="One JSON object a log line.")
    @click.option("--debug", is_flag=True, help="Tracebacks and debug lines.")
    @wraps(command)
    def run(*args: Any, quiet: bool, log_json: bool, debug: bool, **kwargs: Any) -> None:
        console.set_up(quiet=quiet, as_json=log_json, debug=debug)
        try:
            command(*args, **kwargs)
        except RaypqError as error:
            if debug:
                raise
            click.echo(f"raypq: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if debug:
                raise
            click.echo(f"raypq: {type(error).__name__}: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("raypq: interrupted", err=True)
            sys.exit(_INTERRUPTED)

    return run


def _where(options: dict[str, Any]) -> ClusterSettings:
    from raypq.config import ClusterSettings

    values = {
        name: options.pop(name)
        for name in ("cluster", "workers", "threads", "gpus_per_worker", "device")
    }
    values["workers"] = values["workers"] or os.cpu_count() or 1
    return ClusterSettings.parse(values, origin="command line")


def _columns_of(options: dict[str, Any]) -> Columns:
    from raypq.config import Columns

    names = {
        "id": options.pop("id_column"),
        "feature": options.pop("feature_column"),
        "label": options.pop("label_column"),
        "width": options.pop("feature_width"),
    }
    return Columns.parse(names, origin="command line")


def _job(cls: type[Settings], options: dict[str, Any]) -> Any:
    return cls.parse(options, origin="command line")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Compress image features to a few dozen bytes each, and classify straight from the codes.

    \b
    raypq demo                                   the whole path on generated data
    raypq train pqzsl --features F --classes C --output MODEL
    raypq encode --model MODEL --features F --output CODES
    raypq classify --model MODEL --codes CODES --classes C --output PREDICTIONS
    raypq evaluate classification --predictions PREDICTIONS --classes C
    """


@main.command()
@click.argument("method")
@click.option(
    "--features",
    required=True,
    multiple=True,
    help="Parquet folder, file or glob; may be repeated.",
)
@click.option("--classes", help="Class table (Parquet).")
@click.option("--output", required=True, help="Model directory to write.")
@click.option("--config", type=click.Path(), help="YAML file of method settings.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A method setting, such as M=37.",
)
@click.option("--tune", is_flag=True, help="Choose settings on held-out training classes first.")
@click.option(
    "--cache-gb",
    type=click.FloatRange(0),
    default=4.0,
    show_default=True,
    help="Features that a worker keeps in memory.",
)
@_bad_shard
@_columns
@_cluster
@_verb
def train(
    method: str, config: str | None, assignments: tuple[str, ...], cache_gb: float, **options: Any
) -> None:
    """Train METHOD (pq, opq, pqzsl, vq) and save its model.

    \b
    Example:
      raypq train pqzsl --features train/ --classes classes.parquet --output model --set M=37
    """
    from raypq import api
    from raypq.config import TrainJob, parse_assignments, read_mapping

    settings = {**(read_mapping(config) if config else {}), **parse_assignments(assignments)}
    where, columns = _where(options), _columns_of(options)
    options |= {
        "method": method,
        "settings": settings,
        "features": list(options["features"]),
        "cache_bytes": int(cache_gb * 2**30),
        "where": where,
        "columns": columns,
    }
    _print(api.train(_job(TrainJob, options)).summary)


@main.command()
@click.option("--model", required=True, help="Model directory.")
@click.option(
    "--features",
    required=True,
    multiple=True,
    help="Parquet folder, file or glob; may be repeated.",
)
@click.option("--output", required=True, help="Code store to write a version of.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the projection; bf16 is faster and the share of codes it changes is reported.",
)
@_bad_shard
@_columns
@_cluster
@_verb
def encode(**options: Any) -> None:
    """Turn features into codes: one code file for each shard, one new version of the store.

    \b
    Example:
      raypq encode --model model --features 'features/*.parquet' --output codes
    """
    from raypq import api
    from raypq.config import EncodeJob

    where, columns = _where(options), _columns_of(options)
    options |= {"features": list(options["features"]), "where": where, "columns": columns}
    version = api.encode(_job(EncodeJob, options))
    changed = {
        key: version.summary[key]
        for key in ("codes_changed_by_precision",)
        if key in version.summary
    }
    _print(_told(version, options["output"]) | changed)


@main.command()
@click.option(
    "--features",
    required=True,
    multiple=True,
    help="Parquet folder, file or glob; may be repeated.",
)
@click.option("--output", required=True, help="Folder to write; shards keep their names.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32")
@_bad_shard
@_columns
@_cluster
@_verb
def repack(**options: Any) -> None:
    """Rewrite a feature store to the layout that reads fastest (fixed_size_binary).

    \b
    Example:
      raypq repack --features features/ --output fast/
    """
    from raypq import api
    from raypq.config import RepackJob

    where, columns = _where(options), _columns_of(options)
    options |= {"features": list(options["features"]), "where": where, "columns": columns}
    _print(api.repack(_job(RepackJob, options)))


@main.command()
@click.option("--model", required=True, help="Model directory.")
@click.option("--codes", help="Code store.")
@click.option(
    "--version", type=click.IntRange(1), help="Version of the code store. [default: latest]"
)
@click.option(
    "--features", multiple=True, help="Instead of codes: score features exactly, uncompressed."
)
@click.option("--classes", required=True, help="Class table (Parquet).")
@click.option(
    "--candidates",
    default="all",
    show_default=True,
    help="all, seen, unseen, 2-hops, 3-hops, most-N, least-N, a file, or several joined by +.",
)
@click.option("--top-k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--metric", type=click.Choice(["l2", "cosine", "dot"]), help="[default: the model's]")
@click.option(
    "--calibration",
    default="0",
    show_default=True,
    help="Taken off seen classes' scores: a number, or 'model'.",
)
@click.option("--output", required=True, help="Prediction store to write a version of.")
@_bad_shard
@_columns
@_cluster
@_verb
def classify(**options: Any) -> None:
    """Classify stored codes: the best classes of every image, from lookup tables.

    \b
    Example:
      raypq classify --model model --codes codes --classes classes.parquet \\
          --candidates unseen --top-k 10 --output predictions
    """
    from raypq import api
    from raypq.config import ClassifyJob

    where, columns = _where(options), _columns_of(options)
    options |= {"features": list(options["features"]) or None, "where": where, "columns": columns}
    version = api.classify(_job(ClassifyJob, options))
    _print(_told(version, options["output"]) | {"accuracy": version.summary["result"]["accuracy"]})


@main.group()
def evaluate() -> None:
    """Compare results with labels."""


@evaluate.command("classification")
@click.option("--predictions", required=True, help="Prediction store.")
@click.option("--version", type=click.IntRange(1), help="Its version. [default: latest]")
@click.option("--classes", required=True, help="Class table (Parquet).")
@click.option(
    "--split",
    default="all",
    show_default=True,
    help="Judge only images of these classes (as --candidates).",
)
@click.option("--calibration", type=float, help="γ for calibrated stacking. [default: the model's]")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures here too.")
@_cluster
@_verb
def evaluate_classification(json_file: str | None, **options: Any) -> None:
    """ZSL and GZSL accuracy, H, hit@k and the seen-unseen curve of a prediction store.

    \b
    Example:
      raypq evaluate classification --predictions predictions --classes classes.parquet
    """
    from raypq import api
    from raypq.config import EvaluateJob

    options["where"] = _where(options)
    result = api.evaluate(_job(EvaluateJob, options))
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(result)


@main.group()
def snapshots() -> None:
    """Look at the versions of a store, and clear what none of them needs."""


@snapshots.command("list")
@click.argument("store")
@_verb
def snapshots_list(store: str) -> None:
    """One line for each version of STORE, oldest first."""
    from raypq.stages import history

    for line in history.listing(store):
        click.echo(json.dumps(line))


@snapshots.command("show")
@click.argument("store")
@click.option("--version", type=click.IntRange(1), help="[default: latest]")
@_verb
def snapshots_show(store: str, version: int | None) -> None:
    """Everything that a version of STORE says of itself."""
    from raypq.stages import history

    _print(history.show(store, version))


@snapshots.command("verify")
@click.argument("store")
@click.option("--version", type=click.IntRange(1), help="[default: latest]")
@click.option("--sha256", is_flag=True, help="Read every byte, not only the sizes.")
@_verb
def snapshots_verify(store: str, version: int | None, sha256: bool) -> None:
    """Check that every file of a version of STORE is there as it was written."""
    from raypq.stages import history

    _print(history.verify(store, version, content=sha256))


@snapshots.command("diff")
@click.argument("store")
@click.argument("old", type=click.IntRange(1))
@click.argument("new", type=click.IntRange(1), required=False)
@_verb
def snapshots_diff(store: str, old: int, new: int | None) -> None:
    """Shards that versions OLD and NEW (default: the latest) of STORE do not share."""
    from raypq.stages import history

    _print(history.diff(store, old, new))


@snapshots.command("gc")
@click.argument("store")
@click.option("--keep", type=click.IntRange(1), help="Latest versions to retain. [default: all]")
@click.option("--older-than-days", type=click.FloatRange(0), default=7.0, show_default=True)
@click.option("--delete", "remove", is_flag=True, help="Remove them; otherwise only tell.")
@_verb
def snapshots_gc(store: str, keep: int | None, older_than_days: float, remove: bool) -> None:
    """Find files in STORE that no retained version names; remove them with --delete.

    \b
    Example:
      raypq snapshots gc codes --keep 30 --delete
    """
    from raypq.stages import history

    found = history.collect(store, keep=keep, older_than_days=older_than_days, remove=remove)
    _print(
        {
            "removed" if remove else "would remove": {
                "versions": list(found.versions),
                "files": len(found.files),
                "bytes": found.bytes,
            }
        }
    )


@main.command()
@click.argument(
    "name",
    type=click.Choice(["all", "classify", "search", "encode", "train", "read", "pipeline"]),
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--classes", help="Class table for the pipeline bench. [default: generated]")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures here too.")
@_verb
def bench(name: str, threads: int, classes: str | None, json_file: str | None) -> None:
    """Run raypq and its peers side by side, in one process on the same data.

    \b
    Example:
      raypq bench all --json results.json
    """
    from raypq.bench import report

    names = list(report.NAMES) if name == "all" else [name]
    report.run(names, threads=threads, classes=classes, json_file=json_file)


@main.command()
@_verb
def doctor() -> None:
    """Say what this installation can do: kernels, instruction set, threads, torch, CUDA.

    \b
    Example:
      raypq doctor
    """
    from raypq import kernels

    _print(kernels.active())


@main.command()
@click.option(
    "--output", default="demo-output", show_default=True, help="Folder to write everything to."
)
@click.option("--images", type=click.IntRange(1000), default=40_000, show_default=True)
@click.option("--classes", "n_classes", type=click.IntRange(40), default=400, show_default=True)
@click.option(
    "--dims", type=click.IntRange(16), default=512, show_default=True, help="Feature width."
)
@click.option(
    "--sub-codebooks",
    "M",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Bytes per image.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_cluster
@_verb
def demo(**options: Any) -> None:
    """Generate an ImageNet-like feature store and run the whole path on it.

    \b
    Example:
      raypq demo --images 100000 --classes 1000
    """
    from raypq import demo as story

    where = _where(options)
    click.echo(story.run(story.DemoSettings(**options), where))


def _told(version: Any, store: str) -> dict[str, Any]:
    return {
        "store": store,
        "version": version.version,
        "images": version.rows,
        "shards": len(version.shards),
        "bytes": sum(receipt.bytes for receipt in version.shards),
        "quarantined": [f"{item.uri}: {item.reason}" for item in version.quarantined],
        "seconds": version.summary["seconds"],
    }


def _print(result: dict[str, Any]) -> None:
    click.echo(json.dumps(result, indent=2, default=str))
