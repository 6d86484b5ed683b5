"""Codes of class probabilities, for quantizers that are trained with labels.

Codebook m quantizes what codebooks 1 … m − 1 leave of P(t|x) (residual vector quantization: Juang
and Gray, "Multiple stage vector quantization for speech coding", 1982), so that the sum of the
codewords of a code estimates P(t|x):

    P̂(t|code) = Σ_m C_m,t(code_m)

A query of class probabilities P(t|query), once for each codebook, then has the score
Σ_t P(t|query) P̂(t|code), the probability that both are of one class: a sum of table look-ups, as
for any other query. So are the class scores P̂. Codes may store probabilities at a higher
temperature, softmax(logits / temperature): flatter ones, which distinguish rows whose most probable
classes are the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypq import kernels
from raypq.errors import ConfigError
from raypq.methods.base import MethodSettings
from raypq.methods.gradient import Network, NetworkModel
from raypq.methods.support import codebooks

_ROUNDS = 15  # of Lloyd's algorithm, for each codebook
_BLOCK = 1024  # rows of one step of ``fit``


class ClassCodebooks(nn.Module):
    """M codebooks of K codewords over L classes: ``words`` [M, K, L]; zeros until they are fitted.

    Nothing is learned by gradient.
    """

    def __init__(self, M: int, K: int, L: int) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(M, K, L), requires_grad=False)

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` has been called."""
        return bool(self.words.any())

    @torch.no_grad()
    def fit(self, P: Tensor, seed: int) -> None:
        """Fits the codebooks to class probabilities P [n, L] by k-means, one after the other."""
        rng = np.random.default_rng([seed, 5])
        M, K, _ = self.words.shape
        residual = P.float().cpu().numpy().copy()
        for m in range(M):
            C = codebooks.seed(residual, 1, K, rng, rounds=_ROUNDS)
            residual -= kernels.decode(kernels.encode(residual, C), C)
            self.words[m] = torch.from_numpy(C[0])

    def assign(self, P: Tensor) -> Tensor:
        """Codes [n, M] of class probabilities P [n, L]: the nearest codeword of each codebook."""
        return self._quantize(P)[0]

    def embed(self, P: Tensor) -> Tensor:
        """P [n, L] as a sum of M parts [n, M, L]: codewords, but for the last part, which is what
        they leave of P. So the nearest codeword of each part is its code."""
        _, parts = self._quantize(P)
        return torch.cat([parts[:, :-1], (P - parts[:, :-1].sum(dim=1))[:, None]], dim=1)

    def _quantize(self, P: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [n, M] and their codewords [n, M, L]; ties to the lower index."""
        residual, codes, parts = P, [], []
        for C in self.words:
            # Distances but for |residual|², which is the same for all codewords.
            code = (C.square().sum(dim=1) - 2 * residual @ C.T).argmin(dim=1)
            residual = residual - C[code]
            codes.append(code)
            parts.append(C[code])
        return torch.stack(codes, dim=1), torch.stack(parts, dim=1)

    def per_part(self, rows: Tensor) -> Tensor:
        """Rows [n, L] once for each codebook, [n, M·L]: the score of a code is that of the sum of
        its codewords."""
        return rows.repeat(1, len(self.words))


class ClassCodesNetwork(Network):
    """A classifier whose codes are those of its class probabilities."""

    class_codes: ClassCodebooks
    temperature: float

    @abstractmethod
    def class_logits(self, x: Tensor) -> Tensor:
        """Logits of the classes [n, L] of rows x [n, dx]."""

    def stored(self, x: Tensor) -> Tensor:
        """What codes store of rows x [n, dx]: P(t|x) [n, L] at the temperature."""
        return (self.class_logits(x) / self.temperature).softmax(dim=-1)

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
        return self.class_codes.per_part(self.class_logits(x).softmax(dim=-1))

    def codes(self, x: Tensor) -> Tensor:
        return self.class_codes.assign(self.stored(x))

    def class_layer(self) -> tuple[Tensor, Tensor]:
        words = self.class_codes.words
        L = words.shape[2]
        return self.class_codes.per_part(torch.eye(L, device=words.device)), words.new_zeros(L)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassCodesModel(NetworkModel):
    """A model whose codes may be those of class probabilities."""

    @property
    @abstractmethod
    def stores_classes(self) -> bool: ...

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if not self.stores_classes:
            return super().prototypes(E)
        E = self._embeddings(E)
        return self.queries(E), np.zeros(len(E))

    def code_queries(self, B: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not self.stores_classes:
            return super().code_queries(B)
        M, _, L = self.C.shape
        return np.tile(self.decode(B).reshape(-1, M, L).sum(axis=1), M)


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
