"""The contract of methods that train by gradient: a network, its loss, and the frozen model.

A method builds a ``Network`` from a ``Corpus`` and says in which ``Phase``s it is trained. The
training loop (``raypq.stages.learn``) streams batches through ``Network.forward``, which gives
the terms of the loss apart; it runs in this process or in every worker of Ray Train alike. Where
a method names a ``follow_up``, that reduction method is trained afterwards on the embedded
features and gives the codebooks. ``freeze`` turns the result into a ``Model``, whose tensors are
NumPy arrays.

All that a network must remember from epoch to epoch belongs in its parameters and buffers: a
checkpoint is its ``state_dict`` and the optimiser's, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from raypq import kernels
from raypq.config import Positive, Precision
from raypq.errors import ConfigError, InputError, ModelError, NotFittedError
from raypq.methods.base import Corpus, Method, MethodSettings, Model, ReductionMethod
from raypq.methods.linear import normalise

Schedule = Literal["constant", "cosine", "exponential"]

_BLOCK_BYTES = 4 << 20  # of input; bounds what the layers of a network hold at once
_PREFIX = "net."


class GradientSettings(MethodSettings):
    """What every method by gradient can be told."""

    epochs: Positive = Field(16, description="passes over the rows")
    batch: Positive = Field(256, description="rows of a step, over all workers")
    rate: float = Field(1e-3, gt=0, description="learning rate of Adam at the start")
    schedule: Schedule = Field("cosine", description="how the learning rate falls")
    decay: float = Field(0.95, gt=0, le=1, description="of the rate an epoch, if exponential")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first momentum")
    weight_decay: float = Field(0.0, ge=0)
    shuffle: Positive = Field(65_536, description="rows that a step is drawn from, at most")
    validation: int = Field(0, ge=0, description="training rows held out to judge each epoch by")
    patience: int = Field(
        0, ge=0, description="stop after so many epochs without a better validation score; 0: never"
    )
    precision: Precision = Field("fp32", description="of the forward pass in training")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training: its own optimiser and its own schedule of the learning rate."""

    name: str
    epochs: int
    rate: float
    schedule: Schedule = "cosine"
    decay: float = 0.95

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by at ``step`` of the ``steps`` of this phase."""
        done = step / max(1, steps)
        if self.schedule == "cosine":
            return float(0.5 * (1 + np.cos(np.pi * done)))
        if self.schedule == "exponential":
            return float(self.decay ** (done * self.epochs))
        return 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows of one step on one worker.

    Attributes:
        x: [n, dx] float32, normalised. y: [n] int64 indices into the L training classes, or None.
        u: rows of the unlabelled store [n', dx], or None.
    """

    x: Tensor
    y: Tensor | None = None
    u: Tensor | None = None


class Network(nn.Module):
    """What is trained. ``forward`` gives the weighted terms of the loss, which is their sum."""

    training_only: ClassVar[frozenset[str]] = frozenset()
    """Names in ``state_dict`` that the frozen model does without."""
    finished = False
    """Whether every phase is done; set by the training loop."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars; differentiable."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """f: rows [n, dx] to the common space [n, D]."""

    def queries(self, x: Tensor) -> Tensor:
        """What stands for queries [n, dx] in asymmetric search, [n, D]."""
        return self.embed(x)

    @abstractmethod
    def codes(self, x: Tensor) -> Tensor | None:
        """Codes [n, M] of rows [n, dx], int64; None: the nearest codeword of ``embed``."""

    @abstractmethod
    def codebooks(self) -> Tensor | None:
        """C [M, K, d] as codes are decoded; None where a follow-up makes them."""

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that a phase moves; the others stand still."""
        return self.parameters()

    def begin_phase(self, phase: str) -> None:
        """Called before the first step of a phase; not again when training is resumed in it."""

    def begin_epoch(self, phase: str, epoch: int) -> None:
        """Called before each epoch of a phase, counted from 0."""

    def end_epoch(self, phase: str, epoch: int) -> None:
        """Called after each epoch."""

    def class_layer(self) -> tuple[Tensor, Tensor] | None:
        """Prototypes V [L, D] and bias [L] of the training classes, where the network has any."""
        return None

    def project(self, e: Tensor) -> Tensor | None:
        """g: class embeddings [T, da] to the common space [T, D]; None: it takes none."""
        return None


