"""The model of a trained network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Precision
from raypq.errors import ModelError
from raypq.kernels import memory
from raypq.kernels.torch import Codebooks
from raypq.methods.model import Model
from raypq.methods.support.network import Network, array_of, autocast, seeded, tensor_of
from raypq.methods.support.normalisation import check_range, normalise

PREFIX = "net."  # of the network's weights among a model's tensors

_BLOCK_BYTES = 4 << 20  # of input at a time, to bound the memory of activations


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkModel(Model):
    """A model whose embedding is a network.

    Tensors: ``C`` [M, K, d]; ``net.*`` the network's ``state_dict``; ``mean``, ``inverse_std``
    [dx] where features are z-scored.
    """

    @abstractmethod
    def build_network(self) -> Network:
        """A network of this model's shapes, into which the weights are loaded."""

    def network(self, device: str = "cpu") -> Network:
        """The trained network on a device, ready for inference."""
        kernels.apply_thread_limit()  # this thread may be older than the import of torch
        cache: dict[str, Network] = self.__dict__.setdefault("_networks", {})
        if device not in cache:
            kernels.check_device(device)
            network = self._load_network()
            cache[device] = network.eval().requires_grad_(False).to(device)
        return cache[device]

    def _load_network(self) -> Network:
        """The network with the weights of ``tensors``.

        Raises:
            ModelError: they do not fit the settings.
        """
        weights = {
            key.removeprefix(PREFIX): torch.from_numpy(np.array(value))
            for key, value in self.tensors.items()
            if key.startswith(PREFIX)
        }
        try:
            with seeded(0):
                network = self.build_network()
            missing, unexpected = network.load_state_dict(weights, strict=False)
        except (RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
            raise ModelError(
                f"{self.method} model",
                expected="the weights of its settings",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            ) from None
        missing = [key for key in missing if key.split(".")[0] not in network.training_only]
        if missing or unexpected:
            raise ModelError(
                f"{self.method} model",
                expected="the weights of its settings",
                found=f"missing {missing[:3]}, unexpected {unexpected[:3]}",
            )
        return network

    def check(self, where: str) -> None:
        super().check(where)
        try:
            self._load_network()  # not cached: the model may be sent to workers
        except ModelError as error:
            raise ModelError(where, expected=error.expected, found=error.found) from None

    def embed(
        self, X: NDArray[np.float32], *, precision: Precision = "fp32"
    ) -> NDArray[np.float32]:
        parts = self._blocks(X, "cpu", precision, "embed")
        return np.concatenate(parts) if parts else np.empty((0, self.D), np.float32)

    def queries(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = self._blocks(X, "cpu", "fp32", "queries")
        return np.concatenate(parts) if parts else np.empty((0, self.D), np.float32)

    def encode(
        self, X: NDArray[np.float32], *, device: str = "cpu", precision: Precision = "fp32"
    ) -> NDArray[np.uint8]:
        parts = self._blocks(X, device, precision, "codes")
        return np.concatenate(parts) if parts else np.empty((0, self.M), np.uint8)

    def _blocks(
        self,
        X: NDArray[np.float32],
        device: str,
        precision: Precision,
        function: Literal["embed", "queries", "codes"],
    ) -> list[NDArray[Any]]:
        """``embed``, ``queries`` or ``codes`` of X, in blocks of rows.

        Equal rows give equal results.
        """
        X = self._normalised(X)
        network = self.network(device)
        functions = {"embed": network.embed, "queries": network.queries, "codes": network.codes}
        results: list[NDArray[Any]] = []

        def apply(block: slice) -> None:
            x = tensor_of(X[block]).to(device)
            with torch.inference_mode(), autocast(device, precision):
                result = functions[function](x)
                if result is None:
                    U = network.embed(x).float()
                    results.append(self._nearest(U, device))
                elif function == "codes":
                    results.append(result.to(torch.uint8).cpu().numpy())
                else:
                    results.append(check_range(result.float().cpu().numpy()))

        memory.in_parts(len(X), max(64, _BLOCK_BYTES // (4 * self.dx)), device, apply)
        return results

    def _nearest(self, U: torch.Tensor, device: str) -> NDArray[np.uint8]:
        """Codes of embeddings on a device."""
        if device == "cpu":
            return kernels.encode(U.numpy(), self.C)
        cache: dict[str, Codebooks] = self.__dict__.setdefault("_codebooks", {})
        if device not in cache:
            cache[device] = Codebooks.on(device, self.C)
        codes: NDArray[np.uint8] = cache[device].assign(U).cpu().numpy()
        return codes

    def _normalised(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        X = self._features(X)
        tensors = self.tensors
        scheme = self.settings.normalise
        return check_range(normalise(X, scheme, tensors.get("mean"), tensors.get("inverse_std")), X)

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        E = self._embeddings(E)
        if self.da is None:
            return self.embed(E), np.zeros(len(E))
        with torch.inference_mode():
            V = self.network().project(tensor_of(E))
        assert V is not None, "a model that takes embeddings projects them"
        return V.numpy(), np.zeros(len(E))

    def class_prototypes(
        self, ids: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if self.classes is None:
            return super().class_prototypes(ids)
        index_of = {name: index for index, name in enumerate(self.classes)}
        unknown = [name for name in ids if name not in index_of]
        if unknown:
            raise ModelError(
                f"{self.method} model",
                expected=f"classes among the {len(index_of)} that it was trained on"
                + ("" if self.da is None else ", or class embeddings of the others"),
                found=f"{unknown[0]!r} ({len(unknown)} such class(es))",
            )
        layer = self.network().class_layer()
        assert layer is not None, "a model with classes has a class layer"
        chosen = np.array([index_of[name] for name in ids], np.int64)
        V, bias = layer
        if len(V) != len(index_of):
            raise ModelError(
                f"{self.method} model",
                expected=f"prototypes of its {len(index_of)} classes",
                found=f"{len(V)}",
            )
        return array_of(V)[chosen], array_of(bias)[chosen].astype(np.float64)
