"""Generalized product quantization (Jang and Cho), semi-supervised.

Features and codewords are at unit length part by part; a row's soft assignment follows its cosine
with the codewords. Labels teach by an N-pair loss between features and quantized features and by
a cosine classifier in each part, whose weights are *sub-prototypes* of the classes. On rows
without labels the entropy of the classifier is maximised by the sub-prototypes and minimised by
the features, through a gradient reversal.

Beyond the paper, and by default: whole rows and their codes are classified too, and rows without
labels must say, by their codes, which classes the network expects of them; a query then asks
codewords for what these believe (``beliefs``). ``AS_PUBLISHED`` are the settings that leave this
out.
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
from raypq.methods.base import MethodSettings, Normalise, TrainingSetInfo
from raypq.methods.gradient import Batch, Network, NetworkModel, Schedule
from raypq.methods.support.backbones import TrunkSettings, trunk
from raypq.methods.support.class_posteriors import (
    CodewordPosteriors,
    PosteriorMethod,
    PosteriorNetwork,
    check_asking,
)
from raypq.methods.support.layers import intra_normalise, one_hot_of, reverse_gradient


class GPQSettings(TrunkSettings):
    """The paper's settings (section 4.1), with its symbols.

    Those of the mlp, for features, were chosen on rows held out of CIFAR-10's training set
    (docs/methods/gpq.md).
    """

    M: Positive = Field(8, description="sub-codebooks")
    K: int = Field(16, ge=1, le=256, description="codewords in each sub-codebook")
    metric: Metric = "dot"
    normalise: Normalise = "unit"
    hidden: Positive = Field(1024, description="units of the mlp")
    dropout: float = Field(0.7, ge=0, lt=1, description="in the mlp and in vgg32")
    epochs: Positive = Field(10, description="passes over the larger store")
    schedule: Schedule = "cosine"
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first momentum")
    rate: float = Field(2e-4, gt=0, description="learning rate of Adam at the start")
    d: Positive = Field(12, description="width of a part")
    alpha: float = Field(8.0, gt=0, description="how hard soft assignment is, eq. 1")
    beta: float = Field(4.0, gt=0, description="scale of the cosine classifier, eq. 3 and 4")
    lambda1: float = Field(0.1, ge=0, description="weight of the classification loss, eq. 5")
    lambda2: float = Field(0.1, ge=0, description="weight of the entropy mini-max, eq. 5")
    similarity: Literal["npair", "triplet"] = Field(
        "npair", description="the metric loss; triplet is the paper's GPQ-T"
    )
    margin: float = Field(0.1, gt=0, description="of the triplet loss")
    joint: float = Field(
        3.0, ge=0, description="weight of classifying whole rows and their codes; 0: the paper's"
    )
    distil: float = Field(
        3.0, ge=0, description="as joint, of unlabelled rows by expected classes; 0: the paper's"
    )
    distil_from: int = Field(3, ge=0, description="epoch of the first distil, counted from 0")
    gamma: float = Field(8.0, gt=0, description="scale of the cosine classifier of whole rows")
    query: Literal["classes", "vector"] = Field(
        "classes", description="what asks in asymmetric search; vector: the paper's"
    )

    @model_validator(mode="after")
    def _expectations_are_taught(self) -> GPQSettings:
        for name, asked in (("query", self.query == "classes"), ("distil", self.distil > 0)):
            if asked and not self.joint:
                raise ValueError(
                    f"{name}: {getattr(self, name)} wants the classes that a row expects, which "
                    "joint = 0 does not teach"
                )
        return self

    @property
    def classifies(self) -> bool:
        """Whether there is a classifier at all; without it this is the paper's GPQ-H."""
        return self.lambda1 > 0 or self.lambda2 > 0 or self.joint > 0


AS_PUBLISHED: Mapping[str, Any] = {
    "alpha": 20.0,
    "joint": 0.0,
    "distil": 0.0,
    "query": "vector",
    "metric": "cosine",
    "schedule": "exponential",
}
"""What turns the defaults into the paper's method."""