class GradientMethod(Method):
    """A way to train a model by gradient descent."""

    needs_labels: ClassVar[bool] = True
    sample_rows: ClassVar[int] = 0
    """Rows of the labelled store that ``finish`` is given, at most."""
    small_batches: ClassVar[bool] = False
    """Whether a batch may have fewer rows than there are training classes."""
    settings: GradientSettings
    model_class: ClassVar[type[NetworkModel]]

    @abstractmethod
    def build(self, corpus: Corpus) -> Network:
        """The network before training. Called under the method's seed (see ``network``).

        Raises:
            ConfigError: settings that do not fit the corpus.
        """

    def network(self, corpus: Corpus) -> Network:
        """The network before training, its random weights from ``seed`` alone."""
        with seeded(self.settings.seed):
            return self.build(corpus)

    def phases(self) -> Sequence[Phase]:
        """What training does one after another; one phase named ``train`` unless overridden."""
        settings = self.settings
        return [
            Phase(
                name="train",
                epochs=settings.epochs,
                rate=settings.rate,
                schedule=settings.schedule,
                decay=settings.decay,
            )
        ]

    def judge(self, network: Network, x: Tensor, y: Tensor) -> float | None:
        """The validation score of held-out rows x [n, dx], y [n], higher is better; None: the mAP
        of retrieval among them from their codes."""
        return None

    def finish(
        self, network: Network, corpus: Corpus, X: NDArray[np.float32], y: NDArray[np.int32]
    ) -> None:
        """What is left to do once training is over, in place and before the follow-up.

        X [n, dx] normalised and y [n] are a sample of the training rows, ``sample_rows`` at most.
        """

    def follow_up(self) -> ReductionMethod | None:
        """The reduction method that makes the codebooks from embedded features, if any."""
        return None

    def check(self, corpus: Corpus, world: int = 1) -> None:
        """Refuses what training could not work with.

        Raises:
            ConfigError: too few rows, a batch smaller than the classes or the workers.
        """
        batch = self.settings.batch
        if self.needs_unlabelled and not corpus.unlabelled:
            raise ConfigError(
                f"{self.name} learns from unlabelled rows too: pass a store of them (--unlabelled)"
            )
        if self.needs_labels and corpus.L < 2:
            raise ConfigError(f"{self.name} needs at least 2 training classes, found {corpus.L}")
        if batch // world < (2 if self.small_batches else corpus.L):
            raise ConfigError(
                f"batch: {batch} rows over {world} worker(s) are {batch // world} each, fewer "
                f"than the {corpus.L} training classes"
            )
        rows = corpus.N - self.settings.validation
        if rows < batch:
            raise ConfigError(
                f"batch: {batch} rows are more than the {max(rows, 0)} to train on "
                f"({corpus.N} less {self.settings.validation} for validation)"
            )

    def check_classes(self, count: NDArray[np.int64], names: Sequence[str]) -> None:
        """Refuses classes that have too few rows, given the rows of each class [L].

        Raises:
            InputError: naming the classes.
        """
        few = [name for name, n in zip(names, count, strict=True) if n < 2]
        if few:
            raise InputError(
                "training classes",
                expected="at least 2 images of each",
                found=f"fewer of {', '.join(few[:5])}{', …' if len(few) > 5 else ''} "
                f"({len(few)} in all)",
            )

    def freeze(
        self,
        network: Network,
        corpus: Corpus,
        *,
        scale: Mapping[str, NDArray[np.float32]],
        codebooks: NDArray[np.float32] | None = None,
        record: Mapping[str, Any],
    ) -> Model:
        """The model of a trained network.

        Args:
            scale: ``mean`` and ``inverse_std`` [dx] where features are z-scored.
            codebooks: C [M, K, d] of the follow-up, where there is one.

        Raises:
            NotFittedError: training has not finished.
        """
        if not network.finished:
            raise NotFittedError(f"{self.name}: not trained yet; run every phase first")
        own = network.codebooks()
        C = _array(own) if own is not None else codebooks
        assert C is not None, "a network without codebooks names a follow-up"
        kept = {
            _PREFIX + key: _array(value)
            for key, value in network.state_dict().items()
            if key.split(".")[0] not in network.training_only
        }
        return self.model_class(
            settings=self.settings,
            tensors={"C": C, **scale, **kept},
            dx=corpus.dx,
            da=None
            if corpus.A is None or not self.model_class.takes_embeddings
            else corpus.A.shape[1],
            classes=corpus.names if network.class_layer() is not None else None,
            record=record,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkModel(Model):
    """A model whose embedding is a network; ``net.*`` are its weights, NumPy arrays as all.

    Tensors: ``C`` [M, K, d]; ``net.*`` the network's ``state_dict``; ``mean``, ``inverse_std``
    [dx] where features are z-scored.
    """

    takes_embeddings: ClassVar[bool] = False
    """Whether ``project`` maps class embeddings; otherwise classes are vectors of features."""

    @abstractmethod
    def blank(self) -> Network:
        """The network of this model's shapes; its weights are loaded afterwards."""

    def network(self, device: str = "cpu") -> Network:
        """The trained network on a device, ready for inference."""
        known: dict[str, Network] = self.__dict__.setdefault("_networks", {})
        if device not in known:
            with seeded(0):
                network = self.blank()
            weights = {
                key.removeprefix(_PREFIX): torch.from_numpy(np.array(value))
                for key, value in self.tensors.items()
                if key.startswith(_PREFIX)
            }
            missing, unexpected = network.load_state_dict(weights, strict=False)
            missing = [key for key in missing if key.split(".")[0] not in network.training_only]
            if missing or unexpected:
                raise ModelError(
                    f"{self.method} model",
                    expected="the weights of its settings",
                    found=f"missing {missing[:3]}, unexpected {unexpected[:3]}",
                )
            known[device] = network.eval().requires_grad_(False).to(device)
        return known[device]

    def embed(
        self, X: NDArray[np.float32], *, precision: Precision = "fp32"
    ) -> NDArray[np.float32]:
        parts = list(self._blocks(X, "cpu", precision, "embed"))
        return np.concatenate(parts) if parts else np.empty((0, self.D), np.float32)

    def queries(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = list(self._blocks(X, "cpu", "fp32", "queries"))
        return np.concatenate(parts) if parts else np.empty((0, self.D), np.float32)

    def encode(
        self, X: NDArray[np.float32], *, device: str = "cpu", precision: Precision = "fp32"
    ) -> NDArray[np.uint8]:
        parts = list(self._blocks(X, device, precision, "codes"))
        return np.concatenate(parts) if parts else np.empty((0, self.M), np.uint8)

    def _blocks(
        self,
        X: NDArray[np.float32],
        device: str,
        precision: Precision,
        what: Literal["embed", "queries", "codes"],
    ) -> Iterator[NDArray[Any]]:
        """``embed``, ``queries`` or ``codes`` of X, some rows at a time.

        Equal rows give equal answers.
        """
        X = self._normalised(X)
        network = self.network(device)
        answer = {"embed": network.embed, "queries": network.queries, "codes": network.codes}[what]
        rows = max(64, _BLOCK_BYTES // (4 * self.dx))
        for start in range(0, len(X), rows):
            x = tensor_of(X[start : start + rows]).to(device)
            with torch.inference_mode(), autocast(device, precision):
                found = answer(x)
                if found is None:
                    U = network.embed(x).float().cpu().numpy()
                    yield kernels.encode(U, self.C)
                elif what == "codes":
                    yield found.to(torch.uint8).cpu().numpy()
                else:
                    yield found.float().cpu().numpy()

    def _normalised(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        self._check_features(X)
        tensors = self.tensors
        how = self.settings.normalise
        return normalise(X, how, tensors.get("mean"), tensors.get("inverse_std"))

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        self._check_embeddings(E)
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
        place = {name: index for index, name in enumerate(self.classes)}
        unknown = [name for name in ids if name not in place]
        if unknown:
            raise ModelError(
                f"{self.method} model",
                expected=f"classes among the {len(place)} that it was trained on",
                found=f"{unknown[0]!r} ({len(unknown)} such class(es))",
            )
        layer = self.network().class_layer()
        assert layer is not None, "a model with classes has a class layer"
        chosen = np.array([place[name] for name in ids], np.int64)
        V, bias = layer
        return _array(V)[chosen], _array(bias)[chosen].astype(np.float64)


def tensor_of(X: NDArray[Any]) -> Tensor:
    """A tensor of rows [n, a]; a copy where torch would warn that it must not write into them."""
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def autocast(device: str, precision: Precision) -> torch.autocast:
    """bf16 arithmetic where ``precision`` asks for it; the weights stay float32."""
    return torch.autocast(
        torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"
    )


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """torch's generators from a seed inside, and as they were afterwards."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with torch.random.fork_rng():
        torch.manual_seed(int(state[0]))
        yield
