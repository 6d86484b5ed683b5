"""Deep product quantization (Klein and Wolf, "In Defense of Product Quantization").

Each of M small networks ends in a softmax over K codewords. *Soft* is the mean of the codewords
under it, *hard* the codeword of its largest entry, by the straight-through estimator. Both are
trained with labels: softmax losses, and a central loss that attracts both to a centre of the class.

Beyond the paper, and by default, codes quantize the class probabilities of a classifier
(``support.class_codes``) where there are no more classes than codewords. Where there are more, a
classifier of the embedding layer is trained, too, whose class probabilities are the targets of both
softmax losses in place of labels; and queries are compared with class posteriors of codewords
(``support.class_posteriors``). ``AS_PUBLISHED`` are the settings without these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from raypq.config import Metric, Positive
from raypq.errors import ConfigError
from raypq.methods.base import MethodSettings, TrainingSetInfo
from raypq.methods.gradient import Batch, Network, NetworkModel
from raypq.methods.support.backbones import trunk
from raypq.methods.support.class_codes import (
    OF_CLASSES,
    ClassCodesModel,
    ClassCodesNetwork,
    ClassCodesSettings,
    TrainedClasses,
    check_unused,
)
from raypq.methods.support.class_posteriors import (
    CodewordPosteriors,
    PosteriorMethod,
    PosteriorNetwork,
    check_query_metric,
)
from raypq.methods.support.layers import Parts, intra_normalise, one_hot_of


class DPQSettings(ClassCodesSettings):
    """The paper's architecture for CIFAR-10, and the weights of its losses.

    From features: chosen on rows held out of CIFAR-10's training set (docs/results.md).
    """

    M: Positive = Field(4, description="sub-codebooks; bytes per image at K = 256")
    metric: Metric = "dot"
    codes: Literal["classes", "parts"] | None = Field(
        None,
        description="what codes store: class probabilities (classes), or the assignments of M "
        "sub-networks, as in the paper (parts); default: classes if there are no more than K of "
        "them, head > 0 and query = classes",
    )
    query: Literal["classes", "soft"] = Field(
        "classes",
        description="query vectors of asymmetric search; soft (and metric l2): the paper's",
    )
    hidden: Positive = Field(1024, description="units of the mlp")
    dropout: float = Field(0.5, ge=0, lt=1, description="in the mlp and in vgg32")
    feature_dropout: float = Field(0.1, ge=0, lt=1, description="of features, before the mlp")
    width: Positive = Field(
        500,
        description="units U of the embedding layer; with codes = parts, cut to a multiple of M",
    )
    part_hidden: Positive = Field(128, description="hidden units of each sub-network")
    d: Positive | None = Field(None, description="width of a codeword; default: U / M")
    weight_decay: float = Field(0.01, ge=0)
    head: float = Field(
        1.0,
        ge=0,
        description="weight of a classifier of the embedding layer, whose class probabilities "
        "train the codes and represent queries; 0: labels train the codes, as in the paper",
    )
    hard: float = Field(
        1.0, ge=0, description="weight of the softmax loss on the hard representation"
    )
    central: float = Field(0.03, ge=0, description="weight of the joint central loss, eq. 5")
    gini_batch: float = Field(4.0, ge=0, description="weight of eq. 6")
    gini_sample: float = Field(0.1, ge=0, description="weight of eq. 7")
    intra_norm: bool = Field(False, description="unit length for each sub-vector of soft and hard")

    @model_validator(mode="after")
    def _classes_are_predicted(self) -> DPQSettings:
        if self.codes == "classes" and not (self.head and self.query == "classes"):
            raise ValueError(
                "codes: classes needs class probabilities (head > 0) and queries by them "
                f"(query = classes), found head = {self.head:g}, query = {self.query}"
            )
        return self

    def stores_classes(self, L: int) -> bool:
        """Whether codes store the probabilities of the L classes, rather than assignments."""
        if self.codes is None:
            return self.head > 0 and self.query == "classes" and self.K >= L
        return self.codes == "classes"


_OF_PARTS = ("part_hidden", "d", "hard", "central", "gini_batch", "gini_sample", "intra_norm")

AS_PUBLISHED: Mapping[str, Any] = {
    "codes": "parts",
    "feature_dropout": 0.0,
    "head": 0.0,
    "weight_decay": 0.0,
    "query": "soft",
    "metric": "l2",
}
"""The settings of the paper's method that differ from the defaults."""


