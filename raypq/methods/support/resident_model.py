"""A linear model on a torch device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.config import Precision
from raypq.data.features import batch_rows
from raypq.kernels import memory
from raypq.kernels.device import on_device, own_stream
from raypq.kernels.torch import Codebooks
from raypq.methods.base import Array, Normalise
from raypq.methods.support.device_normalisation import in_range, normalise_on
from raypq.methods.support.matrix_product import aligned


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentModel:
    """The parameters of a linear model on a torch device."""

    device: str
    scheme: Normalise
    P: Tensor | None
    mean: Tensor | None
    inverse_std: Tensor | None
    codebooks: Codebooks

    @classmethod
    def of(cls, tensors: Mapping[str, Array], scheme: Normalise, device: str) -> Self:
        """Copies of the model's tensors on a device."""

        def tensor(name: str) -> Tensor | None:
            value = tensors.get(name)
            return None if value is None else torch.from_numpy(aligned(value)).to(device)

        return cls(
            device=device,
            scheme=scheme,
            P=tensor("P"),
            mean=tensor("mean"),
            inverse_std=tensor("inverse_std"),
            codebooks=Codebooks.on(device, tensors["C"]),
        )

    def encode(self, X: NDArray[np.floating[Any]], precision: Precision) -> NDArray[np.uint8]:
        """Codes [n, M] of features X [n, dx], float32 or float16.

        Raises:
            InputError: as ``in_range``.
        """
        codes = np.empty((len(X), len(self.codebooks.book)), np.uint8)
        rows = batch_rows(X.shape[1], for_device=True)  # bounds the memory, however many are given

        def encode(part: slice) -> None:
            with own_stream(self.device):
                x = on_device(X[part], self.device).float()
                codes[part] = self.codes(x, precision).cpu().numpy()

        memory.in_parts(len(X), rows, self.device, encode)
        return codes

    def codes(self, x: Tensor, precision: Precision) -> Tensor:
        """Codes [n, M], uint8, of features x [n, dx], float32, on the device.

        Raises:
            InputError: as ``in_range``.
        """
        X = normalise_on(x, self.scheme, self.mean, self.inverse_std)
        U = X
        if self.P is not None:
            bf16 = precision == "bf16"
            U = (X.bfloat16() @ self.P.bfloat16().T).float() if bf16 else X @ self.P.T
        return self.codebooks.assign(in_range(U, x))
