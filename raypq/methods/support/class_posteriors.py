"""Class posteriors of codewords, for queries of quantizers that were trained with labels.

Each codeword carries, beside its vector, the mean probabilities of the classes among the training
rows that chose it. A query asks with its own probabilities, so that its score of a code,

    mean_m Σ_t P(t|query) b_m,t(code_m),

is how likely the two are of one class, as each part judges: a sum of table look-ups as any other.
Most of a ranking is the order of codes that are not sure of their class. Class scores are to add
up, not to order, and there one part with a large score outvotes the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypq.config import Metric
from raypq.errors import ConfigError
from raypq.methods.base import TrainingSetInfo
from raypq.methods.gradient import GradientMethod, Network, tensor_of

_MOST_AXES = 128  # of beliefs: codewords and queries grow by no more
_WEIGHT = 4.0  # of beliefs beside words: codes that are compared with codes differ by these first
_BLOCK = 1024  # rows that are observed at once


def check_asking(query: str, metric: Metric) -> None:
    """Refuses to train for a metric that does not ask for beliefs.

    Raises:
        ConfigError: naming the setting.
    """
    if query == "classes" and metric != "dot":
        raise ConfigError(f"metric: query = classes asks by dot product (dot), found {metric}")


class CodewordPosteriors(nn.Module):
    """Beliefs of M·K codewords in L classes: ``words`` [M, K, r], on ``axes`` [L, r].

    The axes are the classes, or, of more than 128, the directions that keep most of what is
    believed. Nothing of it is learned by gradient.
    """

    def __init__(self, M: int, K: int, L: int) -> None:
        super().__init__()
        r = min(L, _MOST_AXES)
        self.words = nn.Parameter(torch.zeros(M, K, r), requires_grad=False)
        self.axes = nn.Parameter(torch.eye(L, r), requires_grad=False)

    @torch.no_grad()
    def observe(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Counts anew, from P(t|x) [n, L] and codes [n, M] of rows; no gradient, of these either.

        The mean over all rows counts as one more row of each codeword: what nothing chose believes
        just that.
        """
        M, K, r = self.words.shape
        L = len(self.axes)
        total = torch.zeros(M, K, L, dtype=torch.float64)
        count = torch.zeros(M, K, 1, dtype=torch.float64)
        for P, B in rows:
            P, B = P.double().cpu(), B.cpu()
            for m in range(M):
                total[m].index_add_(0, B[:, m], P)
                count[m, :, 0] += torch.bincount(B[:, m], minlength=K)
        mean = total[0].sum(dim=0) / count[0].sum().clamp(min=1)
        believed = (total + mean) / (count + 1)
        if r < L:
            found = torch.linalg.svd(believed.flatten(0, 1), full_matrices=False).Vh[:r].T
            self.axes.zero_()[:, : found.shape[1]] = found
        self.words.copy_(_WEIGHT * believed @ self.axes.double().cpu())

    def beside(self, C: Tensor) -> Tensor:
        """Codebooks C [M, K, d] with beliefs: [M, K, d + r]."""
        return torch.cat([C, self.words], dim=-1)

    def of(self, x: Tensor, weights: Tensor) -> Tensor:
        """Rows x [n, M, d] with the mean beliefs under weights of codewords [n, M, K]."""
        return torch.cat([x, torch.einsum("nmk,mkr->nmr", weights, self.words)], dim=-1)

    def ignored(self, W: Tensor) -> Tensor:
        """Vectors W [L, M, d] that read the words alone: [L, M, d + r]."""
        return nn.functional.pad(W, (0, self.words.shape[-1]))

    def asked(self, P: Tensor, d: int) -> Tensor:
        """Queries [n, M, d + r] of probabilities P [n, L]; they read the beliefs alone."""
        M = len(self.words)
        ask = (P @ self.axes) / (_WEIGHT * M)
        return nn.functional.pad(ask, (d, 0))[:, None].expand(-1, M, -1)


class PosteriorNetwork(Network):
    """A network that knows how likely the classes are; ``beliefs`` is None where queries ask with
    something else."""

    beliefs: CodewordPosteriors | None

    @abstractmethod
    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """P(t|x) [n, L] and the codes [n, M] of rows x [n, dx]."""

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("beliefs.")]

    def observe(self, x: Tensor) -> None:
        """Counts the beliefs on rows x [n, dx], whose labels are not asked for."""
        if self.beliefs is not None:
            self.beliefs.observe(self.probabilities(part) for part in torch.split(x, _BLOCK))


class PosteriorMethod(GradientMethod):
    """Counts beliefs once training is over, and for every validation."""

    sample_rows: ClassVar[int] = 50_000

    def judge(self, network: Network, x: Tensor, y: Tensor) -> float | None:
        assert isinstance(network, PosteriorNetwork), "built here"
        network.observe(x)  # as they are by now
        return None

    def finish(
        self,
        network: Network,
        corpus: TrainingSetInfo,
        X: NDArray[np.float32],
        y: NDArray[np.int32],
    ) -> None:
        assert isinstance(network, PosteriorNetwork), "built here"
        network.observe(tensor_of(X))
