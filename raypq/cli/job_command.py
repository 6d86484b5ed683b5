"""Commands whose options are the fields of a settings class.

``JobCommand`` makes an option of every field: its name, type, bounds, default and help are those
of the field (exceptions: ``raypq.config.option``). Every such command takes ``--config``,
a file of the same settings; options override them. The class is imported when a command is used
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
from raypq.optional_packages import leave_out_pandas

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from raypq.config import Job
    from raypq.config.option import Option
    from raypq.config.reading import FromFile

_COMMAND_LINE = "command line"
_TITLES = {  # of sections, in the help
    "network": "Network for images (section network of a config file)",
    "columns": "Columns and images (section columns of a config file)",
    "where": "Workers (section where of a config file)",
    "drift": "Limits of drift (section drift of a config file)",
    "monitoring": "Result and metrics (section monitoring of a config file)",
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
        """Converts a command-line value to the field's unit and type."""
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
            help="YAML or JSON file of these settings, with _ for - in a key; options "
            "override them.",
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
            leave_out_pandas()
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
        option = _option_of(field)
        if option.file_only:
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            sections.append(_fields(annotation, field.default, (*path, key), option.prefix))
            continue
        default = getattr(defaults, key) if defaults else field.get_default()
        if field.default_factory:  # computed where it is needed
            default = None
        name = "__".join((*path, key))
        yield _Field(
            path=(*path, key),
            parameter=(
                _click_argument(name, field, option)
                if option.argument
                else _click_option(name, prefix + key, field, option, default)
            ),
            unit=option.unit,
            integer=_alternatives(annotation, ())[0][0] is int,
        )
    for section in sections:
        yield from section


def _option_of(field: FieldInfo) -> Option:
    """The ``Option`` in the annotation of a field; the default one where there is none."""
    from raypq.config.option import Option

    return next((item for item in field.metadata if isinstance(item, Option)), Option())


def _click_argument(name: str, field: FieldInfo, option: Option) -> click.Argument:
    value_type = _type(field, option)
    number = -1 if value_type.multiple else 1
    metavar = f"[{name.upper()}]" if field.default is None else name.upper()
    return click.Argument(
        [name], type=value_type.type, required=False, nargs=number, metavar=metavar
    )


def _click_option(
    name: str, key: str, field: FieldInfo, option: Option, default: Any
) -> click.Option:
    plain = f"--{key.replace('_', '-')}"
    value_type = _type(field, option)
    if value_type.switch:
        return click.Option(
            [name, f"{plain}/--no-{plain[2:]}"], default=None, help=_help(field, None)
        )
    return click.Option(
        [name, *(option.names or [plain])],
        type=value_type.type,
        multiple=value_type.multiple,
        nargs=value_type.values,
        metavar=option.metavar,
        help=_help(field, default),
    )


def _help(field: FieldInfo, default: Any) -> str:
    """The description as a sentence, and the default in brackets."""
    text, _, default_text = (field.description or "").partition("default: ")
    text = text.rstrip("; ")
    first = text.split(" ", 1)[0]
    as_it_is = not first.rstrip(",;:.").replace("-", "").replace("'", "").isalpha()  # onnx:DIR, .pt
    sentence = f"{text if as_it_is else text[:1].upper() + text[1:]}." if text else ""
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


def _type(field: FieldInfo, option: Option) -> _Type:
    (annotation, constraints), *others = _alternatives(field.annotation, field.metadata)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return _Type(type=click.STRING, multiple=True)
    if origin in (list, tuple):
        (element, inner), *_ = _alternatives(parts[0], ())
        length = _bound(constraints, "max_length")
        if length is not None and length == _bound(constraints, "min_length"):
            return _Type(type=_scalar(element, inner, option), values=length)
        return _Type(type=_scalar(element, inner, option), multiple=True)
    if annotation is bool:
        return _Type(switch=True)
    return _Type(type=click.STRING if others else _scalar(annotation, constraints, option))


def _alternatives(annotation: Any, constraints: Sequence[Any]) -> list[tuple[Any, Sequence[Any]]]:
    """The types that an annotation allows, except None, each with its constraints."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _alternatives(parts[0], [*constraints, *parts[1:]])
    if origin in (Union, types.UnionType):
        return [
            alternative
            for part in parts
            for alternative in _alternatives(part, constraints)
            if part is not type(None)
        ]
    return [(annotation, constraints)]


def _scalar(annotation: Any, constraints: Sequence[Any], option: Option) -> click.ParamType[Any]:
    values = get_args(annotation) if get_origin(annotation) is Literal else ()
    if values and isinstance(values[0], int):
        return click.IntRange(min(values), max(values))
    if values:
        return click.Choice(list(values))
    low, high = _bound(constraints, "ge"), _bound(constraints, "le")
    above, below = _bound(constraints, "gt"), _bound(constraints, "lt")
    if annotation is int and option.unit == 1:
        return click.IntRange(low, high)
    if annotation in (int, float):
        return Number(
            low if above is None else above,
            high if below is None else below,
            min_open=above is not None,
            max_open=below is not None,
        )
    return _path() if any(_is_path(item) for item in constraints) else click.STRING


def _path() -> click.ParamType[Any]:
    """Text that the settings check: their errors name the option."""
    path_type = click.types.StringParamType()
    path_type.name = "path"
    return path_type


def _is_path(constraint: Any) -> bool:
    from raypq.config.places import Reads, Writes

    return isinstance(constraint, Reads | Writes)


def _bound(constraints: Sequence[Any], name: str) -> Any:
    """A bound among the constraints of an annotation, those of its fields included."""
    for constraint in constraints:
        inner = _bound(constraint.metadata, name) if hasattr(constraint, "metadata") else None
        found = getattr(constraint, name, None) if inner is None else inner
        if found is not None:
            return found
    return None
