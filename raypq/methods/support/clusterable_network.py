"""Networks of the clusterable-features method: F, the mapping, the classifier and the CVAE.

Xu, Shu and Samaras, "Learning Clusterable Visual Features for Zero-Shot Recognition" (2020). An
image x goes through F (fine-tuned by Gaussian similarity, eq. 9) and the mapping (M in the paper: a
fully connected layer with a sigmoid) to x'; the CVAE learns to generate x' of a class from its
embedding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raypq.config import Metric, Positive
from raypq.errors import ConfigError, DivergenceError
from raypq.methods.gradient import (
    Batch,
    GradientSettings,
    Network,
    Schedule,
    tensor_of,
)
from raypq.methods.support.layers import unit
from raypq.methods.support.score_axes import Axes
from raypq.methods.support.softmax_classifier import Fit

GAUSSIAN, CVAE = "gaussian", "cvae"  # the phases
_FLOAT16_ERROR = 0.01  # largest error of stored rows in float16, relative to their length
_COLLAPSED = 0.01  # nats an image: with a lower KL term, z carries no information


class ClusterableNetwork(Network):
    """x → F → mapping → x', the generator of x', and the axes of x' for codes.

    Buffers: ``memory`` [L, r, D], embedded rows of each training class, for training classifiers of
    later class sets; ``A`` [L, da], the embeddings of the training classes.
    """

    training_only = frozenset({"encoder", "classifier", "centres"})
    memory: Tensor
    A: Tensor

    def __init__(self, settings: ClusterableSettings, dx: int, da: int, L: int, D: int) -> None:
        super().__init__()
        self.settings, self.da = settings, da
        self._kl = (0, torch.zeros(()))  # steps of this epoch, and the sum of their KL terms
        hidden, latent = settings.hidden, settings.latent or da
        width = settings.mapping or dx
        if settings.gaussian:
            self.tuned = nn.Linear(dx, dx)
            nn.init.eye_(self.tuned.weight)
            nn.init.zeros_(self.tuned.bias)
            self.centres = nn.Parameter(0.01 * torch.randn(L, dx))
        if settings.mapping:
            self.mapping = nn.Linear(dx, width)
            self.classifier = nn.Linear(width, L)
        self.encoder = _perceptron(width + da, hidden, 2 * latent)
        self.decoder = _perceptron(latent + da, hidden, width)
        self.axes = Axes(D, width)
        self.register_buffer("A", torch.zeros(L, da))
        self.register_buffer("memory", torch.zeros(L, settings.memory, D, dtype=torch.float16))

    @property
    def latent(self) -> int:
        """Width of z."""
        return self.settings.latent or self.A.shape[1]

    def trainable(self, phase: str) -> list[nn.Parameter]:
        fine_tuned = [*self.tuned.parameters(), self.centres] if self.settings.gaussian else []
        if phase == GAUSSIAN:
            return fine_tuned
        excluded = {id(parameter) for parameter in fine_tuned}
        return [parameter for parameter in self.parameters() if id(parameter) not in excluded]

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "training has labels"
        if phase == GAUSSIAN:
            similarity = -self.settings.gamma * _distances(self.tuned(batch.x), self.centres)
            return {"gaussian": F.cross_entropy(similarity, batch.y)}
        return self._generate_and_classify(batch.x, batch.y)

    def _generate_and_classify(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Eq. 4 with the CVAE loss of eq. 11."""
        settings, a = self.settings, self.A[y]
        mapped = self.map(x)
        # Detached: the reconstruction loss would drive the mapping to a constant.
        target = mapped.detach()
        mean, logvar = self.encoder(torch.cat([target, a], dim=1)).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        generated = self.generate(z, a)
        kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(dim=1).mean()
        self._kl = (self._kl[0] + 1, self._kl[1].to(kl.device) + kl.detach())
        if settings.alpha:  # eq. 10, relative to each dimension's standard deviation
            deviation = target.std(dim=0, unbiased=False)
            target = target + settings.alpha * deviation * torch.randn_like(target)
        terms = {
            "reconstruction": (generated - target).square().sum(dim=1).mean(),
            "kl": settings.kl * kl,
        }
        if settings.mapping:
            weight, bias = self.classifier.weight, self.classifier.bias
            terms["cls"] = settings.lam_cls * F.cross_entropy(self.classifier(mapped), y)
            logits = F.linear(generated, weight.detach(), bias.detach())
            terms["cls_made"] = settings.lam_made * F.cross_entropy(logits, y)
        return terms

    def begin_epoch(self, phase: str, epoch: int) -> None:
        self._kl = (0, torch.zeros(()))

    def end_epoch(self, phase: str, epoch: int) -> None:
        """Stops if z carries no information after the first epoch.

        Raises:
            DivergenceError: naming the step.
        """
        steps, total = self._kl[0], float(self._kl[1])
        if phase == CVAE and epoch and steps and total < _COLLAPSED * steps:
            raise DivergenceError(
                f"the CVAE collapsed by epoch {epoch}, step {steps - 1} of it: the KL term is "
                f"{total / steps:.2g} nats an image, so all features generated for a class would "
                f"be equal; try a lower kl (now {self.settings.kl:g})"
            )

    def map(self, x: Tensor) -> Tensor:
        """x' [n, width] of rows [n, dx]."""
        if self.settings.gaussian:
            x = self.tuned(x)
        return torch.sigmoid(self.mapping(x)) if self.settings.mapping else x

    def generate(self, z: Tensor, a: Tensor) -> Tensor:
        """x' [n, width] of latent codes [n, latent] and class embeddings [n, da]."""
        x = self.decoder(torch.cat([z, a], dim=1))
        return F.relu(x) if self.settings.output == "relu" else x

    def samples(self, a: Tensor, n: int, random: torch.Generator) -> Tensor:
        """n generated features of each class [T, da], class after class: [T·n, width]."""
        z = torch.randn(len(a) * n, self.latent, generator=random)
        return self.generate(z.to(a.device), a.repeat_interleave(n, dim=0))

    def store_rows(self, x: Tensor, y: NDArray[np.int32]) -> None:
        """Stores embedded rows of each class in ``memory``; repeats them where a class has few.

        Raises:
            ConfigError: rows of a magnitude that float16 cannot hold.
        """
        u = self.embed(x)
        stored = u.half().float()  # as in memory
        if not torch.isfinite(stored).all() or (stored - u).norm() > _FLOAT16_ERROR * u.norm():
            raise ConfigError(
                "normalise: rows are kept in float16, which cannot hold these: their embedded "
                f"values go up to {float(u.abs().max()):.3g}; scale the features to about 1, or "
                "set normalise to unit or zscore"
            )
        for label in range(len(self.A)):
            rows = np.flatnonzero(y == label)
            if len(rows):
                chosen = np.resize(rows, self.memory.shape[1])
                self.memory[label] = u[torch.from_numpy(chosen)].half()

    def embed(self, x: Tensor) -> Tensor:
        return self.axes(self.map(x))

    def codes(self, x: Tensor) -> Tensor | None:
        return None

    def codebooks(self) -> Tensor | None:
        return None


