"""Generalized product quantization (Jang and Cho), semi-supervised.

Each part of features and codewords has unit length; a row's soft assignment is a softmax of its
cosines with the codewords. The losses of labelled rows are an N-pair loss between features and
quantized features, and that of a cosine classifier in each part, whose weights are *sub-prototypes*
of the classes. On unlabelled rows the sub-prototypes maximise the entropy of the classifier and the
features minimise it, by gradient reversal.

Beyond the paper, and by default: whole rows are classified, too; unlabelled rows are trained to
predict, with dropout, the class probabilities that the network computes without; and codes quantize
class probabilities (``support.class_codes``) where there are no more classes than codewords. Where
there are more, the codes of rows are trained as the rows are, and queries are compared with class
posteriors of codewords (``support.class_posteriors``). ``AS_PUBLISHED`` are the settings without
these.
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
from raypq.methods.support.layers import intra_normalise, one_hot_of, reverse_gradient


class GPQSettings(ClassCodesSettings):
    """The paper's settings (section 4.1), with its symbols.

    Those of the mlp, for features, were chosen on rows held out of CIFAR-10's training set
    (docs/methods/gpq.md).
    """

    usual_temperature: ClassVar[float] = 1.6
    M: Positive = Field(4, description="sub-codebooks; bytes per image at K = 256")
    metric: Metric = "dot"
    normalise: Normalise = "unit"
    hidden: Positive = Field(2048, description="units of the mlp")
    dropout: float = Field(0.6, ge=0, lt=1, description="in the mlp and in vgg32")
    feature_dropout: float = Field(0.3, ge=0, lt=1, description="of features, before the mlp")
    weight_decay: float = Field(0.05, ge=0)
    schedule: Schedule = "cosine"
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first momentum")
    d: Positive = Field(64, description="width of a sub-vector")
    alpha: float = Field(8.0, gt=0, description="sharpness of soft assignment, eq. 1")
    beta: float = Field(4.0, gt=0, description="scale of the cosine classifier, eq. 3 and 4")
    lambda1: float = Field(0.1, ge=0, description="weight of the classification loss, eq. 5")
    lambda2: float = Field(0.1, ge=0, description="weight of the entropy mini-max, eq. 5")
    similarity: Literal["npair", "triplet"] = Field(
        "npair", description="the metric loss; triplet is the paper's GPQ-T"
    )
    margin: float = Field(0.1, gt=0, description="margin of the triplet loss")
    joint: float = Field(
        3.0, ge=0, description="weight of classifying whole rows and their codes; 0: the paper's"
    )
    distil: float = Field(
        3.0,
        ge=0,
        description="as joint, for unlabelled rows by their expected classes; 0: the paper's",
    )
    distil_from: int = Field(
        3, ge=0, description="first epoch with the distil term, counted from 0"
    )
    gamma: float = Field(16.0, gt=0, description="scale of the cosine classifier of whole rows")
    codes: Literal["classes", "parts"] | None = Field(
        None,
        description="what codes store: class probabilities (classes), or the nearest codeword of "
        "each sub-vector, as in the paper (parts); default: classes if there are no more than K "
        "of them and query = classes",
    )
    query: Literal["classes", "vector"] = Field(
        "classes", description="query vectors of asymmetric search; vector: the paper's"
    )

    @model_validator(mode="after")
    def _probabilities_are_trained(self) -> GPQSettings:
        if self.codes == "classes" and self.query != "classes":
            raise ValueError(f"codes: classes needs query = classes, found {self.query}")
        for name, needed in (("query", self.query == "classes"), ("distil", self.distil > 0)):
            if needed and not self.joint:
                raise ValueError(
                    f"joint: 0 trains no class probabilities of whole rows, which {name} = "
                    f"{getattr(self, name)} needs; set query = vector and distil = 0 as well, as "
                    "in the paper"
                )
        return self

    def stores_classes(self, L: int) -> bool:
        """Whether codes store the probabilities of the L classes, rather than assignments."""
        if self.codes is None:
            return self.query == "classes" and self.K >= L
        return self.codes == "classes"

    @property
    def classifies(self) -> bool:
        """Whether the network has a classifier; without one it is the paper's GPQ-H."""
        return self.lambda1 > 0 or self.lambda2 > 0 or self.joint > 0


_OF_PARTS = ("alpha", "similarity", "margin")

AS_PUBLISHED: Mapping[str, Any] = {
    "codes": "parts",
    "M": 8,
    "K": 16,
    "d": 12,
    "hidden": 1024,
    "dropout": 0.7,
    "feature_dropout": 0.0,
    "epochs": 10,
    "rate": 2e-4,
    "weight_decay": 0.0,
    "alpha": 20.0,
    "joint": 0.0,
    "distil": 0.0,
    "query": "vector",
    "metric": "cosine",
    "schedule": "exponential",
}
"""The settings of the paper's method that differ from the defaults."""


