"""The interface of methods; a method imports it and that of models from here.

A method trains *by reduction* or *by gradient* (``raypq.methods.gradient``). In a reduction the
state is sent to the shards, and their float64 statistics are merged in shard order, so the model is
bit-identical for any number of workers. After training only ``Model`` is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from raypq.errors import NotFittedError
from raypq.methods.model import Array, MethodSettings, Model, Normalise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Array",
    "Method",
    "MethodSettings",
    "Model",
    "Normalise",
    "ReductionMethod",
    "Rows",
    "State",
    "Stats",
    "Sums",
    "TrainBatch",
    "TrainingSetInfo",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSetInfo:
    """The training set, as known before the first pass: N rows of width dx, and L classes.

    Attributes:
        A: embeddings of the training classes [L, da], or None for methods without classes.
        names: class_ids of the training classes.
        A_other: embeddings of the table's other classes [T - L, da], for methods that generate
            features of classes without images; other_names: their class_ids.
        unlabelled: rows of the unlabelled store, 0 where there is none.
        aligned: class embeddings in the space of the features [T, dx], for methods that may fit
            codes to them.
    """

    N: int
    dx: int
    A: NDArray[np.float32] | None = None
    names: tuple[str, ...] = ()
    A_other: NDArray[np.float32] | None = None
    other_names: tuple[str, ...] = ()
    unlabelled: int = 0
    aligned: NDArray[np.float32] | None = None

    @property
    def L(self) -> int:
        """Number of training classes."""
        return len(self.names) if self.A is None else len(self.A)

    @property
    def compete(self) -> bool:
        """Whether training classes compete with others, by embeddings."""
        return self.A is not None and self.A_other is not None and len(self.A_other) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatch:
    """Rows: X [n, dx] float32, y [n] indices into the L classes (or None).

    Attributes:
        row: number of the first row in the whole store.
        rows: numbers of all rows [n], ascending; None: consecutive ones.
        embedded: whether rows are embedded already.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int32] | None
    row: int
    rows: NDArray[np.int64] | None = None
    embedded: bool = False

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the batch [m] of those of ``rows`` [k], ascending, that it has."""
        if self.rows is None:
            low, high = np.searchsorted(rows, [self.row, self.row + len(self.X)])
            return rows[low:high] - self.row
        if not len(self.rows):
            return np.empty(0, np.int64)
        low, high = np.searchsorted(rows, [self.rows[0], self.rows[-1] + 1])
        return np.flatnonzero(np.isin(self.rows, rows[low:high], assume_unique=True))

    def chosen(self, rows: NDArray[np.int64]) -> TrainBatch:
        """Those of ``rows`` [k], ascending, that the batch has; a copy, unless it has no others."""
        at = self.positions(rows)
        if self.rows is not None and len(at) == len(self.rows):
            return self
        y = None if self.y is None else self.y[at]
        numbers = at + self.row if self.rows is None else self.rows[at]
        return replace(self, X=self.X[at], y=y, rows=numbers)


Sums: TypeAlias = "Array | Tensor"
"""A float64 sum, on the device of its rows."""


class Rows(Protocol):
    """Rows X [n, dx] on a device."""

    def __len__(self) -> int:
        """n."""

    def chosen(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some of the rows [m, dx], as an array on the CPU."""

    def normalised(self, scheme: Normalise, mean: Array | None, inverse_std: Array | None) -> Rows:
        """The rows after ``linear_model.normalise``.

        Raises:
            InputError: the squared length of a row does not fit float32.
        """

    def projected(self, P: Array) -> Rows:
        """X Pᵀ [n, D] for P [D, dx].

        Raises:
            InputError: as ``normalised``.
        """

    def total(self) -> Sums:
        """Σ x [dx]."""

    def squares(self) -> Sums:
        """Σ x² by dimension [dx]."""

    def gram(self) -> Sums:
        """XᵀX [dx, dx]."""

    def class_sums(self, y: NDArray[np.int32], L: int) -> Sums:
        """The sum of the rows of each class [dx, L]."""

    def codes(self, C: Array) -> Array | Tensor:
        """Nearest codewords [n, M] in codebooks C [M, K, d]."""

    def codeword_sums(self, B: Array | Tensor, C: Array) -> tuple[Sums, Sums, Sums]:
        """Count [M, K], Σx [M, K, d] and Σ‖x − c‖² [M, K] of the rows of each codeword."""

    def reconstruction_product(self, B: Array | Tensor, C: Array) -> Sums:
        """Σ q xᵀ [D, dx], where q [n, D] are the codewords of codes B of other rows."""


