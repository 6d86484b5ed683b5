"""``raypq quickstart``: from pictures and the names of classes to codes and predictions.

It runs the commands of the main path one after the other and prints each, so that any of them can
be run again with other settings.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypq import api, console
from raypq.config import (
    ClassifyJob,
    Columns,
    EmbedClassesJob,
    EncodeJob,
    ExtractJob,
    QuickstartSettings,
    TrainJob,
)
from raypq.data import drawings
from raypq.data.classes import ClassTable
from raypq.data.storage import atomic_write, exists, is_local, join, local_path, open_parquet
from raypq.data.store import overlap
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import ConfigError, InputError

_DRAWN = 20  # pictures of each class
_MOST = 64  # sub-codebooks
_CODEWORDS = 256  # at most, and no more than pictures
_LEAST_WIDTH = 4  # dimensions of a sub-codebook, where all of the features' space is kept
_SHOWN = 5  # names in an error
J = TypeVar("J")
R = TypeVar("R")


def run(settings: QuickstartSettings) -> str:
    """Runs every step; returns the text to print.

    Raises:
        ConfigError: pictures without labels, whose backbone is another network than the encoder.
        InputError: labels that are not among the names.
    """
    overlap.refuse(settings)
    return _Steps(settings).run()


@dataclass
class _Steps:
    """The commands with their paths below the output, and the seconds of each."""

    settings: QuickstartSettings
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> str:
        """All steps; the text to print."""
        images, names = self._pictures()
        features = self._extract(images)
        labels = _labels(self._at("features"), features)
        table = self._embed(names, labels)
        self._train(table, labels)
        model, codes = self._at("model"), self._at("codes")
        self._do(
            _command("encode", model=model, features=self._at("features"), output=codes),
            api.encode,
            EncodeJob(
                model=model,
                features=[self._at("features")],
                output=codes,
                where=self.settings.where,
            ),
        )
        scores = self._classify(codes, labels)
        return self._summary(images, features.rows, scores)

    def _at(self, name: str) -> str:
        return join(self.settings.output, name)

    def _do(self, command: str, step: Callable[[J], R], job: J) -> R:
        """Runs a step after saying its command."""
        console.say(f"raypq {command}")
        start = time.monotonic()
        result = step(job)
        self.seconds[command.split()[0]] = time.monotonic() - start
        return result

    def _pictures(self) -> tuple[list[str], str]:
        """The places of pictures and the file of names: the user's, or drawn ones."""
        settings = self.settings
        if settings.names is not None:
            return settings.images, settings.names
        if not is_local(settings.output):
            raise ConfigError(
                f"output: drawn pictures need a local folder, found {settings.output}; name "
                "pictures (--images, images) and their classes (--names, names)"
            )
        root, names = local_path(self._at("pictures")), local_path(self._at("names.txt"))
        if not names.exists():
            start = time.monotonic()
            names.parent.mkdir(parents=True, exist_ok=True)
            drawn = drawings.draw(root, each=_DRAWN)
            names.write_text("\n".join(drawn) + "\n", encoding="utf-8")
            self.seconds["draw"] = time.monotonic() - start
        return [str(root)], str(names)

    def _extract(self, images: list[str]) -> Snapshot:
        settings = self.settings
        job = ExtractJob(
            images=images,
            backbone=settings.backbone,
            output=self._at("features"),
            network=settings.network,
            columns=settings.columns,
            where=settings.where,
        )
        command = _command("extract", images=images, backbone=job.backbone, output=job.output)
        return self._do(command, api.extract, job)

    def _embed(self, names: str, labels: list[str]) -> ClassTable:
        """The class table, in which classes with labelled pictures are the seen ones."""
        settings = self.settings
        clip = settings.encoder.startswith("open_clip:")
        job = EmbedClassesJob(
            names=names,
            encoder=settings.encoder,
            template=settings.template,
            weights=settings.network.weights if clip else None,
            output=self._at("classes.parquet"),
            overwrite=True,
        )
        command = _command("embed-classes", names=names, encoder=job.encoder, output=job.output)
        self._do(command, api.embed_classes, job)
        table = ClassTable.open(job.output)
        if not labels:
            return table
        _check_labels(labels, table)
        _mark_seen(job.output, labels)
        return ClassTable.open(job.output)

    def _train(self, table: ClassTable, labels: list[str]) -> None:
        model = self._at("model")
        if exists(join(model, "model.json")):
            console.say(f"{model}: kept; remove it to train anew")
            return
        footers = survey(open_sources([self._at("features")], Columns()))
        backbone, encoder = footers.backbone, table.encoder
        aligned = backbone and encoder and backbone.weights == encoder.weights
        if not aligned and not labels:
            raise ConfigError(
                f"backbone, encoder: {self.settings.backbone} and {self.settings.encoder} are "
                "different networks, and the pictures have no labels to learn from; name one "
                "network for both, such as open_clip:ViT-B-32/openai, or put labelled pictures "
                "into a folder for each class"
            )
        sizes = {"M": min(_MOST, len(labels), table.embeddings.shape[1], footers.width)}
        if aligned:
            M = max(1, min(_MOST, footers.width // _LEAST_WIDTH))
            sizes = {"M": M, "D": footers.width // M * M}
        sizes["K"] = min(_CODEWORDS, sum(footers.rows))
        job = TrainJob(
            method="opq" if aligned else "eszsl",
            features=[self._at("features")],
            classes=table.uri,
            output=model,
            settings=sizes,
            where=self.settings.where,
        )
        command = _command(
            f"train {job.method}",
            features=job.features,
            classes=table.uri,
            output=model,
            set=[f"{key}={value}" for key, value in sizes.items()],
        )
        self._do(command, api.train, job)

    def _classify(self, codes: str, labels: list[str]) -> dict[str, Any]:
        """Makes predictions; their evaluation, if there are labels."""
        classes, output = self._at("classes.parquet"), self._at("predictions")
        command = _command("classify", codes=codes, classes=classes, output=output)
        job = ClassifyJob(codes=codes, classes=classes, output=output, where=self.settings.where)
        version = self._do(command, api.classify, job)
        accuracy: dict[str, Any] = version.summary["result"]["accuracy"]
        return accuracy if labels else {}

    def _summary(self, images: list[str], rows: int, accuracy: dict[str, Any]) -> str:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        output, classes = self.settings.output, self._at("classes.parquet")
        shown = _command(f"predictions {shlex.quote(self._at('predictions'))}", classes=classes)
        page = join(output, "report.html")
        report = _command(
            f"report {shlex.quote(output)}", images=images, classes=classes, output=page
        )
        lines = [f"{rows:,} pictures. {seconds}."]
        if "hit@1" in accuracy:
            lines.append(
                f"The right class is first for {accuracy['hit@1_image_mean']:.1%} of the labelled "
                "pictures. A model may have learned from them: judge it by others."
            )
        lines += [
            "",
            "To see them by name, and as a page with pictures:",
            f"  raypq {shown}",
            f"  raypq {report}",
        ]
        return "\n".join(lines)


def _command(words: str, **options: str | Sequence[str]) -> str:
    """A command line of raypq, quoted for a shell."""
    parts = [words]
    for name, value in options.items():
        values = [value] if isinstance(value, str) else value
        parts += [f"--{name} {shlex.quote(one)}" for one in values]
    return " ".join(parts)


def _labels(store: str, version: Snapshot) -> list[str]:
    """The different labels of a feature store, sorted; none where it has no labels."""
    found: set[str] = set()
    for receipt in version.shards:
        with open_parquet(join(store, receipt.path)) as file:
            if file.has("label"):
                column = file.read(columns=["label"]).column("label")
                found |= {*pc.unique(column.drop_null()).to_pylist()}
    return sorted(found)


def _check_labels(labels: list[str], table: ClassTable) -> None:
    """Refuses labels that are not among the names."""
    known = {*table.ids.to_pylist()}
    if missing := [label for label in labels if label not in known]:
        raise InputError(
            table.uri,
            expected=f"all {len(labels)} labels of the pictures among its class_ids",
            found=f"none for {', '.join(map(repr, missing[:_SHOWN]))} ({len(missing)} in all); the "
            "label of a picture is its folder: name the class as the folder, or give both in a "
            "line 'FOLDER, tab, NAME'",
        )


def _mark_seen(uri: str, labels: list[str]) -> None:
    """Writes the column ``seen`` into a class table: whether a class has labelled pictures."""
    with open_parquet(uri) as file:
        table = file.read()
    seen = pc.is_in(table.column("class_id"), value_set=pa.array(labels, pa.string()))
    if "seen" in table.column_names:
        table = table.drop_columns(["seen"])
    with atomic_write(uri) as sink:
        pq.write_table(table.append_column("seen", seen), sink, write_page_checksum=True)
