"""``raypq quickstart``: from pictures and the names of classes to codes and predictions.

It runs the commands of the main path one after the other and prints each, so that any of them can
be run again with other settings.
"""

from __future__ import annotations

import json
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
    Job,
    PredictionsSettings,
    QuickstartSettings,
    ReportSettings,
    TrainJob,
)
from raypq.config.command_line import command_line
from raypq.data import drawings, holdout
from raypq.data.classes import ClassTable
from raypq.data.storage import (
    atomic_write,
    exists,
    is_local,
    join,
    json_text,
    local_path,
    open_parquet,
    read_bytes,
    write_bytes,
)
from raypq.data.store import overlap
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.data.survey import Survey, survey
from raypq.errors import ConfigError, InputError

_DRAWN = 20  # pictures of each class
_MOST = 64  # sub-codebooks
_CODEWORDS = 256  # at most, and fewer than pictures
_LEAST_WIDTH = 4  # dimensions of a sub-codebook, where all of the features' space is kept
_SHOWN = 5  # names in an error
_MARK = "quickstart.json"  # what a run was given
_DRAWN_NAMES = ("pictures", "names.txt")
_NAMES = (
    *_DRAWN_NAMES, "features", "classes.parquet", "training", "model", "codes", "predictions"
)  # fmt: skip
_MODEL = ("backbone", "encoder", "template", "network", "drawn")  # what a model depends on
_HELD_OUT = "held_out"  # noted where the model learned from ``training`` alone
J = TypeVar("J", bound=Job)
R = TypeVar("R")


