"""Typed, frozen settings of every job. An unknown or bad key is an error that names it.

The same models serve the command line, YAML files and Python. Names follow the legend of the
README: ``M`` sub-codebooks, ``K`` codewords in each, ``metric``, ``seed``.
"""

from raypq.config.classification import (
    AddClassesJob,
    ClassificationTarget,
    ClassifyJob,
    EvaluateJob,
    InferSemanticsJob,
    UnknownLabels,
)
from raypq.config.encoding import DuplicateIds, EncodeJob
from raypq.config.images import Interpolation, NetworkPrecision, NetworkSettings, Scaling
from raypq.config.job import (
    ClusterSettings,
    Columns,
    CpuJob,
    ImageColumns,
    Job,
    MonitoredJob,
    WorkerSettings,
)
from raypq.config.monitoring import MonitoringSettings
from raypq.config.nightly import DriftLimits, ReindexJob
from raypq.config.preparation import (
    EmbedClassesJob,
    ExtractJob,
    ImportXlsa17Job,
    RepackJob,
    SplitJob,
)
from raypq.config.reading import parse_assignments, read_mapping
from raypq.config.representation import ClusterabilityJob, FewShotJob, ProbeJob, Space
from raypq.config.results import ExportJob, PredictionsSettings
from raypq.config.retrieval import (
    ClusterJob,
    DeduplicateJob,
    DeduplicationTarget,
    DuplicatesJob,
    ExportFaissJob,
    ImportFaissJob,
    NeighborsJob,
    RetrievalJob,
    SearchJob,
)
from raypq.config.settings import (
    Distance,
    Metric,
    Positive,
    Precision,
    Settings,
    UserSettings,
)
from raypq.config.tools import (
    BenchSettings,
    CollectSettings,
    DemoSettings,
    DiffSettings,
    ListSettings,
    QuickstartSettings,
    ReportSettings,
    RestoreSettings,
    ShowSettings,
    VerifySettings,
)
from raypq.config.training import AblationJob, TrainJob

__all__ = [
    "AblationJob",
    "AddClassesJob",
    "BenchSettings",
    "ClassificationTarget",
    "ClassifyJob",
    "ClusterJob",
    "ClusterSettings",
    "ClusterabilityJob",
    "CollectSettings",
    "Columns",
    "CpuJob",
    "DeduplicateJob",
    "DeduplicationTarget",
    "DemoSettings",
    "DiffSettings",
    "Distance",
    "DriftLimits",
    "DuplicateIds",
    "DuplicatesJob",
    "EmbedClassesJob",
    "EncodeJob",
    "EvaluateJob",
    "ExportFaissJob",
    "ExportJob",
    "ExtractJob",
    "FewShotJob",
    "ImageColumns",
    "ImportFaissJob",
    "ImportXlsa17Job",
    "InferSemanticsJob",
    "Interpolation",
    "Job",
    "ListSettings",
    "Metric",
    "MonitoredJob",
    "MonitoringSettings",
    "NeighborsJob",
    "NetworkPrecision",
    "NetworkSettings",
    "Positive",
    "Precision",
    "PredictionsSettings",
    "ProbeJob",
    "QuickstartSettings",
    "ReindexJob",
    "RepackJob",
    "ReportSettings",
    "RestoreSettings",
    "RetrievalJob",
    "Scaling",
    "SearchJob",
    "Settings",
    "ShowSettings",
    "Space",
    "SplitJob",
    "TrainJob",
    "UnknownLabels",
    "UserSettings",
    "VerifySettings",
    "WorkerSettings",
    "parse_assignments",
    "read_mapping",
]
