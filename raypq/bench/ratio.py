"""How much faster codes are than the dense product, by number of sub-codebooks: figure 4b of the
PQZSL paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from raypq import kernels
from raypq.bench import clustered_data
from raypq.bench.harness import Contender, Result, rounds

T, D, TOP = 21_841, 1000, 10
SUB_CODEBOOKS = (5, 10, 20, 25, 40, 50, 100)
_DENSE, _BLOCK = 1024, 512


def run(threads: int) -> Iterator[Result]:
    """From 5 to 100 bytes an image, at the sizes of ImageNet-21K."""
    del threads  # set already
    yield from cases(T=T, D=D, sub_codebooks=SUB_CODEBOOKS)


def cases(
    *, T: int, D: int, sub_codebooks: Sequence[int], images: int = 32_768, repeats: int = 3
) -> Iterator[Result]:
    """One result for each number of sub-codebooks, each beside the same dense product.

    Args:
        T: candidate classes. D: width of the common space, a multiple of every number.
        images: codes that are scanned.
    """
    data = clustered_data.embedded(N=images, T=T, D=D)
    dense = torch.from_numpy(data.U[:_DENSE])
    for M in sub_codebooks:
        C, B = clustered_data.quantized(data.U, M)
        tables = kernels.build_tables(C, data.V, None, "cosine")
        W = torch.from_numpy(tables.W)
        contenders = [
            Contender(
                name="raypq codes",
                run=lambda B=B, tables=tables: kernels.topk_per_code(B, tables, TOP),  # type: ignore[misc]
                work=len(B),
                ours=True,
            ),
            Contender(name="torch fp32", run=lambda W=W: _dense(dense, W), work=_DENSE),  # type: ignore[misc]
        ]
        yield Result(
            bench="ratio",
            case=f"T={T:,} D={D} k={TOP} M={M} K=256",
            unit="images/s",
            sizes={"T": T, "D": D, "M": M, "K": 256},
            lines=rounds(contenders, repeats),
        )


def _dense(x: torch.Tensor, W: torch.Tensor) -> None:
    for start in range(0, len(x), _BLOCK):
        (x[start : start + _BLOCK] @ W.T).topk(TOP)