def run(settings: QuickstartSettings) -> str:
    """Runs every step; returns the text to print.

    Raises:
        ConfigError: the output holds other things, or a model of other networks; pictures without
            labels, whose backbone is another network than the encoder.
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
        self._claim()
        images, names = self._pictures()
        table = self._embed(names)
        features = self._extract(images)
        footers = survey(open_sources([self._at("features")], Columns()))
        labels, unlabelled = _labels(self._at("features"), features)
        aligned = _is_aligned(footers, table)
        if not aligned:
            self._check_labels(labels, unlabelled, table)
            table = self._with_seen(table, labels)
        self._train(table, footers, labels, features, aligned=aligned)
        model, codes = self._at("model"), self._at("codes")
        job = EncodeJob(
            model=model, features=[self._at("features")], output=codes, where=self.settings.where
        )
        self._do(api.encode, job)
        predictions = self._classify(codes)
        accuracy = self._accuracy(predictions, table, self._files("features", features))
        return self._summary(images, features.rows, accuracy)

    def _at(self, name: str) -> str:
        return join(self.settings.output, name)

    def _files(self, name: str, version: Snapshot) -> list[str]:
        return [join(self._at(name), receipt.path) for receipt in version.shards]

    def _noted(self) -> dict[str, Any]:
        """What runs into this folder noted."""
        mark = self._at(_MARK)
        found: dict[str, Any] = json_text.parse(read_bytes(mark)) if exists(mark) else {}
        return found

    def _note(self, **values: Any) -> None:
        noted = json.dumps(self._noted() | values, indent=1)
        write_bytes(self._at(_MARK), noted.encode())

    def _do(self, step: Callable[[J], R], job: J) -> R:
        """Runs a step after saying its command."""
        console.say(command_line(job))
        start = time.monotonic()
        result = step(job)
        self.seconds[job.verb.split()[1]] = time.monotonic() - start
        return result

    def _claim(self) -> None:
        """Notes what this run is given.

        Raises:
            ConfigError: the folder holds things of these names that no run made, or a model of
                other networks.
        """
        given, noted = self.settings, self._noted()
        names = _NAMES if given.names is None else _NAMES[len(_DRAWN_NAMES) :]
        taken = [] if noted else [name for name in names if exists(self._at(name))]
        if taken:
            raise ConfigError(
                f"output: {given.output} holds {', '.join(taken)}, which would be written over; "
                "name another folder (--output, output)"
            )
        values = given.model_dump(mode="json") | {"drawn": given.names is None}
        for name in _MODEL:
            if noted and noted.get(name) != values[name]:
                raise ConfigError(
                    f"{'images' if name == 'drawn' else name}: {given.output} is of another run, "
                    f"with {noted.get(name)!r}; found {values[name]!r}: name another folder "
                    "(--output, output)"
                )
        self._note(**{name: values[name] for name in _MODEL})

    def _pictures(self) -> tuple[list[str], str]:
        """The places of pictures and the file of names: the user's, or drawn ones."""
        settings = self.settings
        if settings.names is not None:
            open_sources(settings.images, settings.columns, "images")  # before a network is loaded
            return settings.images, settings.names
        if not is_local(settings.output):
            raise ConfigError(
                f"output: drawn pictures need a local folder, found {settings.output}; name "
                "pictures (--images, images) and their classes (--names, names)"
            )
        root, names = local_path(self._at("pictures")), local_path(self._at("names.txt"))
        if not names.exists():
            start = time.monotonic()
            drawn = drawings.draw(root, each=_DRAWN)
            names.write_text("\n".join(drawn) + "\n", encoding="utf-8")
            self.seconds["draw"] = time.monotonic() - start
        return [str(root)], str(names)

    def _embed(self, names: str) -> ClassTable:
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
        self._do(api.embed_classes, job)
        return ClassTable.open(job.output)

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
        return self._do(api.extract, job)

    def _check_labels(self, labels: Sequence[str], unlabelled: int, table: ClassTable) -> None:
        """Refuses pictures that two networks cannot learn from."""
        if not labels:
            raise ConfigError(
                f"backbone, encoder: {self.settings.backbone} and {self.settings.encoder} are "
                "different networks, and the pictures have no labels to learn from; name one "
                "network for both, such as open_clip:ViT-B-32/openai, or put labelled pictures "
                "into a folder for each class"
            )
        if unlabelled:
            raise InputError(
                ", ".join(self.settings.images),
                expected="a label for every picture, as two networks learn from them",
                found=f"{unlabelled} picture(s) without one; put them into the folder of their "
                "class, or name one network for pictures and names (backbone, encoder)",
            )
        known = {*table.ids.to_pylist()}
        if missing := [label for label in labels if label not in known]:
            raise InputError(
                table.uri,
                expected=f"all {len(labels)} labels of the pictures among its class_ids",
                found=f"none for {', '.join(map(repr, missing[:_SHOWN]))} ({len(missing)} in all); "
                "the label of a picture is its folder: name the class as the folder, or give both "
                "in a line 'FOLDER, tab, NAME'; one network for pictures and names (CLIP) needs no "
                "labels",
            )

    def _with_seen(self, table: ClassTable, labels: Sequence[str]) -> ClassTable:
        """The table with the column ``seen``: the classes that the model has learned, or will."""
        learned = self._noted().get("learned") if self._has_model() else None
        seen = list(labels) if learned is None else learned
        _mark_seen(table.uri, seen)
        self._note(learned=seen)
        console.say(
            f"{table.uri}: 'seen' marks the {len(seen)} classes with pictures to learn from"
        )
        return ClassTable.open(table.uri)

    def _has_model(self) -> bool:
        return exists(join(self._at("model"), "model.json"))

    def _train(
        self,
        table: ClassTable,
        footers: Survey,
        labels: Sequence[str],
        features: Snapshot,
        *,
        aligned: bool,
    ) -> None:
        if self._has_model():
            console.say(f"{self._at('model')}: kept; remove it to train anew")
            return
        training = self._at("training")
        rows = holdout.write_training_part(self._files("features", features), training)
        if rows < features.rows:
            console.say(
                f"{training}: the pictures to learn from, without {features.rows - rows} that are "
                "held out by class, to measure the accuracy"
            )
        sizes = {"M": min(_MOST, len(labels), table.embeddings.shape[1], footers.width)}
        if aligned:
            M = max(1, min(_MOST, footers.width // _LEAST_WIDTH))
            sizes = {"M": M, "D": footers.width // M * M}
        sizes["K"] = max(1, min(_CODEWORDS, rows // 2))
        fitted = aligned and len(table) > 1  # codes for the scores of classes need two of them
        settings: dict[str, Any] = sizes
        if aligned and not fitted:
            settings = sizes | {"metric": "cosine", "normalise": "unit"}
        job = TrainJob(
            method="opq" if aligned else "eszsl",
            features=[training],
            classes=table.uri if fitted or not aligned else None,
            output=self._at("model"),
            settings=settings,
            where=self.settings.where,
        )
        self._note(**{_HELD_OUT: True})  # before there is a model
        self._do(api.train, job)

    def _classify(self, codes: str) -> Snapshot:
        """Makes predictions."""
        classes, output = self._at("classes.parquet"), self._at("predictions")
        job = ClassifyJob(codes=codes, classes=classes, output=output, where=self.settings.where)
        return self._do(api.classify, job)

    def _accuracy(
        self, predictions: Snapshot, table: ClassTable, features: Sequence[str]
    ) -> list[str]:
        """Lines on the accuracy, by whether the model learned from a picture."""
        files, folder = self._files("predictions", predictions), self._at("training")
        training = holdout.training_ids(folder)
        replaced = holdout.replaced(folder, features)
        others, learned = holdout.hits(files, training, {*table.ids.to_pylist()}, replaced)
        if not training and self._noted().get(_HELD_OUT) and others.rows:
            unknown = (
                f"The accuracy is not known: {folder} is gone, which had the pictures that the "
                f"model learned from. Remove {self._at('model')} to train anew."
            )
            return [unknown]
        if not training:  # a model of an earlier version of raypq, which learned from all pictures
            others, learned = learned, others
        lines = []
        if others.rows:
            lines.append(
                f"The right class is first for {others.share:.1%} of {others.rows:,} held-out "
                "pictures, which the model did not learn from."
            )
        if learned.rows and not others.rows:
            lines.append(
                f"The right class is first for {learned.share:.1%} of the {learned.rows:,} "
                "pictures that the model learned from; others will have less."
            )
        elif learned.rows:
            lines.append(
                f"(Of the {learned.rows:,} pictures that it learned from: {learned.share:.1%}.)"
            )
        if replaced:
            lines.append(
                f"({len(replaced):,} pictures that it learned from have changed since; they do not "
                "count.)"
            )
        return lines

    def _summary(self, images: Sequence[str], rows: int, accuracy: Sequence[str]) -> str:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        output, classes = self.settings.output, self._at("classes.parquet")
        shown = PredictionsSettings(store=self._at("predictions"), classes=classes)
        page = ReportSettings(
            places=[output], images=[*images], classes=classes, output=join(output, "report.html")
        )
        lines = [f"{rows:,} pictures. {seconds}.", *accuracy]
        lines += [
            "",
            "To see them by name, and as a page with pictures:",
            f"  {command_line(shown)}",
            f"  {command_line(page)}",
        ]
        return "\n".join(lines)


def _is_aligned(footers: Survey, table: ClassTable) -> bool:
    """Whether features and class embeddings are of one network."""
    backbone, encoder = footers.backbone, table.encoder
    return backbone is not None and encoder is not None and backbone.weights == encoder.weights


def _labels(store: str, version: Snapshot) -> tuple[list[str], int]:
    """The different labels of a feature store, sorted, and the number of rows without one."""
    found: set[str] = set()
    unlabelled = 0
    for receipt in version.shards:
        with open_parquet(join(store, receipt.path)) as file:
            if not file.has("label"):
                unlabelled += receipt.rows
                continue
            column = file.read(columns=["label"]).column("label")
            found |= {*pc.unique(column.drop_null()).to_pylist()}
            unlabelled += column.null_count
    return sorted(found), unlabelled


def _mark_seen(uri: str, labels: Sequence[str]) -> None:
    """Writes the column ``seen`` into a class table: whether a class has labelled pictures."""
    with open_parquet(uri) as file:
        table = file.read()
    seen = pc.is_in(table.column("class_id"), value_set=pa.array([*labels], pa.string()))
    if "seen" in table.column_names:
        table = table.drop_columns(["seen"])
    with atomic_write(uri) as sink:
        pq.write_table(table.append_column("seen", seen), sink, write_page_checksum=True)
