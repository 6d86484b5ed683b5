"""Commands whose options are the fields of a settings class.

``JobCommand`` makes an option of every field: its name, type, bounds, default and help are those
of the field (``raypq.config.option`` notes the exceptions). Every such command takes ``--config``,
a file of the same settings; options count over it. The class is imported when a command is used
or its help is shown, so that ``raypq --help`` needs no pydantic.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from raypq import console
from raypq.cli.options import PLACE, Command, Number, verb

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from raypq.config import Job
    from raypq.config.option import Option
    from raypq.config.reading import FromFile

_COMMAND_LINE = "command line"
_TITLES = {  # of sections, in the help
    "columns": "Columns and images (section columns of a config file)",
    "where": "Workers (section where of a config file)",
    "drift": "Limits of drift (section drift of a config file)",
}
_COMMON = {"--config", "--quiet", "--log-json", "--debug", "--help"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Field:
    """A field of the settings, or of a section of them, and its option.

    Attributes:
        path: the keys that lead to it.
    """

    path: tuple[str, ...]
    parameter: click.Parameter
    unit: float
    integer: bool

    @property
    def is_mapping(self) -> bool:
        """True for ``--set KEY=VALUE``."""
        return "--set" in self.parameter.opts

    @property
    def label(self) -> str:
        """What the command line calls it."""
        if isinstance(self.parameter, click.Argument):
            return str(self.parameter.name).upper()
        return self.parameter.opts[0]

    def value(self, given: Any) -> Any:
        """A value of the command line as the field takes it."""
        if self.unit != 1:
            return int(given * self.unit) if self.integer else given * self.unit
        if isinstance(given, tuple):
            return list(given)
        return given


class JobCommand(click.Command):
    """A command whose options are the fields of a settings class.

    Args:
        settings: the class, as ``module:Class``.
    """

    def __init__(self, *args: Any, settings: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self._settings = settings

    @cached_property
    def settings(self) -> type[Job]:
        """The settings class."""
        module, _, name = self._settings.partition(":")
        return getattr(importlib.import_module(module), name)

    @cached_property
    def fields(self) -> Sequence[_Field]:
        """Every field with an option: those of the class, then those of its sections."""
        return list(_fields(self.settings))

    @cached_property
    def _config(self) -> click.Option:
        return click.Option(
            ["--config"],
            type=PLACE,
            metavar="FILE",
            help="YAML or JSON file of these settings, with _ for - in a key; options count over "
            "it.",
        )

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options of the fields, ``--config``, and the command's own."""
        return [
            *(field.parameter for field in self.fields),
            self._config,
            *super().get_params(ctx),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments; the error of an unknown option names those that there are."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = sorted(
                option
                for parameter in self.get_params(ctx)
                for option in parameter.opts
                if option.startswith("--")
            )
            raise click.UsageError(
                f"unknown option {error.option_name} of {ctx.command_path}; allowed: "
                f"{', '.join(known)}",
                ctx=ctx,
            ) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options by topic: the command's own, those of its sections, common ones."""
        titles = {id(field.parameter): _TITLES.get(field.path[0]) for field in self.fields}
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            common = _COMMON & {*parameter.opts}
            title = titles.get(id(parameter)) or ("Common options" if common else "Options")
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                groups.setdefault(title, []).append(record)
        for title in ("Options", *_TITLES.values(), "Common options"):
            if rows := groups.get(title):
                with formatter.section(title):
                    formatter.write_dl(rows)

    def read_config(self, path: str, given: Mapping[tuple[str, ...], Any]) -> FromFile:
        """The settings in a file.

        Args:
            given: the options, by path of keys.
        """
        from raypq.config import read_mapping

        return read_mapping(path)

    def check(self, values: FromFile) -> None:
        """A further check of the settings, before they are parsed."""

    def job_of(self, values: dict[str, Any]) -> Job:
        """Takes the options of the fields, and ``config``, out of a command's values.

        Raises:
            ConfigError: a setting that is unknown, missing or wrong; outputs among the inputs.
        """
        from raypq.config.reading import FromFile
        from raypq.data.store import overlap

        given = {}
        for field in self.fields:
            value = values.pop(str(field.parameter.name))
            if value is not None and value != ():
                given[field.path] = _assigned(value) if field.is_mapping else field.value(value)
        config = values.pop("config")
        file = self.read_config(config, given) if config else FromFile({})
        merged = file.with_options(given, _COMMAND_LINE)
        self.check(merged)
        names = self._names(file, given) if config else self._names({}, given)
        job = self.settings.parse(merged, origin=config or _COMMAND_LINE, names=names)
        overlap.refuse(
            job,
            config=overlap.read_file("--config", config),
            json=overlap.written_file("--json", values.get("json_file")),
        )
        return job

    def _names(
        self, file: Mapping[str, Any], given: Mapping[tuple[str, ...], Any]
    ) -> dict[str, str]:
        """What errors call the settings that are not in the file: their options."""
        names = {}
        for field in self.fields:
            dotted = ".".join(field.path)
            if field.path in given or not file:
                names[dotted] = field.label
            elif field.path[0] not in file:
                names[dotted] = f"key '{dotted}' ({field.label})"
        return names


def job_command(
    settings: str,
    name: str | None = None,
    *,
    group: click.Group | None = None,
    cls: type[JobCommand] = JobCommand,
) -> Callable[[Command], JobCommand]:
    """Makes a command of ``function(job, **others)``; ``others`` are options of its own.

    Args:
        settings: the class of the job, as ``module:Class``.
        group: where to add the command.
    """

    def decorate(function: Command) -> JobCommand:
        @verb
        @wraps(function)
        def run(**values: Any) -> None:
            command = click.get_current_context().command
            assert isinstance(command, JobCommand)
            job = command.job_of(values)
            function(job, **values)

        command = click.command(name, cls=cls, settings=settings)(run)
        if group:
            group.add_command(command)
        return command

    return decorate


