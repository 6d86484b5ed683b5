"""Option types, common options, exit codes and output that the commands share."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from raypq import console, exits, heartbeat, json_lines

if TYPE_CHECKING:
    from raypq.config import Job

Command = Callable[..., Any]
_OF_CLICK = (click.ClickException, click.exceptions.Exit, click.Abort)


class Place(click.types.StringParamType):
    """A path or URI that is not empty, as ``"$OUTPUT"`` is where the variable is not set."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(super().convert(value, param, ctx))
        if not text.strip():
            self.fail(f"expected a path or URI, found {text!r}.", param, ctx)
        return text


class Number(click.FloatRange):
    """A finite number in a range."""

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

    def _describe_range(self) -> str:
        """The range in a help text; without bounds there is none."""
        low = "" if self.min is None else f"{_plain(self.min)}{'<' if self.min_open else '<='}"
        high = "" if self.max is None else f"{'<' if self.max_open else '<='}{_plain(self.max)}"
        if low and not high:
            return f"x{'>' if self.min_open else '>='}{_plain(self.min)}"
        return f"{low}x{high}" if high else ""


def _plain(bound: float | None) -> str:
    """A bound without the decimal point of a whole number."""
    return f"{bound:.0f}" if bound is not None and bound == int(bound) else f"{bound}"


PLACE = Place()


def verb(command: Command) -> Command:
    """Adds the options that every command has, and turns errors into messages and exit codes."""

    @click.option("--quiet", is_flag=True, help="Warnings and results only.")
    @click.option("--log-json", is_flag=True, help="One JSON object a log line, the result too.")
    @click.option("--debug", is_flag=True, help="Tracebacks and debug lines.")
    @wraps(command)
    def run(*args: Any, quiet: bool, log_json: bool, debug: bool, **kwargs: Any) -> None:
        with json_lines.wrapped(active=log_json) as streams:
            console.set_up(quiet=quiet, as_json=log_json, debug=debug, streams=streams)
            try:
                with exits.handle_errors(debug=debug, reraise=_OF_CLICK), heartbeat.watched():
                    command(*args, **kwargs)
            except click.ClickException as error:
                if not log_json:
                    raise
                console.fail(error.format_message(), kind=type(error).__name__)
                sys.exit(error.exit_code)

    return run


def show_result(job: Job, returned: Any) -> None:
    """Prints the result of a job by what its function returned."""
    from raypq.monitoring.results import result_of

    show(result_of(job, returned))


def show(result: dict[str, Any]) -> None:
    """Prints a result as JSON: in one line where every line is an object (``--log-json``)."""
    console.emit(json.dumps(result, indent=None if console.structured() else 2, default=str))
