"""The result of training with any method: an embedding, a quantizer, and class prototypes.

The stages after training depend on this interface only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq import kernels
from raypq.config import Metric, Positive, Precision, UserSettings
from raypq.data.class_prototypes import ClassLayer
from raypq.data.model_files import ModelFiles
from raypq.data.network_info import (
    BackboneInfo,
    EncoderInfo,
    NetworkInfo,
    check_aligned,
    check_equal,
)
from raypq.errors import InputError, ModelError

Array = NDArray[Any]
Normalise = Literal["none", "unit", "zscore", "zscore-unit"]


class MethodSettings(UserSettings):
    """Settings of every method. Symbols are those of the legend (README)."""

    M: Positive = Field(16, description="sub-codebooks; bytes per image at K = 256")
    K: int = Field(256, ge=1, le=256, description="codewords in each sub-codebook")
    metric: Metric = "l2"
    seed: int = Field(0, ge=0)
    normalise: Normalise = Field(
        "none", description="normalisation of features, before anything else"
    )


_MAX_CODEWORDS = 256  # in a sub-codebook: a code is a byte


def _check_width(key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise TypeError(f"{key}: expected a whole number from 1 on, found {value!r}")


def array_of_rows(values: Any, what: str, expected: str) -> Array:
    """Values as an array of rows [n, width].

    Raises:
        InputError: they have another number of dimensions, or rows of several lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(what, expected=expected, found="rows of several lengths") from None
    if array.ndim != 2:
        one = "; a single one is x[None]" if array.ndim == 1 else ""
        raise InputError(what, expected=expected, found=f"the shape {list(array.shape)}{one}")
    return array


def float_rows(values: Any, what: str) -> NDArray[np.float32]:
    """Values as float32 rows [n, width]; float32 arrays are returned as they are.

    Raises:
        InputError: they are no numbers, or have another number of dimensions.
    """
    array = array_of_rows(values, what, "an array of numbers [n, width]")
    if array.dtype.kind not in "fiu":
        raise InputError(what, expected="numbers", found=f"an array of {array.dtype}")
    with np.errstate(over="ignore"):  # checked with the rest
        return array if array.dtype == np.float32 else array.astype(np.float32)