def _assigned(pairs: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``--set``; a key that comes twice is reported, and the last one counts."""
    from raypq.config import parse_assignments

    def replaced(key: str, value: Any, before: Any) -> None:
        console.warn(f"--set {key} is given twice: {value!r} counts, {before!r} does not")

    return parse_assignments(pairs, replaced=replaced)


def _fields(
    cls: type[BaseModel],
    defaults: BaseModel | None = None,
    path: tuple[str, ...] = (),
    prefix: str = "",
) -> Iterator[_Field]:
    """The fields of a class, then those of its sections.

    Args:
        defaults: the section's own default, which may differ from those of its class.
    """
    from pydantic import BaseModel

    sections = []
    for key, field in cls.model_fields.items():
        note = _note(field)
        if note.file_only:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            sections.append(_fields(kind, field.default, (*path, key), note.prefix))
            continue
        default = getattr(defaults, key) if defaults else field.get_default()
        if field.default_factory:  # computed where it is needed
            default = None
        name = "__".join((*path, key))
        yield _Field(
            path=(*path, key),
            parameter=(
                _argument(name, field, note)
                if note.argument
                else _option(name, prefix + key, field, note, default)
            ),
            unit=note.unit,
            integer=_kinds(kind, ())[0][0] is int,
        )
    for section in sections:
        yield from section


def _note(field: FieldInfo) -> Option:
    from raypq.config.option import Option

    return next((note for note in field.metadata if isinstance(note, Option)), Option())


def _argument(name: str, field: FieldInfo, note: Option) -> click.Argument:
    kind = _type(field, note)
    number = -1 if kind.multiple else 1
    metavar = f"[{name.upper()}]" if field.default is None else name.upper()
    return click.Argument([name], type=kind.type, required=False, nargs=number, metavar=metavar)


def _option(name: str, key: str, field: FieldInfo, note: Option, default: Any) -> click.Option:
    plain = f"--{key.replace('_', '-')}"
    kind = _type(field, note)
    if kind.switch:
        return click.Option(
            [name, f"{plain}/--no-{plain[2:]}"], default=None, help=_help(field, None)
        )
    return click.Option(
        [name, *(note.names or [plain])],
        type=kind.type,
        multiple=kind.multiple,
        nargs=kind.values,
        metavar=note.metavar,
        help=_help(field, default),
    )


def _help(field: FieldInfo, default: Any) -> str:
    """The description as a sentence, and the default in brackets."""
    text, _, default_text = (field.description or "").partition("default: ")
    text = text.rstrip("; ")
    sentence = f"{text[:1].upper()}{text[1:]}." if text else ""
    if field.is_required():
        sentence += "  [required]"
    elif default_text or default not in (None, (), []):
        sentence += f"  [default: {default_text or _shown(default)}]"
    return sentence.strip()


def _shown(default: Any) -> str:
    several = default if isinstance(default, list | tuple) else [default]
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in several)


@dataclass(frozen=True, kw_only=True)
class _Type:
    """How click reads a field: ``values`` in each of its ``multiple`` occurrences."""

    type: click.ParamType[Any] | None = None
    multiple: bool = False
    switch: bool = False
    values: int = 1


def _type(field: FieldInfo, note: Option) -> _Type:
    (kind, notes), *others = _kinds(field.annotation, field.metadata)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is dict:
        return _Type(type=click.STRING, multiple=True)
    if origin in (list, tuple):
        (element, inner), *_ = _kinds(parts[0], ())
        length = _bound(notes, "max_length")
        if length is not None and length == _bound(notes, "min_length"):
            return _Type(type=_scalar(element, inner, note), values=length)
        return _Type(type=_scalar(element, inner, note), multiple=True)
    if kind is bool:
        return _Type(switch=True)
    return _Type(type=click.STRING if others else _scalar(kind, notes, note))


def _kinds(annotation: Any, notes: Sequence[Any]) -> list[tuple[Any, Sequence[Any]]]:
    """The kinds that an annotation allows, but None, each with its notes."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(parts[0], [*notes, *parts[1:]])
    if origin in (Union, types.UnionType):
        return [kind for part in parts for kind in _kinds(part, notes) if part is not type(None)]
    return [(annotation, notes)]


def _scalar(kind: Any, notes: Sequence[Any], note: Option) -> click.ParamType[Any]:
    values = get_args(kind) if get_origin(kind) is Literal else ()
    if values and isinstance(values[0], int):
        return click.IntRange(min(values), max(values))
    if values:
        return click.Choice(list(values))
    low, high = _bound(notes, "ge"), _bound(notes, "le")
    above, below = _bound(notes, "gt"), _bound(notes, "lt")
    if kind is int and note.unit == 1:
        return click.IntRange(low, high)
    if kind in (int, float):
        return Number(
            low if above is None else above,
            high if below is None else below,
            min_open=above is not None,
            max_open=below is not None,
        )
    return _path() if any(_names_path(item) for item in notes) else click.STRING


def _path() -> click.ParamType[Any]:
    """Text that the settings check: their errors name the option."""
    kind = click.types.StringParamType()
    kind.name = "path"
    return kind


def _names_path(note: Any) -> bool:
    from raypq.config.places import Reads, Writes

    return isinstance(note, Reads | Writes)


def _bound(notes: Sequence[Any], name: str) -> Any:
    """A bound among the notes of an annotation, those of its fields included."""
    for note in notes:
        inner = _bound(note.metadata, name) if hasattr(note, "metadata") else None
        found = getattr(note, name, None) if inner is None else inner
        if found is not None:
            return found
    return None