def _perceptron(a: int, hidden: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(a, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, b))


def _distances(h: Tensor, w: Tensor) -> Tensor:
    """Squared distances [n, L] of rows [n, a] to centres [L, a]."""
    return h.square().sum(dim=1, keepdim=True) - 2 * h @ w.T + w.square().sum(dim=1)


class ClusterableSettings(GradientSettings):
    """The paper's settings; mapping, F and noise are off by default (docs/methods says why)."""

    M: Positive = Field(64, description="sub-codebooks")
    D: Positive = Field(128, description="axes of x' that are kept, at most")
    metric: Metric = "dot"
    attributes: Literal["none", "unit"] = Field(
        "unit", description="normalisation of class embeddings"
    )
    mapping: int = Field(
        0, ge=0, description="width of the mapping's output, 512 in the paper; 0: no mapping"
    )
    lam_cls: float = Field(1.0, ge=0, description="weight of classifying x', eq. 4")
    lam_made: float = Field(0.1, ge=0, description="weight of classifying generated x', eq. 4")
    gaussian: int = Field(0, ge=0, description="epochs of fine-tuning F; 0: no F")
    gamma: float = Field(1.0, gt=0, description="scale of the Gaussian similarity, eq. 7")
    alpha: float = Field(
        0.0, ge=0, description="noise on x', eq. 10, in units of each dimension's spread"
    )
    hidden: Positive = Field(1024, description="units of encoder and decoder, 4096 in the paper")
    latent: Positive | None = Field(None, description="width of z; default: of the embeddings")
    output: Literal["relu", "linear"] = Field(
        "relu", description="activation at the end of the decoder"
    )
    kl: float = Field(1.0, gt=0, description="weight of the KL term beside the squared error")
    samples: Positive = Field(200, description="features generated for each unseen class")
    weight: float = Field(3.0, gt=0, description="weight of an unseen class relative to a seen one")
    memory: Positive = Field(50, description="rows of each seen class kept for classifiers")
    head_epochs: Positive = Field(20, description="epochs of the softmax classifier")
    head_rate: float = Field(1e-3, gt=0)
    head_decay: float = Field(0.02, ge=0, description="weight decay (L2) of the softmax classifier")
    epochs: Positive = 45
    batch: Positive = 64
    schedule: Schedule = "constant"

    @property
    def head(self) -> Fit:
        """How classifiers are trained."""
        return Fit(epochs=self.head_epochs, rate=self.head_rate, decay=self.head_decay)


def attributes(E: NDArray[np.float32], settings: ClusterableSettings) -> NDArray[np.float32]:
    """Class embeddings E [T, da], normalised for the generator."""
    if settings.attributes == "none":
        return E
    return unit(tensor_of(E)).numpy()
