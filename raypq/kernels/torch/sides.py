"""The two sides of a score on a device: codes (or vectors), and the tables of classes or queries.

Tables are copied once. What exceeds the memory for them is copied again, block by block, at each
use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.kernels import memory
from raypq.kernels.device import exact_float32, on_device, synchronise
from raypq.kernels.tables import Tables
from raypq.kernels.torch.bounds import BFLOAT16, FLOAT32, Operand, Precision
from raypq.kernels.torch.codebooks import decode

_BLOCK = 8  # blocks that the memory for tables holds

_resident: WeakKeyDictionary[Tables, dict[str, ResidentTables]] = WeakKeyDictionary()
_lock = threading.Lock()


def filters(device: str) -> tuple[Precision, ...]:
    """The precisions of filters, each for the rows that the one before leaves in doubt."""
    return (FLOAT32,) if device == "cpu" else (BFLOAT16, FLOAT32)


@dataclass(frozen=True)
class Terms:
    """The terms that scores by some tables have."""

    scale: bool
    offset: bool
    bias: bool

    @classmethod
    def of(cls, tables: Tables) -> Terms:
        """Those that are not 1 or 0 by the metric, or by chance."""
        return cls(
            scale=tables.metric == "cosine",
            offset=tables.metric == "l2",
            bias=bool(tables.bias.any()),
        )


@dataclass(eq=False)
class CodeSide:
    """Vectors of codes with the terms of their scores, scale·⟨q, w⟩ + offset + bias.

    Attributes:
        vectors: q [n, D], float32. scale, offset: [n], float64.
    """

    vectors: Tensor
    scale: Tensor
    offset: Tensor
    terms: Terms
    _operands: dict[Precision, Operand] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)

    def operand(self, precision: Precision) -> Operand:
        """The operand of scale·q, made once."""
        if precision not in self._operands:
            x = self.vectors
            if self.terms.scale:
                x = (x.double() * self.scale[:, None]).float()
            terms: list[Tensor | None] = [self.offset] if self.terms.offset else []
            ones: list[Tensor | None] = [None] if self.terms.bias else []
            self._operands[precision] = Operand.of(x, terms + ones, precision)
        return self._operands[precision]


@dataclass(eq=False)
class TableSide:
    """Weights W [m, D], float32, and bias [m], float64, of a block of tables on a device.

    Attributes:
        start: number of the first row in the tables.
    """

    W: Tensor
    bias: Tensor
    terms: Terms
    start: int
    _operands: dict[Precision, Operand] = field(default_factory=dict)
    _making: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.W)

    def operand(self, precision: Precision) -> Operand:
        """The operand of W, made once."""
        with self._making:
            if precision not in self._operands:
                ones: list[Tensor | None] = [None] if self.terms.offset else []
                terms: list[Tensor | None] = [self.bias] if self.terms.bias else []
                self._operands[precision] = Operand.of(self.W, ones + terms, precision)
                synchronise(str(self.W.device))  # other threads use it on streams of their own
            return self._operands[precision]


class ResidentTables:
    """Tables on a device, in blocks of rows.

    Attributes:
        book: codebooks C [M, K, d], float32. norms: ‖c‖² [M, K], float64. block_rows: rows of a
            block.
    """

    def __init__(self, tables: Tables, device: str) -> None:
        exact_float32(device)
        self.device = device
        self._terms = Terms.of(tables)
        self.book = torch.from_numpy(np.array(tables.C)).to(device)
        self.norms = torch.from_numpy(np.array(tables.norms)).to(device)
        kept = memory.kept_bytes(device)
        row_bytes = self._row_bytes(tables.W.shape[1])
        whole = tables.T * row_bytes <= kept
        least = memory.rows_of(row_bytes, device)  # however little is free at this moment
        rows = tables.T if whole else min(tables.T, max(least, kept // (_BLOCK * row_bytes)))
        self.block_rows = max(1, rows)
        self._kept: dict[int, TableSide] = {}
        self._may_keep = _BLOCK if whole else _BLOCK // 2  # the others are copied at each use

    @classmethod
    def of(cls, tables: Tables, device: str) -> ResidentTables:
        """The tables on a device, from where they stay as long as the tables do."""
        with _lock:
            made = _resident.setdefault(tables, {})
            if device not in made:
                made[device] = cls(tables, device)
                made[device].keep(tables)
            return made[device]

    def keep(self, tables: Tables) -> None:
        """Copies the blocks that stay, so that other tables count with the memory that is left."""
        for start in range(0, tables.T, self.block_rows)[: self._may_keep]:
            self._kept[start] = self._block(tables, start)
            self._kept[start].operand(filters(self.device)[0])
        synchronise(self.device)

    def blocks(self, tables: Tables) -> Iterator[TableSide]:
        """The tables in blocks of rows, ascending."""
        for start in range(0, tables.T, self.block_rows):
            yield self._kept[start] if start in self._kept else self._block(tables, start)

    def _block(self, tables: Tables, start: int) -> TableSide:
        rows = slice(start, start + self.block_rows)
        return TableSide(
            W=_copy(tables.W[rows], self.device),
            bias=_copy(tables.bias[rows], self.device),
            terms=self._terms,
            start=start,
        )

    def codes(self, B: NDArray[np.uint8]) -> CodeSide:
        """Codes B [n, M] as vectors on the device."""
        codes = on_device(B, self.device)
        squared = torch.zeros(len(B), dtype=torch.float64, device=codes.device)
        if self._terms.scale or self._terms.offset:
            for m in range(B.shape[1]):  # in order, as ``Tables.squared_norms``
                squared += self.norms[m, codes[:, m].long()]
        return self._side(decode(codes, self.book), squared)

    def vectors(self, q: NDArray[np.float32], squared: NDArray[np.float64]) -> CodeSide:
        """Vectors q [n, D] with their squared norms [n] on the device."""
        x = torch.from_numpy(np.ascontiguousarray(q, dtype=np.float32)).to(self.device)
        return self._side(x, torch.from_numpy(squared).to(self.device))

    def _side(self, x: Tensor, squared: Tensor) -> CodeSide:
        """As ``Tables.row_terms``; square roots and quotients of float64 are exact to the bit."""
        scale, offset = torch.ones_like(squared), torch.zeros_like(squared)
        if self._terms.scale:
            norm = squared.sqrt()
            scale = torch.where(norm > 0, 1.0 / norm, 0.0)
        elif self._terms.offset:
            offset = -squared
        return CodeSide(x, scale, offset, self._terms)

    def _row_bytes(self, D: int) -> int:
        """Bytes of a row: its weights, and the operands of the filters."""
        apart = self._terms.offset or self._terms.bias or D % 8 > 0  # else W is the operand
        wide = D + 16  # with terms and padding
        return 4 * D + 4 * wide * apart + (2 * wide if len(filters(self.device)) > 1 else 0) + 64


def _copy(array: NDArray[np.floating], device: str) -> Tensor:
    # On the CPU it shares the memory of the array, which nothing writes to.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