def soft_assign(x: Tensor, Z: Tensor, alpha: float) -> Tensor:
    """Eq. 1: x [n, M, d] on words Z [M, K, d], all at unit length; [n, M, d].

    The paper prints the exponent with a minus; the nearest codeword must weigh most.
    """
    return torch.einsum("nmk,mkd->nmd", assignment(x, Z, alpha), Z)


def assignment(x: Tensor, Z: Tensor, alpha: float) -> Tensor:
    """The weights of eq. 1, [n, M, K]."""
    return (alpha * torch.einsum("nmd,mkd->nmk", x, Z)).softmax(dim=-1)


def n_pair_loss(x: Tensor, q: Tensor, y: Tensor) -> Tensor:
    """Eq. 2: cross entropy between x·qᵀ [n, n] and equal labels, each row's shares summing to 1."""
    same = (y[:, None] == y[None, :]).to(x.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    return F.cross_entropy(x.flatten(1) @ q.flatten(1).T, target)


def triplet_loss(q: Tensor, y: Tensor, margin: float) -> Tensor:
    """GPQ-T: every triplet of quantized vectors of a batch, by cosine; mean of those that cost."""
    q = F.normalize(q.flatten(1), dim=1)
    cosine = q @ q.T
    same = y[:, None] == y[None, :]
    positive = same & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    anchor, other = positive.nonzero(as_tuple=True)
    cost = F.relu(margin + cosine[anchor] - cosine[anchor, other][:, None])  # [pairs, n]
    cost = cost * ~same[anchor]
    return cost.sum() / (cost > 0).sum().clamp(min=1)


def classification_loss(x: Tensor, W: Tensor, y: Tensor, beta: float) -> Tensor:
    """Eq. 3: mean over the parts of cross entropy of β·x_m·W_m; x [n, M, d], W [M, L, d]."""
    p = beta * torch.einsum("nmd,mld->nml", x, W)
    return F.cross_entropy(p.flatten(0, 1), y.repeat_interleave(x.shape[1]))


def subspace_entropy(x: Tensor, W: Tensor, beta: float) -> Tensor:
    """Eq. 4: entropy of softmax(β·x_m·W_m), mean over rows and parts, in nats."""
    logs = (beta * torch.einsum("nmd,mld->nml", x, W)).log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1).mean()


