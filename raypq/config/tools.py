"""Settings of the tools: the demo, the report, the benches and the versions of stores."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raypq.config.images import BACKBONE, NetworkSettings, with_image_column
from raypq.config.job import ClusterSettings, Columns, ImageColumns, Job, Seed, Version
from raypq.config.option import Option
from raypq.config.places import (
    InputFile,
    MaybePaths,
    NewFile,
    NoPlace,
    Reads,
    Store,
    Text,
    Uri,
    Writes,
)
from raypq.config.preparation import Templates
from raypq.config.settings import Positive, Threads

_CLIP = "open_clip:ViT-B-32/openai"

StoreArgument = Annotated[Store, Option(argument=True)]
LatestVersion = Annotated[Version | None, Field(description="version; default: latest")]


class DemoSettings(Job):
    """``raypq demo``: size of the generated data, and where it goes."""

    verb: ClassVar[str] = "raypq demo"

    output: Annotated[Uri, Writes("demo")] = Field(
        "demo-output", description="folder to write everything to"
    )
    images: Annotated[int, Field(ge=1000)] = Field(40_000, description="images to generate")
    n_classes: Annotated[int, Field(ge=40), Option(names=("--classes",))] = Field(
        400, description="classes of the generated images"
    )
    dims: Annotated[int, Field(ge=16)] = Field(512, description="feature width")
    M: Annotated[Positive, Option(names=("--sub-codebooks",))] = Field(
        50, description="bytes per image"
    )
    smaller: tuple[Positive, ...] = Field(
        (5, 10, 25), description="smaller codes to compare, in bytes per image; may be repeated"
    )
    seed: Seed = 0
    where: ClusterSettings = ClusterSettings()


class QuickstartSettings(Job):
    """``raypq quickstart``."""

    verb: ClassVar[str] = "raypq quickstart"

    images: MaybePaths = Field(
        default_factory=list,
        description="pictures: folders of image files (labels are the names of their folders), tar "
        "files, or Parquet; may be repeated; default: drawn ones",
    )
    names: InputFile | None = Field(
        None, description="class names, one a line (or class_id, tab, name)"
    )
    output: Annotated[Uri, Writes("demo")] = Field(
        "quickstart", description="folder to write everything to"
    )
    backbone: Annotated[Uri, Reads("backbone")] = Field(_CLIP, description=BACKBONE)
    encoder: Text = Field(_CLIP, description="network for names, as of raypq embed-classes")
    template: Templates = Field(
        ["a photo of a {}."], description="text with {} for the name; may be repeated"
    )
    network: NetworkSettings = NetworkSettings()
    columns: Columns = Columns(feature="image")
    where: ClusterSettings = ClusterSettings(cluster="none", workers=1)

    @model_validator(mode="before")
    @classmethod
    def _image_column(cls, values: Any) -> Any:
        return with_image_column(values)

    @model_validator(mode="after")
    def _pictures_and_names(self) -> Self:
        if bool(self.images) != (self.names is not None):
            found = "images alone" if self.images else "names alone"
            raise ValueError(f"images, names: expected both, or neither for a trial, found {found}")
        return self


class ReportSettings(Job):
    """``raypq report``."""

    verb: ClassVar[str] = "raypq report"

    places: Annotated[list[Annotated[Uri, Reads("results")]], Option(argument=True)] = Field(
        min_length=1
    )
    output: Annotated[Uri, Writes("file")] = Field("report.html", description="HTML file to write")
    title: Text = Field("raypq report", description="title of the page")
    images: list[Annotated[Uri, Reads("images")]] = Field(
        default_factory=list,
        description="images of the stores, to show some of them: folders of image files, tar "
        "files, or Parquet; may be repeated",
    )
    classes: InputFile | None = Field(
        None,
        description="class table with the names of classes, for the pictures; default: those of "
        "the evaluations",
    )
    columns: ImageColumns = ImageColumns()

    @model_validator(mode="after")
    def _with_images(self) -> Self:
        unused = {
            "classes": self.classes is not None,
            "columns": self.columns != ImageColumns(),
        }
        if not self.images and (found := [name for name, given in unused.items() if given]):
            raise ValueError(
                f"{found[0]}: is for pictures (--images, images), of which none is named"
            )
        return self


class BenchSettings(Job):
    """``raypq bench``."""

    verb: ClassVar[str] = "raypq bench"

    name: Annotated[
        Literal[
            "all", "classify", "ratio", "search", "encode", "train", "read", "layouts",
            "extract", "rates", "pipeline", "retrieval", "duplicates",
        ],
        NoPlace(),
        Option(argument=True),
    ]  # fmt: skip
    threads: Threads = Field(2, description="CPU threads of everything that runs")
    classes: InputFile | None = Field(
        None,
        description="class table: of the pipeline bench (default: generated), and of the world of "
        "real names in classify, which is left out without it; and for --children",
    )
    peer_python: InputFile | None = Field(
        None,
        description="Python in whose environment the further peers of search are installed; "
        "default: raypq's own",
    )
    children: Positive | None = Field(
        None,
        description="classify only: instead, so many classes around those of the class table, "
        "whose tables do not fit in memory",
    )
    rows: Positive | None = Field(
        None,
        description="train only: instead, the commands train and encode over so many generated "
        "rows of 2,048 float16; ImageNet has 1,281,167, of 5.3 GB",
    )
    json_file: Annotated[NewFile | None, Option(names=("--json",))] = Field(
        None, description="file to write the figures to as well"
    )
    show: InputFile | None = Field(
        None, description="result file to print as Markdown tables; nothing is run"
    )
    goals: bool = Field(False, description="with --show: only rows with a goal, in one table")
    processor_time: bool = Field(
        False,
        description="rates only: count the processor's seconds of one worker, for a machine that "
        "others use",
    )


class ListSettings(Job):
    """``raypq snapshots list``."""

    verb: ClassVar[str] = "raypq snapshots list"

    store: StoreArgument


class ShowSettings(Job):
    """``raypq snapshots show``."""

    verb: ClassVar[str] = "raypq snapshots show"

    store: StoreArgument
    version: LatestVersion = None


class VerifySettings(Job):
    """``raypq snapshots verify``."""

    verb: ClassVar[str] = "raypq snapshots verify"

    store: StoreArgument
    version: LatestVersion = None
    sha256: bool = Field(False, description="check every byte, not only the sizes")


class DiffSettings(Job):
    """``raypq snapshots diff``."""

    verb: ClassVar[str] = "raypq snapshots diff"

    store: StoreArgument
    old: Annotated[Version, Option(argument=True)]
    new: Annotated[Version | None, Option(argument=True)] = None


class RestoreSettings(Job):
    """``raypq snapshots restore``."""

    verb: ClassVar[str] = "raypq snapshots restore"

    store: StoreArgument
    version: Annotated[Version, Option(argument=True)]


class CollectSettings(Job):
    """``raypq snapshots gc``."""

    verb: ClassVar[str] = "raypq snapshots gc"

    store: StoreArgument
    keep: Positive | None = Field(None, description="latest versions to retain; default: all")
    older_than_days: Annotated[float, Field(ge=0)] = Field(
        7.0,
        description="least age of a file to remove; younger ones may belong to an unfinished run",
    )
    delete: bool = Field(False, description="remove the files; otherwise only list them")
