"""The command line of a job, for people who want to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from raypq.config.job import Job
from raypq.config.option import Option


def command_line(job: Job) -> str:
    """The command of a job with every setting that is not the default, quoted for a shell."""
    return " ".join(shlex.quote(word) for word in [*job.verb.split(), *_words(job, None, "")])


def _words(settings: BaseModel, defaults: BaseModel | None, prefix: str) -> Iterator[str]:
    sections: list[Iterator[str]] = []
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        option = next((item for item in field.metadata if isinstance(item, Option)), Option())
        if isinstance(value, BaseModel):
            sections.append(_words(value, field.default, option.prefix))
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        if option.argument:
            yield from _texts(value)
        elif value != (getattr(defaults, key) if defaults is not None else default):
            name = option.names[0] if option.names else f"--{(prefix + key).replace('_', '-')}"
            yield from _option(name, value, option.unit)
    for section in sections:
        yield from section


def _option(name: str, value: Any, unit: float) -> Iterator[str]:
    if isinstance(value, bool):
        yield name if value else f"{name[:2]}no-{name[2:]}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (name, f"{key}={item}")
    elif isinstance(value, list | tuple) and all(isinstance(item, float) for item in value):
        yield from (name, *map(str, value))  # numbers of one option, such as three of --mean
    else:
        for text in _texts(value if unit == 1 else value / unit):
            yield from (name, text)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(item) for item in values if item is not None]