def soft_of(p: Tensor, C: Tensor) -> Tensor:
    """Eq. 1: soft [n, M, d] of probabilities p [n, M, K] and codebooks C [M, K, d]."""
    return torch.einsum("nmk,mkd->nmd", p, C)


def joint_central_loss(soft: Tensor, hard: Tensor, centre: Tensor) -> Tensor:
    """Eq. 5 for both: ½‖soft − o_y‖² + ½‖hard − o_y‖², mean over rows [n, D]."""
    return 0.5 * ((soft - centre).square() + (hard - centre).square()).sum(dim=1).mean()


def gini_batch(p: Tensor) -> Tensor:
    """Eq. 6 of p [n, M, K], mean over the parts: 1/K if all codewords are used equally."""
    return p.mean(dim=0).square().sum(dim=-1).mean()


def gini_sample(p: Tensor) -> Tensor:
    """Eq. 7 of p [n, M, K], mean over rows and parts: −1 if every assignment is certain."""
    return -p.square().sum(dim=-1).mean()


class DPQNetwork(PosteriorNetwork):
    """Backbone, M parts, codebooks, the prediction layer, and the centres of the classes."""

    training_only = frozenset({"centres"})

    def __init__(self, settings: DPQSettings, dx: int, L: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.settings = settings
        M, K = settings.M, settings.K
        n = settings.width // M
        d = settings.d or n
        self.trunk = trunk(settings, dx, n * M, pretrained=pretrained)
        self.first = Parts(M, n, settings.part_hidden)
        self.second = Parts(M, settings.part_hidden, K)
        self.words = nn.Parameter(torch.randn(M, K, d) / d**0.5)
        self.head = nn.Linear(n * M, L) if settings.head else None
        self.predict = nn.Linear(M * d, L)
        self.centres = nn.Parameter(torch.zeros(L, M * d))
        self.beliefs = CodewordPosteriors(M, K, L) if settings.query == "classes" else None

    def logits(self, s: Tensor) -> Tensor:
        """Logits of codewords [n, M, K] of an embedding layer [n, U]."""
        s = s.view(len(s), self.settings.M, -1)
        return self.second(F.relu(self.first(s)))

    def embedding_layer(self, x: Tensor) -> Tensor:
        """[n, dx] to [n, U]."""
        return F.relu(self.trunk(x))

    def assignment(self, s: Tensor) -> Tensor:
        """Probabilities of codewords p [n, M, K] of an embedding layer [n, U]."""
        return self.logits(s).float().softmax(dim=-1)

    def represent(self, coefficients: Tensor) -> Tensor:
        """Soft [n, D] of probabilities, hard of one-hot vectors [n, M, K]; eq. 3 and 4."""
        parts = soft_of(coefficients, self.words)
        if self.settings.intra_norm:
            parts = intra_normalise(parts)
        return parts.flatten(1)

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "dpq streams labels"
        settings = self.settings
        s = self.embedding_layer(batch.x)
        p = self.assignment(s)
        soft, hard = self.represent(p), self.represent(one_hot_of(p))
        terms, target = {}, batch.y
        if self.head is not None:
            scores = self.head(s).float()
            terms["head"] = settings.head * F.cross_entropy(scores, batch.y)
            target = scores.detach().softmax(dim=-1)
        return {
            **terms,
            "soft": F.cross_entropy(self.predict(soft), target),
            "hard": settings.hard * F.cross_entropy(self.predict(hard), target),
            "central": settings.central * joint_central_loss(soft, hard, self.centres[batch.y]),
            "gini_batch": settings.gini_batch * gini_batch(p),
            "gini_sample": settings.gini_sample * gini_sample(p),
        }

    def embed(self, x: Tensor) -> Tensor:
        """The soft representation (section 3.1.4), with its posteriors if used; [n, D]."""
        p = self.assignment(self.embedding_layer(x))
        soft = self.represent(p)
        return (
            soft
            if self.beliefs is None
            else self.beliefs.append_mean(self._parts(soft), p).flatten(1)
        )

    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = self.embedding_layer(x)
        p = self.assignment(s)
        scores = self.predict(self.represent(p)) if self.head is None else self.head(s)
        return scores.float().softmax(dim=-1), p.argmax(dim=-1)

    def queries(self, x: Tensor) -> Tensor:
        if self.beliefs is None:
            return self.embed(x)
        P, _ = self.probabilities(x)
        return self.beliefs.query_vectors(P, self.words.shape[-1]).flatten(1)

    def codes(self, x: Tensor) -> Tensor:
        return self.logits(self.embedding_layer(x)).argmax(dim=-1)

    def codebooks(self) -> Tensor:
        words = intra_normalise(self.words) if self.settings.intra_norm else self.words
        return words if self.beliefs is None else self.beliefs.append_to(words)

    def class_layer(self) -> tuple[Tensor, Tensor]:
        W = self.predict.weight
        if self.beliefs is not None:
            W = self.beliefs.pad_weights(self._parts(W)).flatten(1)
        return W, self.predict.bias

    def _parts(self, rows: Tensor) -> Tensor:
        """[n, M·d] to [n, M, d]."""
        return rows.view(len(rows), self.settings.M, -1)


class DPQClassNetwork(ClassCodesNetwork):
    """Backbone and classifier; its class probabilities are stored."""

    def __init__(
        self,
        settings: DPQSettings,
        dx: int,
        classes: TrainedClasses,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__(classes, settings)
        self.settings = settings
        self.trunk = trunk(settings, dx, settings.width, pretrained=pretrained)
        self.head = nn.Linear(settings.width, classes.L)

    def class_logits(self, x: Tensor) -> Tensor:
        if self.settings.backbone == "mlp" and not self.early:  # features, by their direction
            x = x.shape[1] ** 0.5 * F.normalize(x, dim=1)
        scores: Tensor = self.head(F.relu(self.trunk(x)))
        return scores.float()

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "dpq streams labels"
        loss = F.cross_entropy(self.class_logits(batch.x), batch.y)
        return {"head": self.settings.head * loss}


@dataclass(frozen=True, kw_only=True, eq=False)
class DPQModel(ClassCodesModel):
    """With codes of sub-networks: encodes by arg-max of the logits; classes by the prediction layer
    (LUTC, section 3.1.2)."""

    method = "dpq"
    legacy_settings: ClassVar[Mapping[str, Any]] = {
        "codes": "parts",
        "feature_dropout": 0.0,
        "query": "soft",
        "head": 0.0,
    }
    settings: DPQSettings

    @property
    def prediction_metric(self) -> Metric:
        return "dot"

    @property
    def stores_classes(self) -> bool:
        return self.settings.stores_classes(len(self.classes or ()))

    def build_network(self) -> Network:
        L = len(self.classes or ())
        if self.stores_classes:
            return DPQClassNetwork(self.settings, self.dx, self.trained_classes(L))
        return DPQNetwork(self.settings, self.dx, L)


class DPQ(PosteriorMethod):
    """Deep product quantization, from features or from images."""

    name = "dpq"
    settings_class: ClassVar[type[MethodSettings]] = DPQSettings
    model_class: ClassVar[type[NetworkModel]] = DPQModel
    needs_classes = True
    settings: DPQSettings

    def build(self, dataset_info: TrainingSetInfo) -> Network:
        check_query_metric(self.settings.query, self.settings.metric)
        if self.settings.stores_classes(dataset_info.L):
            check_unused(self.settings, _OF_PARTS, codes="classes")
            classes = TrainedClasses.of(dataset_info)
            return DPQClassNetwork(self.settings, dataset_info.dx, classes, pretrained=True)
        check_unused(self.settings, OF_CLASSES, codes="parts")
        if self.settings.width < self.settings.M:
            raise ConfigError(
                f"M: {self.settings.M} parts need an embedding layer of at least as many units, "
                f"found width = {self.settings.width}"
            )
        return DPQNetwork(self.settings, dataset_info.dx, dataset_info.L, pretrained=True)