def _check_content(where: str, content: Mapping[str, Any], model: Model) -> None:
    known = {"M": model.M, "K": model.K, "D": model.D, "metric": model.metric}
    for key, value in known.items():
        if content.get(key) != value:
            raise ModelError(
                f"{where}, key 'model.{key}'",
                expected=f"{value}, as the arrays and settings say",
                found=repr(content.get(key)),
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Model(ABC):
    """A trained embedding, quantizer and class projection.

    Attributes:
        settings: of training.
        tensors: arrays by name; ``C``: codebooks [M, K, d], float32.
        dx: feature width. da: width of class embeddings, None if it takes none.
        classes: class_ids of its prediction layer, if it has one.
        backbone: the network whose features of images it takes, if that is known.
        encoder: the network whose class embeddings it takes, if that is known.
        layer: prototypes that were added to the model, or a linear head; not part of the
            fingerprint.
        record: training history; not part of the fingerprint.
    """

    method: ClassVar[str]
    legacy_settings: ClassVar[Mapping[str, Any]] = {}
    """Defaults for settings that older model files lack."""

    settings: MethodSettings
    tensors: Mapping[str, Array]
    dx: int
    da: int | None = None
    classes: tuple[str, ...] | None = None
    backbone: BackboneInfo | None = None
    encoder: EncoderInfo | None = None
    layer: ClassLayer | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def C(self) -> NDArray[np.float32]:
        """Codebooks [M, K, d]."""
        return self.tensors["C"]

    @property
    def M(self) -> int:
        """Sub-codebooks."""
        return int(self.C.shape[0])

    @property
    def K(self) -> int:
        """Codewords in each."""
        return int(self.C.shape[1])

    @property
    def D(self) -> int:
        """Width of the common space, M·d."""
        return int(self.C.shape[0] * self.C.shape[2])

    @property
    def metric(self) -> Metric:
        """The metric of scores, unless a job chooses another."""
        return self.settings.metric

    @cached_property
    def _files(self) -> ModelFiles:
        content = {
            "method": self.method,
            "M": self.M,
            "K": self.K,
            "D": self.D,
            "dx": self.dx,
            "da": self.da,
            "metric": self.metric,
            "settings": self.settings.model_dump(mode="json"),
        }
        if self.classes is not None:
            content["classes"] = list(self.classes)
        content |= {info.kind: info.content for info in self._networks}
        return ModelFiles(content=content, tensors=self.tensors, record=self.record)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that codes and scores depend on."""
        return self._files.fingerprint

    def save(self, uri: str) -> str:
        """Writes the model directory; returns the fingerprint."""
        if self.layer is not None:  # first: the directory is a model once ``_files`` are written
            self.layer.save(uri)
        return self._files.save(uri)

    @classmethod
    def from_files(
        cls, files: ModelFiles, settings: MethodSettings, layer: ClassLayer | None = None
    ) -> Self:
        """The model in ``files``, with the prototypes that were added to it."""
        content = files.content
        old = {k: v for k, v in cls.legacy_settings.items() if k not in content["settings"]}
        settings = settings.model_copy(update=old)
        for key in ("dx", "da"):
            if content[key] is not None or key == "dx":
                _check_width(key, content[key])
        names = content.get("classes", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("classes: expected a list of class_ids")
        if len(set(names)) < len(names):
            raise TypeError("classes: a class_id is there twice")
        names = files.record
        backbone = encoder = None
        if "backbone" in content:
            name = str(names.get("backbone", "unnamed"))
            backbone = BackboneInfo.model_validate({"name": name, **content["backbone"]})
        if "encoder" in content:
            name = str(names.get("encoder", "unnamed"))
            encoder = EncoderInfo.model_validate({"name": name, **content["encoder"]})
        model = cls(
            settings=settings,
            tensors=files.tensors,
            dx=content["dx"],
            da=content["da"],
            classes=tuple(content["classes"]) if "classes" in content else None,
            backbone=backbone,
            encoder=encoder,
            layer=layer,
            record=files.record,
        )
        # As written, not as this version would write it: a setting of a later version must not
        # change the fingerprint that codes carry.
        model.__dict__["_files"] = files
        return model

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each required array, given the model's other sizes."""
        scaled = self.settings.normalise.startswith("zscore")
        return {name: (self.dx,) for name in ("mean", "inverse_std") if scaled}

    def check(self, where: str) -> None:
        """Checks the arrays: shapes, dtypes, finite values, and agreement with model.json.

        Args:
            where: the model's file, for errors.

        Raises:
            ModelError: naming the array or key.
        """
        C = self.tensors.get("C")
        if C is None or C.ndim != 3 or not all(C.shape) or C.shape[1] > _MAX_CODEWORDS:
            raise ModelError(
                where,
                expected=f"codebooks C [M, K, d], K at most {_MAX_CODEWORDS}",
                found="no array C" if C is None else f"C {list(C.shape)}",
            )
        _check_content(where, self._files.content, self)
        for name, shape in {"C": C.shape, **self.shapes}.items():
            array = self.tensors.get(name)
            if array is None or array.shape != shape or array.dtype != np.float32:
                raise ModelError(
                    f"{where}, array '{name}'",
                    expected=f"float32 {list(shape)}",
                    found="none" if array is None else f"{array.dtype} {list(array.shape)}",
                )
        self._check_layer(where)
        for name, array in self.tensors.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ModelError(
                    f"{where}, array '{name}'", expected="finite numbers", found="NaN or infinity"
                )

    def _check_layer(self, where: str) -> None:
        if self.layer is None:
            return
        T, layer = len(self.layer.ids), self.layer
        if len(set(layer.ids)) < T:
            raise ModelError(where, expected="each class once", found="a class_id twice")
        for name, array, shape in (("V", layer.V, (T, self.D)), ("bias", layer.bias, (T,))):
            if array.shape != shape or not np.isfinite(array).all():
                raise ModelError(
                    f"{where}, array '{name}' of the classes beside it",
                    expected=f"finite numbers {list(shape)}",
                    found=f"{array.dtype} {list(array.shape)}",
                )

    @abstractmethod
    def embed(
        self, X: NDArray[np.float32], *, precision: Precision = "fp32"
    ) -> NDArray[np.float32]:
        """f: features [n, dx] to the common space [n, D]."""

    def queries(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Query vectors [n, D] of features [n, dx] for asymmetric search; by default their
        embeddings."""
        return self.embed(X)

    def encode(
        self, X: NDArray[np.float32], *, device: str = "cpu", precision: Precision = "fp32"
    ) -> NDArray[np.uint8]:
        """Features [n, dx] to codes [n, M].

        Raises:
            InputError: they are no rows of finite numbers. ModelError: they are of another width.
        """
        return kernels.encode(self.embed(X, precision=precision), self.C, device=device)

    def decode(self, B: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Codes [n, M] to their reconstructions q(u) [n, D].

        Raises:
            InputError: codes of another shape, or of K or more.
        """
        return kernels.decode(self._codes(B), self.C)

    def code_queries(self, B: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Query vectors [n, D] of codes [n, M], for symmetric search; by default their
        reconstructions."""
        return self.decode(B)

    @abstractmethod
    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """g: class embeddings [T, da] to prototypes V [T, D] and bias [T].

        Raises:
            ModelError: the embeddings have another width.
        """

    def class_prototypes(
        self, ids: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Prototypes V [T, D] and bias [T] of the model's own prediction layer.

        Raises:
            ModelError: the model has no prediction layer, or it lacks one of these class_ids.
        """
        raise ModelError(f"{self.method} model", expected="a prediction layer", found="none")

    def prototypes_of(
        self, ids: Sequence[str], E: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Prototypes V [T, D] and bias [T] of classes: from ``layer`` if it has them all, from the
        prediction layer, or by ``prototypes`` of their embeddings E [T, da]. If ``layer`` is a
        head, from it alone.

        Raises:
            ModelError: a class is not known, or its embedding is missing or of another width.
        """
        added = self.layer.find(ids, E) if self.layer is not None else None
        if added is not None:
            return added
        if self.layer is not None and self.layer.head:
            unknown = self.layer.missing(ids)
            raise ModelError(
                f"head of the {self.method} model",
                expected=f"classes among the {len(self.layer.ids)} that it was trained on",
                found=f"{unknown[0]!r} ({len(unknown)} such class(es)); restrict the candidates "
                "(--candidates, candidates), or train a head with these classes (raypq train "
                "linear)",
            )
        if E is not None and self.needs_embeddings(ids):
            return self.together(ids, E)
        if self.classes is not None:
            return self.class_prototypes(ids)
        if E is None:
            raise ModelError(f"{self.method} model", expected="class embeddings", found="none")
        return self.prototypes(E)

    def with_classes(self, ids: Sequence[str], E: NDArray[np.float32]) -> Self:
        """This model with added prototypes of these classes, from embeddings E [T, da].

        Codes and fingerprint do not change.
        """
        V, bias = self.together(ids, E)
        self._check_magnitudes(V, bias, self.class_metric)
        layer = ClassLayer(ids=tuple(ids), E=np.ascontiguousarray(E), V=V, bias=bias)
        return self._with_layer(layer)

    def together(
        self, ids: Sequence[str], E: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Prototypes V [T, D] and bias [T] of all classes that compete, with embeddings E
        [T, da]."""
        return self.prototypes(E)

    def needs_embeddings(self, ids: Sequence[str]) -> bool:
        """Whether prototypes of these classes are made of their embeddings."""
        return not self.classes_by_id

    @property
    def classes_by_id(self) -> bool:
        """Whether classes are known by class_id alone: those of a head or a prediction layer."""
        return self.has_head or self.classes is not None

    @property
    def has_head(self) -> bool:
        """Whether its classes are those of a linear head, which needs no class embeddings."""
        return self.layer is not None and self.layer.head

    def with_head(
        self, ids: Sequence[str], V: NDArray[np.float32], bias: NDArray[np.float64]
    ) -> Self:
        """This model with a linear classifier of decoded codes: weights V [T, D], bias [T].

        Codes and fingerprint do not change.

        Raises:
            InputError: values whose scores would overflow or vanish in float32.
        """
        self._check_magnitudes(V, bias, "dot")
        return self._with_layer(ClassLayer.of_head(ids, V, bias))

    def _with_layer(self, layer: ClassLayer | None) -> Self:
        model = replace(self, layer=layer)
        # As loaded: see ``from_files``.
        model.__dict__["_files"] = self._files
        return model

    @property
    def _networks(self) -> list[NetworkInfo]:
        return [info for info in (self.backbone, self.encoder) if info is not None]

    def bound_to(self, *networks: NetworkInfo | None, where: str) -> Self:
        """This model for the vectors of these networks, which become part of its fingerprint; the
        same model if it was trained on them, or if they are not known (None).

        Raises:
            ModelError: it was trained on the vectors of another network.
        """
        known = {info.kind: info for info in self._networks}
        added: dict[str, Any] = {}
        for info in networks:
            if info is None:
                continue
            check_equal(known.get(info.kind), info, where=where)
            if info.kind not in known:
                added[info.kind] = info
        if not added:
            return self
        record = {**self.record, **{kind: info.name for kind, info in added.items()}}
        model = replace(self, record=record, **added)
        content = {**self._files.content, **{kind: info.content for kind, info in added.items()}}
        model.__dict__["_files"] = replace(self._files, content=content, record=record)
        return model

    def check_encoder(self, encoder: EncoderInfo | None, ids: Sequence[str], *, where: str) -> None:
        """Refuses embeddings of classes of another encoder than the model was trained on. Where the
        model has no class projection, they must be of the same network as the features (CLIP), and
        features must not be z-scored, since texts have other means and deviations.

        Raises:
            ModelError: naming both networks, or the normalisation.
        """
        if encoder is None or not self.needs_embeddings(ids):
            return
        if self.da is not None:
            check_equal(self.encoder, encoder, where=where)
        elif self.settings.normalise.startswith("zscore"):
            raise ModelError(
                where,
                expected=f"class vectors made of features, since {self.method} has no class "
                f"projection and scales them as features (normalise: {self.settings.normalise})",
                found=f"those of {encoder}; train with normalise=unit, or a method with a class "
                "projection",
            )
        else:
            check_aligned(self.backbone, encoder, where=where)

    def with_record(self, record: Mapping[str, Any], layer: ClassLayer | None) -> Self:
        """This model with another record and other added prototypes; same fingerprint."""
        model = replace(self, record=record, layer=layer)
        model.__dict__["_files"] = replace(self._files, record=record)
        return model

    def _features(self, X: Any) -> NDArray[np.float32]:
        """Features as float32 [n, dx].

        Raises:
            InputError: they are no rows of numbers. ModelError: they are of another width.
        """
        X = float_rows(X, "features")
        if X.shape[1] != self.dx:
            raise ModelError(
                f"{self.method} model",
                expected=f"features of width {self.dx}",
                found=str(X.shape[1]),
            )
        return X

    def _codes(self, B: Any) -> NDArray[np.integer[Any]]:
        """Codes as integers [n, M], each below K.

        Raises:
            InputError: another shape or type, or a code that names no codeword.
        """
        B = array_of_rows(B, "codes", f"whole numbers [n, {self.M}]")
        if B.shape[1] != self.M or (B.dtype.kind not in "iu" and B.size):
            raise InputError(
                "codes",
                expected=f"whole numbers [n, {self.M}], a code of each sub-codebook",
                found=f"{B.dtype} {list(B.shape)}",
            )
        whole = self.K == _MAX_CODEWORDS and B.dtype == np.uint8  # every byte is a code
        if not whole and B.size and (int(B.max()) >= self.K or int(B.min()) < 0):
            row, part = np.argwhere((B < 0) | (B >= self.K))[0]
            raise InputError(
                f"codes, row {row}, sub-codebook {part}",
                expected=f"a code from 0 to {self.K - 1}, as the model has K = {self.K}",
                found=f"{B[row, part]}; codes of another model?",
            )
        return B if B.size else np.empty(B.shape, np.uint8)

    def _embeddings(self, E: Any) -> NDArray[np.float32]:
        """Class embeddings as float32 [T, da].

        Raises:
            InputError: they are no rows of numbers. ModelError: they are of another width.
        """
        E = float_rows(E, "class embeddings")
        self._check_embeddings(E)
        return E

    def _check_embeddings(self, E: NDArray[np.float32]) -> None:
        width = self.dx if self.da is None else self.da
        if E.shape[1] != width:
            hint = (
                ""
                if self.da
                else " (this method has no class projection: classes are vectors of features)"
            )
            raise ModelError(
                f"{self.method} model",
                expected=f"class embeddings of width {width}{hint}",
                found=str(E.shape[1]),
            )

    def cosines(self, q: NDArray[np.float32], V: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines [n, T] of decoded images q [n, D] and prototypes V [T, D], in [−1, 1]."""
        wide, V64 = q.astype(np.float64), V.astype(np.float64)  # squares may leave float32's range
        length = np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(V64, axis=1)
        cosine: NDArray[np.float64] = (wide @ V64.T) / np.where(length > 0, length, 1.0)
        return cosine.astype(np.float32)

    def mapped(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [n, dx] in the space that the method learns; by default the common space."""
        return self.embed(X)

    @property
    def joint_classes(self) -> bool:
        """Whether the prototype of a class depends on the other classes, so that all classes of a
        table must be passed at once."""
        return False

    @property
    def weights_axes_by_classes(self) -> bool:
        """Whether codes are along axes that are scaled by what scores of classes depend on, so that
        scores between images are not those of their features."""
        return False

    @property
    def stores_classes(self) -> bool:
        """Whether codes store class probabilities, as a sum over codebooks."""
        return False

    def class_probabilities(self, B: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What codes [n, M] estimate of the probabilities of the L training classes [n, L].

        Raises:
            ModelError: codes do not store them.
        """
        raise ModelError(f"{self.method} model", expected="codes of classes", found="others")

    @property
    def class_metric(self) -> Metric:
        """The metric of codes and ``prototypes_of``."""
        return "dot" if self.has_head else self.prediction_metric

    @property
    def prediction_metric(self) -> Metric:
        """The metric of codes and the method's own prototypes or prediction layer."""
        return self.metric

    def tables(
        self,
        V: NDArray[np.float32],
        bias: NDArray[np.floating] | None = None,
        metric: Metric | None = None,
    ) -> kernels.Tables:
        """Tables of prototypes V [T, D] with bias [T] (None: zero) for scanning this model's codes.

        Raises:
            InputError: values whose scores would overflow or vanish in float32.
        """
        metric = metric or self.metric
        self._check_magnitudes(V, bias, metric)
        return kernels.build_tables(self.C, V, bias, metric)

    def _check_magnitudes(
        self, V: NDArray[np.float32], bias: NDArray[np.floating] | None, metric: Metric
    ) -> None:
        most = float(np.finfo(np.float32).max) / (2 if metric == "l2" else 1)
        largest = max(float(V.max(initial=0.0)), -float(V.min(initial=0.0)))
        if not largest <= most:  # also if NaN
            raise InputError(
                "prototypes or queries, as they are embedded",
                expected=f"values up to {most:.2g} in magnitude for {metric}",
                found=f"{largest:.3g}; scale the class embeddings or queries down, or train with "
                "normalise=unit or zscore",
            )
        if metric == "cosine":
            return
        codeword = max(float(self.C.max()), -float(self.C.min()))
        parts = codeword * largest if metric == "dot" else codeword**2 + largest**2
        parts = self.D * parts + (float(np.abs(bias).max(initial=0.0)) if bias is not None else 0.0)
        if 0 < parts < float(np.finfo(np.float32).tiny):
            raise InputError(
                "prototypes or queries, as they are embedded",
                expected=f"values whose scores float32 can tell apart by {metric}",
                found=f"none above {largest:.3g}, with codewords up to {codeword:.3g}: no score is "
                f"more than {parts:.3g}; scale the features up, or train with normalise=unit or "
                "zscore",
            )
