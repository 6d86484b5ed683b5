"""Codes of class probabilities, for quantizers that are trained with labels.

The sum of the codewords of a code estimates P(t|x) (``support.class_codebooks``):

    P̂(t|code) = Σ_m C_m,t(code_m)

A query of class probabilities P(t|query), once for each codebook, then has the score
Σ_t P(t|query) P̂(t|code), the probability that both are of one class: a sum of table look-ups, as
for any other query. So are the class scores P̂. Codes may store probabilities at a higher
temperature, softmax(logits / temperature): flatter ones, which distinguish rows whose most probable
classes are the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from raypq.errors import ConfigError
from raypq.methods.base import MethodSettings, TrainingSetInfo
from raypq.methods.gradient import Network, NetworkModel
from raypq.methods.support.backbones import TrunkSettings
from raypq.methods.support.class_codebooks import ClassCodebooks
from raypq.methods.support.class_relations import ClassRelations
from raypq.methods.support.network import array_of
from raypq.methods.support.network_model import PREFIX
from raypq.methods.support.statistics import check_embeddings

_BLOCK = 1024  # rows of one step of ``fit``


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedClasses:
    """The L training classes of a network.

    Attributes:
        da: width of their embeddings, if they have any. A: these [L, da]; None: loaded later.
        others: those of the other classes of the table [T − L, da].
        early: of a model from before the temperature was a tensor. Such a model takes features as
            they are, and codes are the nearest codewords one after another.
    """

    L: int
    da: int | None
    A: NDArray[np.float32] | None = None
    others: NDArray[np.float32] | None = None
    early: bool = False

    @classmethod
    def of(cls, dataset_info: TrainingSetInfo) -> TrainedClasses:
        """The classes of a training set.

        Raises:
            InputError: there are other classes, and all embeddings are the same.
        """
        A, others = dataset_info.A, dataset_info.A_other
        da = None if A is None else A.shape[1]
        if A is not None and others is not None and dataset_info.compete:
            check_embeddings(np.concatenate([A, others]))
        return cls(L=dataset_info.L, da=da, A=A, others=others)


class ClassCodesSettings(TrunkSettings):
    """Settings of methods whose codes may be those of class probabilities."""

    usual_temperature: ClassVar[float] = 1.0
    temperature: float | None = Field(
        None,
        gt=0,
        description="of the class probabilities that codes store, with codes = classes; default: "
        "1 (gpq: 1.6), or chosen on held-out rows where the class table has unseen classes",
    )

    @abstractmethod
    def stores_classes(self, L: int) -> bool:
        """Whether codes store the probabilities of the L classes."""


class ClassCodesNetwork(Network):
    """A classifier whose codes are those of its class probabilities."""

    temperature: Tensor

    def __init__(self, classes: TrainedClasses, settings: ClassCodesSettings) -> None:
        super().__init__()
        self.temperature_is_set = settings.temperature is not None
        temperature = settings.temperature or settings.usual_temperature
        self.da = classes.da
        beam = {"beam": 1} if classes.early else {}
        self.class_codes = ClassCodebooks(settings.M, settings.K, classes.L, **beam)
        self.early = classes.early
        self.register_buffer(
            "temperature", torch.tensor([temperature]), persistent=not classes.early
        )
        self.relations = (
            None
            if classes.da is None
            else ClassRelations(classes.L, classes.da, classes.A, classes.others)
        )

    def project(self, e: Tensor) -> Tensor | None:
        if self.relations is None:
            return None
        return self.query_vectors(self.relations.weights(e))

    def query_vectors(self, w: Tensor) -> Tensor:
        """Vectors [n, D] whose product with what codes store of P is w Pᵀ, for w [n, L]."""
        if self.relations is not None:
            w = w @ self.relations.inverse.T
        return self.class_codes.per_part(w)

    @abstractmethod
    def class_logits(self, x: Tensor) -> Tensor:
        """Logits of the classes [n, L] of rows x [n, dx]."""

    def stored(self, x: Tensor) -> Tensor:
        """What codes store of rows x [n, dx]: P(t|x) [n, L] at the temperature, times R."""
        P = (self.class_logits(x) / self.temperature).softmax(dim=-1)
        return P if self.relations is None else P @ self.relations.R

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("class_codes.")]

    def finish(self, x: Tensor, seed: int) -> None:
        """Fits the codebooks to rows x [n, dx]; labels are not needed."""
        with torch.no_grad():
            P = torch.cat([self.stored(part) for part in torch.split(x, _BLOCK)])
        self.class_codes.fit(P, seed)

    def codebooks(self) -> Tensor | None:
        return self.class_codes.words if self.class_codes.fitted else None

    def embed(self, x: Tensor) -> Tensor:
        return self.class_codes.embed(self.stored(x)).flatten(1)

    def queries(self, x: Tensor) -> Tensor:
        return self.query_vectors(self.class_logits(x).softmax(dim=-1))

    def codes(self, x: Tensor) -> Tensor:
        return self.class_codes.assign(self.stored(x))

    def class_layer(self) -> tuple[Tensor, Tensor]:
        words = self.class_codes.words
        L = words.shape[2]
        return self.query_vectors(torch.eye(L, device=words.device)), words.new_zeros(L)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassCodesModel(NetworkModel):
    """A model whose codes may be those of class probabilities."""

    @property
    @abstractmethod
    def stores_classes(self) -> bool: ...

    def trained_classes(self, L: int) -> TrainedClasses:
        """The L classes of its network, into which the weights are loaded."""
        return TrainedClasses(L=L, da=self.da, early=f"{PREFIX}temperature" not in self.tensors)

    @property
    def joint_classes(self) -> bool:
        """A training class is a combination, too, where others compete with it."""
        return self.da is not None

    def needs_embeddings(self, ids: Sequence[str]) -> bool:
        return self.da is not None and not set(self.classes or ()).issuperset(ids)

    def together(
        self, ids: Sequence[str], E: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if self.needs_embeddings(ids):
            return self.prototypes(E)
        return self.class_prototypes(ids)

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if not self.stores_classes or self.da is not None:
            return super().prototypes(E)
        E = self._embeddings(E)
        return self.queries(E), np.zeros(len(E))

    def class_probabilities(self, B: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not self.stores_classes:
            return super().class_probabilities(B)
        M, _, L = self.C.shape
        stored = self.decode(B).reshape(-1, M, L).sum(axis=1)
        relations = self._network().relations
        return stored if relations is None else stored @ relations.inverse.numpy()

    def code_queries(self, B: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not self.stores_classes:
            return super().code_queries(B)
        return array_of(
            self._network().query_vectors(torch.from_numpy(self.class_probabilities(B)))
        )

    def _network(self) -> ClassCodesNetwork:
        network = self.network()
        assert isinstance(network, ClassCodesNetwork), "a model of codes of classes"
        return network


OF_CLASSES = ("temperature",)


def check_unused(
    settings: MethodSettings, others: Iterable[str], *, codes: Literal["classes", "parts"]
) -> None:
    """Refuses settings of the other kind of codes.

    Raises:
        ConfigError: one was given.
    """
    given = [name for name in others if name in settings.model_fields_set]
    if given:
        other = "parts" if codes == "classes" else "classes"
        chosen = (
            f"here codes = {codes}, the default where there are "
            f"{'no more' if codes == 'classes' else 'more'} classes than codewords"
            if getattr(settings, "codes", None) is None
            else f"found codes = {codes}"
        )
        raise ConfigError(
            f"{given[0]}: a setting of codes = {other}; {chosen}. Set codes = {other}, or leave "
            f"out {', '.join(given)}"
        )
