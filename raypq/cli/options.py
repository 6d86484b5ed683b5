"""Options, exit codes and output that the commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from raypq import console, exits

if TYPE_CHECKING:
    from raypq.config import ClusterSettings, Columns, Settings

Command = Callable[..., Any]
_OF_CLICK = (click.ClickException, click.exceptions.Exit, click.Abort)


def options(*several: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(several):
            command = option(command)
        return command

    return decorate


class Place(click.types.StringParamType):
    """A path or URI; an empty one is that of a variable that was not set."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(super().convert(value, param, ctx))
        if not text.strip():
            self.fail(f"expected a path or URI, found {text!r}.", param, ctx)
        return text


class Number(click.FloatRange):
    """A number in a range; NaN and infinity are in none."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        if isinstance(value, str) and not number:
            from raypq.config.reading import lost

            if problem := lost(value, number):
                self.fail(f"{problem}.", param, ctx)
        return number


PLACE = Place()

cluster = options(
    click.option(
        "--cluster", default="local", show_default=True, help="none, local, or a Ray address."
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="Workers. [default: what CPUs and memory allow (raypq doctor)]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="CPU threads of a worker.",
    ),
    click.option(
        "--gpus-per-worker",
        type=Number(0),
        default=0.0,
        show_default=True,
        help="GPUs that Ray keeps for a worker; a part of one, such as 0.5, shares it.",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        help="What a worker computes on.",
    ),
    click.option(
        "--memory-per-worker",
        type=Number(0, min_open=True),
        help="GiB of a worker, which Ray keeps for it. [default: its part of a node, 5 at most]",
    ),
    click.option(
        "--start-timeout",
        type=Number(0, min_open=True),
        default=300.0,
        show_default=True,
        help="Seconds to wait for a first worker on Ray.",
    ),
)
bad_shard = click.option(
    "--on-bad-shard",
    type=click.Choice(["fail", "quarantine"]),
    default="fail",
    show_default=True,
    help="Fail after all good shards are done, or leave bad ones out and record them.",
)
unknown_labels = click.option(
    "--unknown-labels",
    type=click.Choice(["report", "refuse"]),
    default="report",
    show_default=True,
    help="Labels, and candidates in a file, that the class table lacks: warn, or fail.",
)
columns = options(
    click.option("--id-column", default="id", show_default=True),
    click.option("--feature-column", default="feature", show_default=True),
    click.option("--label-column", default="label", show_default=True),
    click.option(
        "--feature-width",
        type=click.IntRange(1),
        help="Values of a vector stored as bytes. [default: the model's, where there is one]",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(1),
        help="Pixels on a side, where the feature column holds encoded images.",
    ),
    click.option(
        "--bad-images",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Undecodable images of a shard that are left out; one more makes it bad.",
    ),
)


def verb(command: Command) -> Command:
    """Adds the options that every verb has, and turns errors into messages and exit codes."""

    @click.option("--quiet", is_flag=True, help="Warnings and results only.")
    @click.option("--log-json", is_flag=True, help="One JSON object a log line, the result too.")
    @click.option("--debug", is_flag=True, help="Tracebacks and debug lines.")
    @wraps(command)
    def run(*args: Any, quiet: bool, log_json: bool, debug: bool, **kwargs: Any) -> None:
        console.set_up(quiet=quiet, as_json=log_json, debug=debug)
        with exits.told(debug=debug, passing=_OF_CLICK):
            command(*args, **kwargs)

    return run


def where_of(options: dict[str, Any]) -> ClusterSettings:
    """Takes the options of ``cluster`` out of those of a verb."""
    from raypq.config import ClusterSettings

    values = {
        name: options.pop(name)
        for name in (
            "cluster",
            "workers",
            "threads",
            "gpus_per_worker",
            "device",
            "memory_per_worker",
            "start_timeout",
        )
    }
    given = {name: value for name, value in values.items() if value is not None}
    return ClusterSettings.parse(given, origin="command line", names=_names())


def columns_of(options: dict[str, Any]) -> Columns:
    """Takes the options of ``columns`` out of those of a verb."""
    from raypq.config import Columns

    names = {
        "id": options.pop("id_column"),
        "feature": options.pop("feature_column"),
        "label": options.pop("label_column"),
        "width": options.pop("feature_width"),
        "image_size": options.pop("image_size"),
        "bad_images": options.pop("bad_images"),
    }
    asked = {
        "id": "--id-column",
        "feature": "--feature-column",
        "label": "--label-column",
        "width": "--feature-width",
    }
    return Columns.parse(names, origin="command line", names=_names() | asked)


def job(cls: type[Settings], options: dict[str, Any]) -> Any:
    """The job that the options make; an error names the option."""
    return cls.parse(options, origin="command line", names=_names())


def _names() -> dict[str, str]:
    """What the values of the command at work are called on the command line."""
    command = click.get_current_context().command
    names = {}
    for parameter in command.params:
        if parameter.name:
            written = isinstance(parameter, click.Option)
            names[parameter.name] = parameter.opts[0] if written else parameter.name.upper()
    return names | {"filter": "--where"} if "filter_" in names else names


def assigned(pairs: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``--set``; a key that comes twice is told, and the last one counts."""
    from raypq.config import parse_assignments

    def replaced(key: str, value: Any, before: Any) -> None:
        console.warn(f"--set {key} is given twice: {value!r} counts, {before!r} does not")

    return parse_assignments(pairs, replaced=replaced)


def told(version: Any, store: str) -> dict[str, Any]:
    """What a verb prints of the version that it made."""
    from raypq.stages.stores.quarantine import reason_of

    return {
        "store": store,
        "version": version.version,
        "images": version.rows,
        "shards": len(version.shards),
        "bytes": sum(receipt.bytes for receipt in version.shards),
        "quarantined": [reason_of(item) for item in version.quarantined],
        "seconds": version.summary["seconds"],
    }


def show(result: dict[str, Any]) -> None:
    """Prints a result: of one line where every line is an object (``--log-json``)."""
    console.emit(json.dumps(result, indent=None if console.structured() else 2, default=str))