class GPQNetwork(PosteriorNetwork):
    """Feature extractor F, codewords Z, and sub-prototypes W."""

    def __init__(self, settings: GPQSettings, dx: int, L: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.epoch = 0
        M, K, d = settings.M, settings.K, settings.d
        self.trunk = trunk(settings, dx, M * d, pretrained=pretrained)
        self.Z = nn.Parameter(torch.randn(M, K, d))
        if settings.classifies:
            self.W = nn.Parameter(torch.randn(M, L, d))
        self.beliefs = CodewordPosteriors(M, K, L) if settings.query == "classes" else None

    def begin_epoch(self, phase: str, epoch: int) -> None:
        self.epoch = epoch

    def features(self, x: Tensor, *, reverse: bool = False) -> Tensor:
        """[n, dx] to [n, M, d] at unit length; the reversal sits before the normalisation."""
        f = self.trunk(x).float()
        f = reverse_gradient(f) if reverse else f
        return intra_normalise(f.view(len(x), self.settings.M, -1))

    def codewords(self) -> Tensor:
        """Codewords [M, K, d] at unit length, refreshed through the sub-prototypes.

        z' = s_m(z; α, W_m), here and so in training and in retrieval alike.
        """
        Z = intra_normalise(self.Z)
        if not self.settings.classifies:
            return Z
        refreshed = soft_assign(Z.transpose(0, 1), self.prototypes(), self.settings.alpha)
        return intra_normalise(refreshed.transpose(0, 1))

    def prototypes(self) -> Tensor:
        """Sub-prototypes [M, L, d] at unit length."""
        return intra_normalise(self.W)

    def class_scores(self, x: Tensor) -> Tensor:
        """Scores of the classes [n, L] of whole rows x [n, M, d]: γ times the mean cosine."""
        cosine = torch.einsum("nmd,mld->nl", x, self.prototypes())
        return self.settings.gamma / self.settings.M * cosine

    def expected(self, x: Tensor) -> Tensor:
        """Probabilities of the classes [n, L] of rows x [n, dx], as in inference; no gradient."""
        training = self.training
        self.eval()
        with torch.no_grad():
            found = self.class_scores(self.features(x)).softmax(dim=-1)
        self.train(training)
        return found

    def joint_loss(self, x: Tensor, C: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of whole rows x [n, M, d], and of their codes, against classes [n] or
        probabilities [n, L]; the codes by the straight-through estimator."""
        e = one_hot_of(assignment(x, C, self.settings.alpha))
        hard = torch.einsum("nmk,mkd->nmd", e, C)
        losses = [F.cross_entropy(self.class_scores(v), target) for v in (x, hard)]
        return losses[0] + losses[1]

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "gpq streams labels"
        weigh = self.settings
        x, C = self.features(batch.x), self.codewords()
        q = soft_assign(x, C, weigh.alpha)
        terms = (
            {"n_pair": n_pair_loss(x, q, batch.y)}
            if weigh.similarity == "npair"
            else {"triplet": triplet_loss(q, batch.y, weigh.margin)}
        )
        if weigh.classifies:
            W = self.prototypes()
            terms["class"] = weigh.lambda1 * classification_loss(x, W, batch.y, weigh.beta)
        if weigh.joint:
            terms["joint"] = weigh.joint * self.joint_loss(x, C, batch.y)
        if weigh.distil and self.epoch >= weigh.distil_from:
            assert batch.u is not None, "gpq streams unlabelled rows"
            target = self.expected(batch.u)
            terms["distil"] = weigh.distil * self.joint_loss(self.features(batch.u), C, target)
        if weigh.lambda2:
            assert batch.u is not None, "gpq streams unlabelled rows"
            u = self.features(batch.u, reverse=True)
            terms["entropy"] = -weigh.lambda2 * subspace_entropy(u, W, weigh.beta)
        return terms

    def codebooks(self) -> Tensor:
        C = self.codewords()
        return C if self.beliefs is None else self.beliefs.beside(C)

    def embed(self, x: Tensor) -> Tensor:
        f = self.features(x)
        if self.beliefs is not None:
            f = self.beliefs.of(f, assignment(f, self.codewords(), self.settings.alpha))
        return f.flatten(1)

    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.features(x)
        return self.class_scores(f).softmax(dim=-1), self._nearest(f)

    def queries(self, x: Tensor) -> Tensor:
        if self.beliefs is None:
            return self.embed(x)
        P, _ = self.probabilities(x)
        return self.beliefs.asked(P, self.settings.d).flatten(1)

    def codes(self, x: Tensor) -> Tensor:
        return self._nearest(self.features(x))

    def _nearest(self, f: Tensor) -> Tensor:
        """The codewords of the largest cosines [n, M] of features [n, M, d]; ties to the lower."""
        return torch.einsum("nmd,mkd->nmk", f, self.codewords()).argmax(dim=-1)

    def class_layer(self) -> tuple[Tensor, Tensor] | None:
        if not self.settings.classifies:
            return None
        V = self.prototypes().transpose(0, 1)
        V = V if self.beliefs is None else self.beliefs.ignored(V)
        return V.flatten(1), torch.zeros(len(V), device=V.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class GPQModel(NetworkModel):
    """Encodes by cosine; classes by their sub-prototypes."""

    method = "gpq"
    unwritten: ClassVar[Mapping[str, Any]] = AS_PUBLISHED
    settings: GPQSettings

    @property
    def class_metric(self) -> Metric:
        return "dot"

    def blank(self) -> GPQNetwork:
        L = self.tensors["net.W"].shape[1] if self.settings.classifies else 0
        return GPQNetwork(self.settings, self.dx, L)


class GPQ(PosteriorMethod):
    """Generalized product quantization, from labelled and unlabelled rows."""

    name = "gpq"
    settings_class: ClassVar[type[MethodSettings]] = GPQSettings
    model_class: ClassVar[type[NetworkModel]] = GPQModel
    needs_classes = True
    needs_unlabelled = True
    settings: GPQSettings

    def build(self, corpus: TrainingSetInfo) -> Network:
        check_asking(self.settings.query, self.settings.metric)
        return GPQNetwork(self.settings, corpus.dx, corpus.L, pretrained=True)
