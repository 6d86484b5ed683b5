"""Classification against 21,841 classes: codes of four worlds, and the dense products that they
replace. The headline is the slowest world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import kernels
from raypq.bench import clustered_data, faiss_peer, worlds
from raypq.bench.harness import Contender, Goal, Line, Result, rounds
from raypq.data.classes import ClassTable
from raypq.kernels import native, reference

T, TOP = 21_841, 10
_IMAGES = 131_072
_DENSE = 512  # rows of a dense product, whose scores then stay in the cache
_REPEATS = 3
_CHECK = 256

# By width D and sub-codebooks M: the least ratios to torch fp32, and to the fastest peer.
Goals = Mapping[int, Mapping[int, tuple[float | None, float | None]]]
GOALS: Goals = {
    1000: {50: (40.0, 10.0), 10: (150.0, None)},
    384: {48: (None, None), 12: (None, None)},
}


@dataclass(frozen=True, kw_only=True)
class _World:
    """Codes of a world's images, by M, and what is compared with them.

    Attributes:
        C, B: codebooks [M, 256, D/M] and codes [N, M], by M. U: the first images [n, D].
        V: classes [T, D].
    """

    name: str
    C: dict[int, NDArray[np.float32]]
    B: dict[int, NDArray[np.uint8]]
    U: NDArray[np.float32]
    V: NDArray[np.float32]


def run(threads: int, classes: str | None = None) -> Iterator[Result]:
    """Both widths, each with many and with few bytes an image.

    Args:
        classes: class table of the world of real names, which is left out if None.
    """
    yield from cases(threads, ClassTable.open(classes) if classes else None)


def cases(
    threads: int, names: ClassTable | None, *, T: int = T, images: int = _IMAGES,
    goals: Goals = GOALS, repeats: int = _REPEATS,
) -> Iterator[Result]:  # fmt: skip
    """One result for each width and number of sub-codebooks, all worlds in it."""
    for D, of_width in goals.items():
        made: list[_World] = []
        absent: list[str] = []
        for name, data in worlds.generate(T, D, images, names):
            if isinstance(data, str):
                absent.append(f"world of {name} ({data})")
            else:
                made.append(_coded(name, data, list(of_width)))
        for M, least in of_width.items():
            yield _case(made, M, least, threads, list(absent), repeats)


def _coded(name: str, data: clustered_data.Embedded, sub_codebooks: list[int]) -> _World:
    pairs = {M: clustered_data.quantized(data.U, M) for M in sub_codebooks}
    return _World(
        name=name,
        C={M: C for M, (C, _) in pairs.items()},
        B={M: B for M, (_, B) in pairs.items()},
        U=data.U[:_DENSE].copy(),
        V=data.V,
    )


def _case(
    made: list[_World], M: int, least: tuple[float | None, float | None], threads: int,
    absent: list[str], repeats: int,
) -> Result:  # fmt: skip
    T, D = made[0].V.shape
    tables = {world.name: _tables(world, M) for world in made}
    contenders = [_ours(world, M, tables[world.name]) for world in made]
    levels: dict[str, object] = {}
    contenders += _dense_peers(made[0], tables[made[0].name], threads, levels, absent)
    lines = rounds(contenders, repeats)
    # The slowest world first: ratios and goals are of it.
    lines.sort(key=lambda line: (not line.ours, line.rate if line.ours else 0.0))
    checks: dict[str, object] = {}
    for world in made:
        checks |= _checks(world, M, tables[world.name])
    exact = [_equals_adc(world.B[M], tables[world.name]) for world in made]
    result = Result(
        bench="classify",
        case=f"T={T:,} D={D} k={TOP} M={M} K=256, the slowest of {len(made)} worlds first",
        unit="images/s",
        sizes={"T": T, "D": D, "M": M, "K": 256},
        lines=lines,
        checks={"equals float ADC": all(exact), **checks, **levels},
        absent=absent,
    )
    return result.with_goals(_goals(lines, least))


def _tables(world: _World, M: int) -> kernels.Tables:
    return kernels.build_tables(world.C[M], world.V, None, "cosine")


def _ours(world: _World, M: int, tables: kernels.Tables) -> Contender:
    B = world.B[M]
    return Contender(
        name=f"raypq codes, {world.name}",
        run=lambda: kernels.topk_per_code(B, tables, TOP),
        work=len(B),
        ours=True,
    )


def _dense_peers(
    world: _World, tables: kernels.Tables, threads: int, levels: dict[str, object],
    absent: list[str],
) -> list[Contender]:  # fmt: skip
    """Dense products of one world, whose speed does not depend on the values."""
    U = world.U
    dense, W = torch.from_numpy(U), torch.from_numpy(tables.W)
    half = W.bfloat16()
    peers = [
        Contender(name="torch fp32", run=lambda: _dense(dense, W), work=len(U)),
        Contender(name="torch bf16", run=lambda: _dense(dense.bfloat16(), half), work=len(U)),
    ]
    if faiss := faiss_peer.faiss_for("FAISS IndexFlatIP", threads, absent):
        index = faiss.IndexFlatIP(U.shape[1])
        index.add(tables.W)
        flat = faiss_peer.contender(
            faiss,
            name="FAISS IndexFlatIP",
            run=lambda: index.search(U, TOP),
            work=len(U),
            checks=levels,
        )
        peers.append(flat)
    return peers


def _dense(x: torch.Tensor, W: torch.Tensor) -> None:
    (x @ W.T).topk(TOP)


def _goals(lines: list[Line], least: tuple[float | None, float | None]) -> list[Goal]:
    of_torch, of_best = least
    best = max((line for line in lines if not line.ours), key=lambda line: line.rate).name
    wanted = {best: of_best} | ({} if of_torch is None else {"torch fp32": of_torch})
    return [
        Goal(ours=lines[0].name, peer=peer, at_least=ratio)
        for peer, ratio in wanted.items()
        if ratio is not None
    ]


def _checks(world: _World, M: int, tables: kernels.Tables) -> dict[str, object]:
    """What makes a world hard, what the filter leaves of it, and how near codes are to the
    uncompressed answer."""
    U, B = world.U[:_CHECK], world.B[M]
    cosine = worlds.unit(U) @ worlds.unit(world.V).T
    _, coded = kernels.topk_per_code(B[:_CHECK], tables, TOP)
    both = f"{cosine.max(axis=1).mean():.2f}, {cosine.mean():.2f}"
    checks: dict[str, object] = {f"best and mean cosine, {world.name}": both}
    if left := _left(B, tables):
        candidates, scored = left
        checks[f"pairs that the filter leaves, {world.name}"] = f"{candidates:.3%}"
        checks[f"pairs scored exactly, {world.name}"] = f"{scored:.3%}"
    same = float((coded[:, 0] == cosine.argmax(axis=1)).mean())
    checks[f"top-1 as uncompressed, {world.name}"] = same
    return checks


def _left(B: NDArray[np.uint8], tables: kernels.Tables) -> tuple[float, float] | None:
    """Shares of the pairs of codes B [N, M] and classes that are left after the scan, and that are
    scored exactly; None without the compiled kernels."""
    if not native.available():
        return None
    counts = native.prepare(tables, across_rows=False, threads=kernels.threads())
    before = counts.candidates, counts.exact_scores
    kernels.topk_per_code(B, tables, TOP)
    pairs = len(B) * tables.T
    return (counts.candidates - before[0]) / pairs, (counts.exact_scores - before[1]) / pairs


def _equals_adc(B: NDArray[np.uint8], tables: kernels.Tables) -> bool:
    score, classes = kernels.topk_per_code(B[:_CHECK], tables, TOP)
    exact_score, exact = reference.topk_per_code(B[:_CHECK], tables, TOP)
    return bool((classes == exact).all() and (score == exact_score).all())