@dataclass(kw_only=True, eq=False)
class Stats:
    """Statistics of some rows in one pass: sums, which are added, and rows, kept in order.

    Those of rows on a device are there, too, until ``on_host``.
    """

    sums: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[Array]] = field(default_factory=dict)

    def merge(self, other: Stats) -> Stats:
        """Adds the statistics of the rows that follow; the order determines every bit."""
        for name, value in other.sums.items():
            if name in self.sums:
                self.sums[name] += value
            elif _on_device(value):
                self.sums[name] = value.clone()
            else:
                self.sums[name] = np.array(value)  # a copy: it may be a view of shared memory
        for name, parts in other.rows.items():
            self.rows.setdefault(name, []).extend(np.array(part) for part in parts)  # as above
        return self

    def on_host(self) -> Stats:
        """The same statistics as arrays."""
        sums = {
            name: value.cpu().numpy() if _on_device(value) else value
            for name, value in self.sums.items()
        }
        return Stats(sums=sums, rows=self.rows)


def _on_device(value: Any) -> TypeGuard[Tensor]:
    """Whether a sum is a tensor: no array or number, so that torch need not be imported to ask."""
    return not isinstance(value, np.ndarray | np.generic | float | int)


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """The state of training by reduction; sent to every worker before a pass.

    ``phase`` names the next pass (``done`` when there is none); ``history`` has one entry of
    plain numbers for each finished one. Arrays whose names start with ``_`` are used by updates
    only, and stay with the driver.
    """

    phase: str
    iteration: int = 0
    arrays: Mapping[str, Array] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def done(self) -> bool:
        """Whether all passes are finished."""
        return self.phase == "done"

    def with_arrays(self, arrays: Mapping[str, Array], *, phase: str | None = None) -> State:
        """The state with these arrays replaced or added, and in another phase if one is given."""
        return replace(self, phase=phase or self.phase, arrays={**self.arrays, **arrays})

    def for_workers(self) -> State:
        """The part of the state that workers need."""
        public = {name: value for name, value in self.arrays.items() if name[0] != "_"}
        return replace(self, arrays=public, history=())

    def with_history(self, entry: Mapping[str, Any]) -> State:
        """The state with one more entry in its history."""
        return replace(self, history=(*self.history, entry))


class Method(ABC):
    """Properties of every method, by reduction or by gradient."""

    name: ClassVar[str]
    settings_class: ClassVar[type[MethodSettings]]
    model_class: ClassVar[type[Model]]
    needs_classes: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    """Whether the class table must have embeddings."""
    needs_unlabelled: ClassVar[bool] = False
    """Whether training also streams a second store, of rows without labels."""
    aligned_defaults: ClassVar[Mapping[str, Any] | None] = None
    """Defaults of settings where codes are fitted to classes that are vectors of the features'
    space; None for a method that cannot do so."""
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Settings that ``--tune`` searches, with the values to try."""
    trial_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings that make a trial of ``--tune`` cheap; uncompressed scores hardly depend on them."""

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings


class ReductionMethod(Method):
    """A method that trains by exact map-reduce, in passes over all rows or a sample."""

    def rows_of_pass(self, state: State) -> NDArray[np.int64] | None:
        """Numbers of the rows [n], ascending, that the next pass sees; None: all."""
        return None

    def rows_of_later_passes(self, state: State) -> NDArray[np.int64] | None:
        """As ``rows_of_pass`` [n], of all passes after it."""
        return None

    def embedded(self, state: State, batch: TrainBatch) -> TrainBatch | None:
        """The batch as later passes see it, if the embedding does not change any more."""
        return None

    @abstractmethod
    def begin(self, dataset_info: TrainingSetInfo) -> State:
        """The state before the first pass.

        Raises:
            ConfigError: settings that do not fit the training set.
        """

    @abstractmethod
    def accumulate(self, state: State, batch: TrainBatch, rows: Rows | None = None) -> Stats:
        """Statistics of one batch for the pass of ``state.phase``; a pure function.

        Args:
            rows: those of the batch on the device that computes; None: on the CPU.
        """

    @abstractmethod
    def update(self, state: State, stats: Stats) -> State:
        """The state after a whole pass."""

    @abstractmethod
    def _build(self, state: State) -> Model:
        """The model of a finished state."""

    def model(self, state: State | None) -> Model:
        """The trained model.

        Raises:
            NotFittedError: training has not finished.
        """
        if state is None or not state.done:
            raise NotFittedError(f"{self.name}: not trained yet; run every pass first")
        return self._build(state)
