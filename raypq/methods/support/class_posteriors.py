"""Class posteriors of codewords, for queries of quantizers that were trained with labels.

The vector of each codeword is extended by the mean class probabilities b of the training rows that
it encodes. A query consists of its own class probabilities, so that its score of a code,

    mean_m Σ_t P(t|query) b_m,t(code_m),

estimates, part by part, the probability that both have the same class: a sum of table look-ups as
for any other query. Ranking quality depends mostly on ambiguous codes. Class scores (logits) rank
these worse, because one part with a large score outweighs the others.
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
from raypq.methods.support.class_codes import ClassCodesNetwork, ClassCodesSettings

_MAX_AXES = 128  # by which codewords and queries are extended at most
_WEIGHT = 4.0  # of posteriors relative to codewords, where codes are compared with codes
_BLOCK = 1024  # rows of one step of ``observe``

_HELD_OUT_SHARE, _MOST_HELD_OUT = 10, 2_000  # one row in so many, and the most
_ROWS_OF_CLASS = 20  # in the mean; with fewer, the network needs them all


def check_query_metric(query: str, metric: Metric) -> None:
    """Refuses metrics other than dot for queries by class posteriors.

    Raises:
        ConfigError: naming the setting.
    """
    if query == "classes" and metric != "dot":
        raise ConfigError(f"metric: query = classes needs the dot product (dot), found {metric}")


class CodewordPosteriors(nn.Module):
    """Posteriors of L classes for M·K codewords: ``words`` [M, K, r], along ``axes`` [L, r].

    The axes are the classes, or for more than 128 classes the principal axes of the posteriors.
    Nothing is learned by gradient.
    """

    def __init__(self, M: int, K: int, L: int) -> None:
        super().__init__()
        r = min(L, _MAX_AXES)
        self.words = nn.Parameter(torch.zeros(M, K, r), requires_grad=False)
        self.axes = nn.Parameter(torch.eye(L, r), requires_grad=False)

    @torch.no_grad()
    def observe(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Computes the posteriors from P(t|x) [n, L] and codes [n, M] of rows, without gradients.

        The mean over all rows counts as one more row of each codeword, and is the posterior of
        codewords without rows.
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
        posteriors = (total + mean) / (count + 1)
        if r < L:
            axes = torch.linalg.svd(posteriors.flatten(0, 1), full_matrices=False).Vh[:r].T
            self.axes.zero_()[:, : axes.shape[1]] = axes
        self.words.copy_(_WEIGHT * posteriors @ self.axes.double().cpu())

    def append_to(self, C: Tensor) -> Tensor:
        """Codebooks C [M, K, d] extended by the posteriors: [M, K, d + r]."""
        return torch.cat([C, self.words], dim=-1)

    def append_mean(self, x: Tensor, weights: Tensor) -> Tensor:
        """Rows x [n, M, d] extended by their mean posteriors, given weights of codewords
        [n, M, K]: [n, M, d + r]."""
        return torch.cat([x, torch.einsum("nmk,mkr->nmr", weights, self.words)], dim=-1)

    def pad_weights(self, W: Tensor) -> Tensor:
        """Weights W [L, M, d] extended by zeros, which ignore the posteriors: [L, M, d + r]."""
        return nn.functional.pad(W, (0, self.words.shape[-1]))

    def query_vectors(self, P: Tensor, d: int) -> Tensor:
        """Queries [n, M, d + r] of class probabilities P [n, L], which ignore the codewords."""
        M = len(self.words)
        weights = (P @ self.axes) / (_WEIGHT * M)
        return nn.functional.pad(weights, (d, 0))[:, None].expand(-1, M, -1)


class PosteriorNetwork(Network):
    """A network with class probabilities. ``beliefs`` (so called in model files) are the posteriors
    of its codewords; None if queries are other vectors."""

    beliefs: CodewordPosteriors | None

    @abstractmethod
    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """P(t|x) [n, L] and the codes [n, M] of rows x [n, dx]."""

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("beliefs.")]

    def finish(self, x: Tensor, seed: int) -> None:
        """Computes the posteriors from rows x [n, dx]; labels are not needed."""
        if self.beliefs is not None:
            self.beliefs.observe(self.probabilities(part) for part in torch.split(x, _BLOCK))


class PosteriorMethod(GradientMethod):
    """Computes the posteriors, or fits the codes of classes, after training. Posteriors are
    computed before every validation, too; codes of classes are validated as probabilities."""

    sample_rows: ClassVar[int] = 50_000
    settings: ClassCodesSettings

    def held_out_rows(self, dataset_info: TrainingSetInfo) -> int:
        """Where classes compete, temperature and calibration are chosen on these rows, too."""
        rows = super().held_out_rows(dataset_info)
        N, L = dataset_info.N, dataset_info.L
        few = N < _ROWS_OF_CLASS * L
        if few or not dataset_info.compete or not self.settings.stores_classes(L):
            return rows
        return rows + min(N // _HELD_OUT_SHARE, _MOST_HELD_OUT)

    def validation_score(self, network: Network, x: Tensor, y: Tensor) -> float | None:
        if isinstance(network, PosteriorNetwork):
            network.finish(x, self.settings.seed)
        return None

    def finish(
        self,
        network: Network,
        dataset_info: TrainingSetInfo,
        X: NDArray[np.float32],
        y: NDArray[np.int32],
    ) -> None:
        assert isinstance(network, PosteriorNetwork | ClassCodesNetwork), "built here"
        network.finish(tensor_of(X), self.settings.seed)
