"""Jobs that prepare feature stores: repack, extract, split, import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raypq.config.images import BACKBONE, Images, NetworkSettings, with_image_column
from raypq.config.job import (
    ClusterSettings,
    Columns,
    CpuJob,
    MonitoredJob,
    OnBadShard,
    Seed,
)
from raypq.config.option import Option
from raypq.config.places import (
    InputFile,
    MaybePaths,
    NewFile,
    NewShards,
    NewStore,
    Paths,
    Reads,
    Text,
    Uri,
    Writes,
)
from raypq.config.settings import Positive


class RepackJob(CpuJob):
    """``raypq repack``."""

    verb: ClassVar[str] = "raypq repack"

    features: Paths = Field(description="feature store: folder, file or glob; may be repeated")
    output: NewShards = Field(description="folder to write; shards keep their names")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="type of the features written"
    )
    overwrite: bool = Field(False, description="replace shards that are there already")
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns()


class ExtractJob(MonitoredJob):
    """``raypq extract``."""

    verb: ClassVar[str] = "raypq extract"

    images: Annotated[Images, Field(min_length=1)]
    backbone: Annotated[Uri, Reads("backbone")] = Field(description=BACKBONE)
    output: NewStore = Field(description="feature store to write a version of")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="type of the features written"
    )
    on_bad_shard: OnBadShard = "fail"
    network: NetworkSettings = NetworkSettings()
    columns: Columns = Columns(feature="image")
    where: ClusterSettings = ClusterSettings()

    @model_validator(mode="before")
    @classmethod
    def _image_column(cls, values: Any) -> Any:
        """The column ``image``; ``mean`` and ``std``, once keys of the job, in ``network``."""
        if not isinstance(values, Mapping):
            return values
        moved = {key: values[key] for key in ("mean", "std") if key in values}
        network = values.get("network", {})
        if moved and isinstance(network, Mapping):
            rest = {key: value for key, value in values.items() if key not in moved}
            values = {**rest, "network": {**moved, **network}}
        return with_image_column(values)


def _hold_a_name(value: list[str]) -> list[str]:
    for template in value:
        if template.count("{}") != 1:
            raise ValueError(f"expected {{}} once, for the name, found {template!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"expected templates that differ, found {value}")
    return value


Templates = Annotated[list[Text], Field(min_length=1), AfterValidator(_hold_a_name)]


class EmbedClassesJob(MonitoredJob):
    """``raypq embed-classes``."""

    verb: ClassVar[str] = "raypq embed-classes"

    names: InputFile | None = Field(
        None,
        description="class names: text with one a line (or class_id, tab, name, and further names "
        "after tabs), or Parquet with class_id and name",
    )
    synsets: InputFile | None = Field(
        None, description="synsets instead of names, as in 'n01440764 tench, Tinca tinca'"
    )
    encoder: Text = Field(
        description="network for texts: onnx:DIR (an .onnx file and tokenizer.json), "
        "sentence-transformers:NAME, transformers:NAME or open_clip:NAME/PRETRAINED; a NAME may be "
        "a local folder"
    )
    output: NewFile = Field(description="class table to write (Parquet)")
    template: Templates = Field(
        ["a photo of a {}."],
        description="text with {} for the name; may be repeated, for the mean of all",
    )
    prototypes: Literal["mean", "all"] = Field(
        "mean",
        description="vectors of a class: the mean of all names and templates, or all of them too, "
        "of which classify then takes the best",
    )
    weights: InputFile | None = Field(
        None, description="weights of an open_clip network (.safetensors); default: downloaded"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="device of the encoder")
    overwrite: bool = Field(False, description="replace a table that is there already")

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if (self.names is None) == (self.synsets is None):
            found = "neither" if self.names is None else "both"
            raise ValueError(f"names, synsets: expected one of them, found {found}")
        return self


class SplitJob(CpuJob):
    """``raypq split``."""

    verb: ClassVar[str] = "raypq split"

    protocol: Literal[1, 2] = Field(
        description="protocol of Jang and Cho: single category (1) or unseen category (2)"
    )
    features: Paths = Field(description="labelled rows; may be repeated")
    test: MaybePaths = Field(
        default_factory=list, description="test rows, if stored apart; may be repeated"
    )
    output: Annotated[Uri, Writes("parts")] = Field(description="folder to write the parts below")
    labelled: Positive | None = Field(
        None, description="labelled rows per class, protocol 1; default: all"
    )
    queries: Annotated[int, Field(ge=0)] = Field(
        1000, description="number of query rows, protocol 1"
    )
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.75, description="share of the classes whose labels are known, protocol 2"
    )
    seed: Seed = 0
    columns: Columns = Columns()


class ImportXlsa17Job(MonitoredJob):
    """``raypq import-xlsa17``."""

    verb: ClassVar[str] = "raypq import-xlsa17"

    source: Annotated[Uri, Reads("xlsa17"), Option(argument=True)] = Field(
        description="folder of res101.mat and att_splits.mat"
    )
    output: Annotated[Uri, Writes("xlsa17")] = Field(
        description="folder for the stores and the class table"
    )
    rows: Positive = Field(5000, description="rows per Parquet file")
