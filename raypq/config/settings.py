"""The base of all settings, and how they are read from files and from ``key=value``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypq.errors import ConfigError

Precision = Literal["fp32", "bf16"]
Metric = Literal["l2", "cosine", "dot"]
Distance = Literal["adc", "sdc"]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, errors that name the key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "settings") -> Self:
        """Builds the settings from plain values.

        Raises:
            ConfigError: naming the key, the value and what is allowed.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            lines = []
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"])
                if item["type"] == "extra_forbidden":
                    allowed = ", ".join(_allowed(cls, item["loc"][:-1]))
                    lines.append(f"{origin}: unknown key '{key}'; allowed: {allowed}")
                elif item["type"] == "missing":
                    lines.append(f"{origin}: key '{key}' is required")
                else:
                    lines.append(f"{origin}: key '{key}': {item['msg']}, found {item['input']!r}")
            raise ConfigError("\n".join(lines)) from None
        except TypeError as error:  # a key that is not a string
            raise ConfigError(f"{origin}: {error}") from None


def _allowed(settings: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys of a section: ``place`` leads to it through lists and sections."""
    for part in place:
        if isinstance(part, str) and part in settings.model_fields:
            kinds = [settings.model_fields[part].annotation]
            while kinds:
                kind = kinds.pop()
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    settings = kind
                kinds += get_args(kind)
    return sorted(settings.model_fields)


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a valid config: {error}") from None
    try:
        values = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a valid config: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def parse_assignments(pairs: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Turns ``key=value`` strings into a mapping; values are read as YAML scalars."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found or not key.strip():
            raise ConfigError(f"--set {pair!r}: expected key=value")
        values[key.strip()] = _scalar(value)
    return values


def _scalar(text: str) -> Any:
    # YAML 1.1 reads 1e4 as a string; people mean a number.
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
