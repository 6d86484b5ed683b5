"""``docs/formats.md`` names every key that models and stores hold, and every key of configs whose
name is not that of its option."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest

import raypq
from raypq.cli import main
from raypq.cli.job_command import JobCommand
from raypq.data import model_files, predictions
from raypq.data.network_info import BackboneInfo, EncoderInfo
from raypq.data.store.shard_stats import ShardStats
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Quarantined, Snapshot
from raypq.methods import registry
from raypq.methods.base import Model

ROOT = Path(raypq.__file__).parent
PAGE = (ROOT.parent / "docs" / "formats.md").read_text(encoding="utf-8")
# Of sidecars, which are not for readers; of a type of Arrow in memory.
INTERNAL = {"raypq.files", "raypq.image_file"}


def chapter(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def named(text: str) -> set[str]:
    """Names in code: ``a`` of `a`, `a (x)`, `a: {b, c}`."""
    return {
        name for code in re.findall(r"`([^`\n]+)`", text) for name in re.findall(r"[\w.]+", code)
    }


@pytest.mark.parametrize("kind", [Snapshot, Receipt, Source, Quarantined, ShardStats])
def test_keys_of_a_version_are_named(kind: Any) -> None:
    assert set(kind.model_fields) <= named(chapter("Stores"))


def test_keys_of_a_model_are_named(fit: Callable[..., Model]) -> None:
    names = named(chapter("Models"))
    model = fit(registry.create("pq", {"M": 2, "K": 2}), np.eye(8, 4))
    network = {"weights", "version"}
    assert names >= model_files._KEYS
    assert set(model._files.content) | {"classes", "backbone", "encoder"} <= names
    for info in (BackboneInfo, EncoderInfo):
        assert network < set(info.model_fields) - {"name"} <= names, info
    assert {"ids", "digest", "kind"} <= names  # of classes.json


def test_columns_of_predictions_are_named() -> None:
    schema = predictions.schema(
        id_type=pa.int64(), label=True, groups=True, metadata={}, probability=True, accepted=True
    )
    assert set(schema.names) <= named(chapter("Predictions"))


def test_metadata_of_files_is_named() -> None:
    written = {
        key
        for path in ROOT.rglob("*.py")
        for key in re.findall(r'b?"(raypq\.[A-Za-z_]+)"', path.read_text(encoding="utf-8"))
        if not (ROOT / key.removeprefix("raypq.")).with_suffix(".py").exists()
        and not (ROOT / key.removeprefix("raypq.")).is_dir()  # a module
    }
    written |= {"raypq.backbone", "raypq.encoder"}
    assert written - INTERNAL <= named(PAGE), written - INTERNAL - named(PAGE)


def _verbs(group: click.Group) -> Iterator[JobCommand]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from _verbs(command)
        elif isinstance(command, JobCommand):
            yield command


def test_keys_of_configs_that_differ_from_their_options_are_named() -> None:
    rows = [line for line in chapter("Config files").splitlines() if line.strip().startswith("|")]
    open_sections = {
        section
        for row in rows
        for section, keys in re.findall(r"`(\w+): \{([^}]*)\}`", row)
        if "…" in keys
    }
    missing = set()
    for command in _verbs(main):
        for field in command.fields:
            *sections, key = field.path
            option = field.parameter.opts[0]
            if not sections and option == f"--{key.replace('_', '-')}":
                continue
            if sections and sections[0] in open_sections:
                continue
            if isinstance(field.parameter, click.Argument):
                if key not in named("\n".join(rows)):
                    missing.add((option, field.path))
                continue
            found = [row for row in rows if re.search(rf"`{option}(?![\w-])", row)]
            if not any({*sections, key} <= named(row) for row in found):
                missing.add((option, field.path))
    assert not missing
