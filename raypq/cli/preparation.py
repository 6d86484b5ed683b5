"""The `raypq repack`, `extract`, `embed-classes`, `split` and `import-xlsa17` commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq.cli.job_command import job_command
from raypq.cli.options import show, show_result

if TYPE_CHECKING:
    from raypq.config import EmbedClassesJob, ExtractJob, ImportXlsa17Job, RepackJob, SplitJob


@job_command("raypq.config:ExtractJob")
def extract(job: ExtractJob) -> None:
    """Turn images into features.

    Each shard of images becomes one feature file, and each run one new version of the store. A
    rerun computes only what is new or changed. (raypq encode --images makes codes in one pass,
    without features between.)

    \b
    Example:
      raypq extract --images images/ --backbone torchvision:resnet50 --output features
      raypq extract --images shards/ --backbone clip.onnx --resize 224 --interpolation bicubic \\
          --mean 0.481 0.458 0.408 --std 0.269 0.261 0.276 --dtype float16 --output features
    """
    from raypq import api

    show_result(job, api.extract(job))


@job_command("raypq.config:EmbedClassesJob", "embed-classes")
def embed_classes(job: EmbedClassesJob) -> None:
    """Make a class table from the names of classes, by a text encoder.

    \b
    Example:
      raypq embed-classes --names names.txt --encoder sentence-transformers:all-MiniLM-L6-v2 \\
          --output classes.parquet
      raypq embed-classes --synsets LOC_synset_mapping.txt --encoder open_clip:ViT-B-32/openai \\
          --template 'a photo of a {}.' --template 'a drawing of a {}.' --output classes.parquet
    """
    from raypq import api

    show(api.embed_classes(job))


@job_command("raypq.config:SplitJob")
def split(job: SplitJob) -> None:
    """Divide a labelled store by a protocol of semi-supervised retrieval.

    \b
    Protocol 1: labelled/ holds a few rows of each class; unlabelled/ is the database.
    Protocol 2: labelled/ holds a share of the classes; unlabelled/ and queries/ hold the others.

    \b
    Example:
      raypq split --protocol 1 --features train/ --test test/ --labelled 500 --output parts
    """
    from raypq import api

    show(api.split(job))


@job_command("raypq.config:RepackJob")
def repack(job: RepackJob) -> None:
    """Rewrite a feature store to the layout that reads fastest (fixed_size_binary).

    \b
    Example:
      raypq repack --features features/ --output fast/
    """
    from raypq import api

    show(api.repack(job))


@job_command("raypq.config:ImportXlsa17Job", "import-xlsa17")
def import_xlsa17(job: ImportXlsa17Job) -> None:
    """Convert a benchmark in the xlsa17 format to Parquet.

    The folder SOURCE holds res101.mat and att_splits.mat (Proposed Split).

    \b
    Example:
      raypq import-xlsa17 xlsa17/data/CUB --output cub
    """
    from raypq import api

    show(api.import_xlsa17(job))
