"""Deep product quantization (Klein and Wolf, "In Defense of Product Quantization").

M small networks end in a softmax over K codewords each. *Soft* is the mean of the codewords under
it, *hard* the codeword of its largest entry, reached by the straight-through estimator. Labels
teach both: softmax losses, and one centre for each class that draws both to it.

Beyond the paper, a codeword carries beside its vector what it believes of a row that has it: the
mean probabilities of the classes among the training rows that chose it. A query asks with its own
probabilities, so its score of a code is how likely the two are of one class, as each part judges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raypq.config import Metric, Positive
from raypq.data.class_layer import ClassLayer
from raypq.data.models import ModelFiles
from raypq.errors import ConfigError
from raypq.methods.backbones import TrunkSettings, trunk
from raypq.methods.base import Corpus, MethodSettings
from raypq.methods.gradient import Batch, GradientMethod, Network, NetworkModel, tensor_of
from raypq.methods.layers import Parts, intra_normalise, one_hot_of

_BLOCK = 1024  # rows that are observed at once
_WEIGHT = 4.0  # of beliefs beside words: codes that are compared with codes differ by these first


class DPQSettings(TrunkSettings):
    """The paper's architecture for CIFAR-10, and the weights of its losses.

    From features: chosen on rows held out of CIFAR-10's training set (docs/results.md).
    """

    M: Positive = Field(4, description="sub-codebooks; bytes per image at K = 256")
    metric: Metric = "dot"
    query: Literal["classes", "soft"] = Field(
        "classes", description="what asks in asymmetric search; soft (and metric l2): the paper's"
    )
    hidden: Positive = Field(1024, description="units of the mlp")
    dropout: float = Field(0.5, ge=0, lt=1, description="in the mlp and in vgg32")
    width: Positive = Field(500, description="units U of the embedding layer; cut to a multiple")
    part_hidden: Positive = Field(128, description="units of each part's network")
    d: Positive | None = Field(None, description="width of a codeword; default: U / M")
    hard: float = Field(1.0, ge=0, description="weight of the softmax loss on hard")
    central: float = Field(0.03, ge=0, description="weight of the joint central loss, eq. 5")
    gini_batch: float = Field(4.0, ge=0, description="weight of eq. 6")
    gini_sample: float = Field(0.1, ge=0, description="weight of eq. 7")
    intra_norm: bool = Field(False, description="unit length for each part of soft and hard")


def soft_of(p: Tensor, C: Tensor) -> Tensor:
    """Eq. 1: p [n, M, K] and C [M, K, d] to [n, M, d]."""
    return torch.einsum("nmk,mkd->nmd", p, C)


def joint_central_loss(soft: Tensor, hard: Tensor, centre: Tensor) -> Tensor:
    """Eq. 5 for both: ½‖soft − o_y‖² + ½‖hard − o_y‖², mean over rows [n, D]."""
    return 0.5 * ((soft - centre).square() + (hard - centre).square()).sum(dim=1).mean()


def gini_batch(p: Tensor) -> Tensor:
    """Eq. 6 of p [n, M, K], mean over the parts: 1/K when all codewords are used alike."""
    return p.mean(dim=0).square().sum(dim=-1).mean()


def gini_sample(p: Tensor) -> Tensor:
    """Eq. 7 of p [n, M, K], mean over rows and parts: −1 when every row is decided."""
    return -p.square().sum(dim=-1).mean()


class DPQNetwork(Network):
    """Backbone, M parts, codebooks, the prediction layer, and the centres of the classes.

    Where queries ask with classes, codewords have beliefs too: [M, K, r], the mean probabilities of
    the L classes on ``axes`` [L, r]. Those are the classes, or, where that would be wider than a
    codeword, the r = d directions that keep most of what is believed.
    """

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
        self.predict = nn.Linear(M * d, L)
        self.centres = nn.Parameter(torch.zeros(L, M * d))
        if settings.query == "classes":  # counted in the end, by ``observe``
            r = min(L, d)
            self.beliefs = nn.Parameter(torch.zeros(M, K, r), requires_grad=False)
            self.axes = nn.Parameter(torch.eye(L, r), requires_grad=False)

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        return [
            parameter
            for name, parameter in self.named_parameters()
            if name not in ("beliefs", "axes")
        ]

    def logits(self, x: Tensor) -> Tensor:
        """[n, dx] to [n, M, K]."""
        s = F.relu(self.trunk(x))
        s = s.view(len(x), self.settings.M, -1)
        return self.second(F.relu(self.first(s)))

    def represent(self, coefficients: Tensor) -> Tensor:
        """Soft [n, D] of probabilities, hard of one-hot vectors [n, M, K]; eq. 3 and 4."""
        parts = soft_of(coefficients, self.words)
        if self.settings.intra_norm:
            parts = intra_normalise(parts)
        return parts.flatten(1)

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "dpq streams labels"
        weigh = self.settings
        p = self.logits(batch.x).float().softmax(dim=-1)
        soft, hard = self.represent(p), self.represent(one_hot_of(p))
        return {
            "soft": F.cross_entropy(self.predict(soft), batch.y),
            "hard": weigh.hard * F.cross_entropy(self.predict(hard), batch.y),
            "central": weigh.central * joint_central_loss(soft, hard, self.centres[batch.y]),
            "gini_batch": weigh.gini_batch * gini_batch(p),
            "gini_sample": weigh.gini_sample * gini_sample(p),
        }

    def embed(self, x: Tensor) -> Tensor:
        """The soft representation (section 3.1.4), with soft beliefs beside each part; [n, D]."""
        p = self.logits(x).float().softmax(dim=-1)
        soft = self.represent(p)
        if self.settings.query == "soft":
            return soft
        parts = soft.view(len(x), self.settings.M, -1)
        return torch.cat([parts, soft_of(p, self.beliefs)], dim=-1).flatten(1)

    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """P(t|x) [n, L] by the prediction layer on soft, and the codes [n, M]."""
        p = self.logits(x).float().softmax(dim=-1)
        return self.predict(self.represent(p)).softmax(dim=-1), p.argmax(dim=-1)

    def queries(self, x: Tensor) -> Tensor:
        """Soft; or the classes' probabilities, so that the score of a code by dot product is the
        mean over its parts of Σ_t P(t|x) b_t, where b is the belief of the part's codeword."""
        if self.settings.query == "soft":
            return self.embed(x)
        asked = (self.probabilities(x)[0] @ self.axes) / (_WEIGHT * self.settings.M)
        words = torch.zeros(self.words.shape[-1], device=x.device).expand(len(x), -1)
        return torch.cat([words, asked], dim=-1).repeat(1, self.settings.M)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Sets the beliefs from rows x [n, dx], whose labels are not asked for.

        The mean over all rows counts as one more row of each codeword, so that what nothing chose
        believes just that.
        """
        M, K = self.settings.M, self.settings.K
        L = len(self.axes)
        total = torch.zeros(M, K, L, dtype=torch.float64)
        count = torch.zeros(M, K, 1, dtype=torch.float64)
        for part in torch.split(x, _BLOCK):
            P, B = self.probabilities(part)
            for m in range(M):
                total[m].index_add_(0, B[:, m].cpu(), P.double().cpu())
                count[m, :, 0] += torch.bincount(B[:, m].cpu(), minlength=K)
        believed = (total + total[0].sum(dim=0) / max(1, len(x))) / (count + 1)
        r = self.axes.shape[1]
        if r < L:
            found = torch.linalg.svd(believed.flatten(0, 1), full_matrices=False).Vh[:r].T
            self.axes.zero_()[:, : found.shape[1]] = found
        self.beliefs.copy_(_WEIGHT * believed @ self.axes.double().cpu())

    def codes(self, x: Tensor) -> Tensor:
        return self.logits(x).argmax(dim=-1)

    def codebooks(self) -> Tensor:
        words = intra_normalise(self.words) if self.settings.intra_norm else self.words
        return words if self.settings.query == "soft" else torch.cat([words, self.beliefs], dim=-1)

    def class_layer(self) -> tuple[Tensor, Tensor]:
        W = self.predict.weight
        if self.settings.query == "classes":  # which reads the words alone
            parts = W.view(len(W), self.settings.M, -1)
            W = F.pad(parts, (0, self.axes.shape[1])).flatten(1)
        return W, self.predict.bias


@dataclass(frozen=True, kw_only=True, eq=False)
class DPQModel(NetworkModel):
    """Encodes by arg-max of the logits; classes by the prediction layer (LUTC, section 3.1.2)."""

    method = "dpq"
    settings: DPQSettings

    @classmethod
    def from_files(
        cls, files: ModelFiles, settings: MethodSettings, layer: ClassLayer | None = None
    ) -> Self:
        if "query" not in files.content["settings"]:  # trained before there was another one
            settings = settings.model_copy(update={"query": "soft"})
        return super().from_files(files, settings, layer)

    @property
    def class_metric(self) -> Metric:
        return "dot"

    def blank(self) -> DPQNetwork:
        return DPQNetwork(self.settings, self.dx, len(self.classes or ()))


class DPQ(GradientMethod):
    """Deep product quantization, from features or from images."""

    name = "dpq"
    settings_class: ClassVar[type[MethodSettings]] = DPQSettings
    model_class: ClassVar[type[NetworkModel]] = DPQModel
    needs_classes = True
    sample_rows = 50_000
    settings: DPQSettings

    def judge(self, network: Network, x: Tensor, y: Tensor) -> float | None:
        if self.settings.query == "classes":
            assert isinstance(network, DPQNetwork), "built here"
            network.observe(x)  # as they are by now
        return None

    def finish(
        self, network: Network, corpus: Corpus, X: NDArray[np.float32], y: NDArray[np.int32]
    ) -> None:
        if self.settings.query == "classes":
            assert isinstance(network, DPQNetwork), "built here"
            network.observe(tensor_of(X))

    def build(self, corpus: Corpus) -> Network:
        if self.settings.width < self.settings.M:
            raise ConfigError(
                f"M: {self.settings.M} parts need an embedding layer of at least as many units, "
                f"found width = {self.settings.width}"
            )
        return DPQNetwork(self.settings, corpus.dx, corpus.L, pretrained=True)