def soft_assign(x: Tensor, Z: Tensor, alpha: float) -> Tensor:
    """Eq. 1: x [n, M, d] on codewords Z [M, K, d], all of unit length; [n, M, d].

    The paper prints the exponent with a minus sign, but the nearest codeword must weigh most.
    """
    return torch.einsum("nmk,mkd->nmd", assignment(x, Z, alpha), Z)


def assignment(x: Tensor, Z: Tensor, alpha: float) -> Tensor:
    """The weights of eq. 1, [n, M, K]."""
    return (alpha * torch.einsum("nmd,mkd->nmk", x, Z)).softmax(dim=-1)


def n_pair_loss(x: Tensor, q: Tensor, y: Tensor) -> Tensor:
    """Eq. 2: cross entropy of x·qᵀ [n, n] against equal labels, each row normalised to sum 1."""
    same = (y[:, None] == y[None, :]).to(x.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    return F.cross_entropy(x.flatten(1) @ q.flatten(1).T, target)


def triplet_loss(q: Tensor, y: Tensor, margin: float) -> Tensor:
    """GPQ-T: triplet loss of quantized vectors by cosine; mean over triplets of positive loss."""
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


class SubspaceClassifier(Network):
    """Feature extractor F (``trunk``) and sub-prototypes W [M, L, d], compared by cosine."""

    settings: GPQSettings
    trunk: nn.Module
    W: nn.Parameter
    epoch = 0
    gain = 1.0  # of rows, before the trunk

    def begin_epoch(self, phase: str, epoch: int) -> None:
        self.epoch = epoch

    def features(self, x: Tensor, *, reverse: bool = False) -> Tensor:
        """[n, dx] to [n, M, d] of unit length; gradients are reversed before the normalisation."""
        return self.parts_of(self.trunk(self.gain * x), reverse=reverse)

    def parts_of(self, f: Tensor, *, reverse: bool = False) -> Tensor:
        """Output of the trunk [n, M·d] to [n, M, d], as ``features``."""
        f = reverse_gradient(f.float()) if reverse else f.float()
        return intra_normalise(f.view(len(f), self.settings.M, -1))

    def prototypes(self) -> Tensor:
        """Sub-prototypes [M, L, d] at unit length."""
        return intra_normalise(self.W)

    def class_scores(self, x: Tensor) -> Tensor:
        """Scores of the classes [n, L] of whole rows x [n, M, d]: γ times the mean cosine."""
        cosine = torch.einsum("nmd,mld->nl", x, self.prototypes())
        return self.settings.gamma / self.settings.M * cosine

    def inferred_classes(self, x: Tensor) -> Tensor:
        """Class probabilities [n, L] of rows x [n, dx], in inference mode and without gradient."""
        training = self.training
        self.eval()
        with torch.no_grad():
            probabilities = self.class_scores(self.features(x)).softmax(dim=-1)
        self.train(training)
        return probabilities

    def entropy_loss(self, x: Tensor) -> Tensor:
        """The entropy mini-max, eq. 4, weighted, of reversed features [n, M, d] of unlabelled
        rows."""
        settings = self.settings
        return -settings.lambda2 * subspace_entropy(x, self.prototypes(), settings.beta)


class GPQClassNetwork(SubspaceClassifier, ClassCodesNetwork):
    """The classifier alone; its class probabilities are stored."""

    def __init__(
        self,
        settings: GPQSettings,
        dx: int,
        classes: TrainedClasses,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__(classes, settings)
        self.settings = settings
        self.trunk = trunk(settings, dx, settings.M * settings.d, pretrained=pretrained)
        self.W = nn.Parameter(torch.randn(settings.M, classes.L, settings.d))
        # The first layer expects values of about 1; those of rows of unit length are smaller.
        self.gain = dx**0.5 if settings.normalise == "unit" else 1.0

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "gpq streams labels"
        assert batch.u is not None, "gpq streams unlabelled rows"
        settings = self.settings
        x = self.features(batch.x)
        terms = {"joint": settings.joint * F.cross_entropy(self.class_scores(x), batch.y)}
        if settings.lambda1:
            W = self.prototypes()
            terms["class"] = settings.lambda1 * classification_loss(x, W, batch.y, settings.beta)
        f = self.trunk(self.gain * batch.u)
        if settings.distil and self.epoch >= settings.distil_from:
            scores = self.class_scores(self.parts_of(f))
            target = self.inferred_classes(batch.u)
            terms["distil"] = settings.distil * F.cross_entropy(scores, target)
        if settings.lambda2:
            terms["entropy"] = self.entropy_loss(self.parts_of(f, reverse=True))
        return terms

    def class_logits(self, x: Tensor) -> Tensor:
        return self.class_scores(self.features(x))


class GPQNetwork(SubspaceClassifier, PosteriorNetwork):
    """The classifier, and codewords Z."""

    def __init__(self, settings: GPQSettings, dx: int, L: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.settings = settings
        M, K, d = settings.M, settings.K, settings.d
        self.trunk = trunk(settings, dx, M * d, pretrained=pretrained)
        self.Z = nn.Parameter(torch.randn(M, K, d))
        if settings.classifies:
            self.W = nn.Parameter(torch.randn(M, L, d))
        self.beliefs = CodewordPosteriors(M, K, L) if settings.query == "classes" else None

    def codewords(self) -> Tensor:
        """Codewords [M, K, d] of unit length, soft-assigned to the sub-prototypes.

        z' = s_m(z; α, W_m), in training as in retrieval.
        """
        Z = intra_normalise(self.Z)
        if not self.settings.classifies:
            return Z
        assigned = soft_assign(Z.transpose(0, 1), self.prototypes(), self.settings.alpha)
        return intra_normalise(assigned.transpose(0, 1))

    def joint_loss(self, x: Tensor, C: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of whole rows x [n, M, d], and of their codes, against classes [n] or
        probabilities [n, L]; the codes by the straight-through estimator."""
        e = one_hot_of(assignment(x, C, self.settings.alpha))
        hard = torch.einsum("nmk,mkd->nmd", e, C)
        losses = [F.cross_entropy(self.class_scores(v), target) for v in (x, hard)]
        return losses[0] + losses[1]

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "gpq streams labels"
        settings = self.settings
        x, C = self.features(batch.x), self.codewords()
        q = soft_assign(x, C, settings.alpha)
        terms = (
            {"n_pair": n_pair_loss(x, q, batch.y)}
            if settings.similarity == "npair"
            else {"triplet": triplet_loss(q, batch.y, settings.margin)}
        )
        if settings.classifies:
            W = self.prototypes()
            terms["class"] = settings.lambda1 * classification_loss(x, W, batch.y, settings.beta)
        if settings.joint:
            terms["joint"] = settings.joint * self.joint_loss(x, C, batch.y)
        if settings.distil and self.epoch >= settings.distil_from:
            assert batch.u is not None, "gpq streams unlabelled rows"
            target = self.inferred_classes(batch.u)
            terms["distil"] = settings.distil * self.joint_loss(self.features(batch.u), C, target)
        if settings.lambda2:
            assert batch.u is not None, "gpq streams unlabelled rows"
            terms["entropy"] = self.entropy_loss(self.features(batch.u, reverse=True))
        return terms

    def codebooks(self) -> Tensor:
        C = self.codewords()
        return C if self.beliefs is None else self.beliefs.append_to(C)

    def embed(self, x: Tensor) -> Tensor:
        f = self.features(x)
        if self.beliefs is not None:
            f = self.beliefs.append_mean(f, assignment(f, self.codewords(), self.settings.alpha))
        return f.flatten(1)

    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.features(x)
        return self.class_scores(f).softmax(dim=-1), self._nearest(f)

    def queries(self, x: Tensor) -> Tensor:
        if self.beliefs is None:
            return self.embed(x)
        P, _ = self.probabilities(x)
        return self.beliefs.query_vectors(P, self.settings.d).flatten(1)

    def codes(self, x: Tensor) -> Tensor:
        return self._nearest(self.features(x))

    def _nearest(self, f: Tensor) -> Tensor:
        """The codeword of largest cosine [n, M] for features [n, M, d]; ties to the lower index."""
        return torch.einsum("nmd,mkd->nmk", f, self.codewords()).argmax(dim=-1)

    def class_layer(self) -> tuple[Tensor, Tensor] | None:
        if not self.settings.classifies:
            return None
        V = self.prototypes().transpose(0, 1)
        V = V if self.beliefs is None else self.beliefs.pad_weights(V)
        return V.flatten(1), torch.zeros(len(V), device=V.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class GPQModel(ClassCodesModel):
    """Encodes by cosine; classes are sub-prototypes."""

    method = "gpq"
    legacy_settings: ClassVar[Mapping[str, Any]] = AS_PUBLISHED
    settings: GPQSettings

    @property
    def prediction_metric(self) -> Metric:
        return "dot"

    @property
    def stores_classes(self) -> bool:
        return self.settings.stores_classes(self._L)

    @property
    def _L(self) -> int:
        return self.tensors["net.W"].shape[1] if self.settings.classifies else 0

    def build_network(self) -> Network:
        if self.stores_classes:
            return GPQClassNetwork(self.settings, self.dx, self.trained_classes(self._L))
        return GPQNetwork(self.settings, self.dx, self._L)


class GPQ(PosteriorMethod):
    """Generalized product quantization, from labelled and unlabelled rows."""

    name = "gpq"
    settings_class: ClassVar[type[MethodSettings]] = GPQSettings
    model_class: ClassVar[type[NetworkModel]] = GPQModel
    needs_classes = True
    needs_unlabelled = True
    samples_unlabelled = True
    settings: GPQSettings

    def build(self, dataset_info: TrainingSetInfo) -> Network:
        check_query_metric(self.settings.query, self.settings.metric)
        dx, L = dataset_info.dx, dataset_info.L
        if self.settings.stores_classes(L):
            check_unused(self.settings, _OF_PARTS, codes="classes")
            classes = TrainedClasses.of(dataset_info)
            return GPQClassNetwork(self.settings, dx, classes, pretrained=True)
        check_unused(self.settings, OF_CLASSES, codes="parts")
        return GPQNetwork(self.settings, dx, L, pretrained=True)
