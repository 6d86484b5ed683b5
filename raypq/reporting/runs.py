"""Runs, from the records of models, stores and benches: speed, codewords, training, drift."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.data.codes import CodeFile, usage_bits
from raypq.data.storage import join, list_files
from raypq.data.store import snapshot_summary
from raypq.data.store.shard_stats import MOST_OPTIMISM
from raypq.errors import InputError
from raypq.reporting import charts
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Store, shorten
from raypq.reporting.health import work_seconds
from raypq.reporting.tables import DASH, Table, count, moment, share

_SAMPLE_ROWS = 131_072  # codes of a model that are counted
_DENSE = "torch fp32"


def ratio(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Rate relative to the dense product, by number of sub-codebooks."""
    series: dict[str, dict[int, tuple[float, float, float]]] = {}
    machines: dict[str, str] = {}
    for item in findings.benches:
        bench = item.content
        for result in bench["results"]:
            rates = {line["name"]: line["rate"] for line in result["lines"]}
            sizes = result.get("sizes") or {}
            if result["bench"] not in ("ratio", "classify") or not sizes or _DENSE not in rates:
                continue
            ours = next(line["rate"] for line in result["lines"] if line["ours"])
            label = f"T = {sizes['T']:,}, D = {sizes['D']}"
            at = series.setdefault(label, {})
            # The bench that varies M measured all of its points alike.
            if result["bench"] == "ratio" or sizes["M"] not in at:
                at[sizes["M"]] = (ours / rates[_DENSE], ours, rates[_DENSE])
            machines[label] = f"{bench['date']}, {bench['cpu']}, {bench['threads']} threads"
    if not series:
        return [], []
    rows = [
        [label, M, count(ours), count(dense), f"{times:.1f}×", machines[label]]
        for label, at in series.items()
        for M, (times, ours, dense) in sorted(at.items())
    ]
    head = ["classes and width", "M", "codes, images/s", "dense, images/s", "ratio", "measured"]
    table = Table(title="The same as a table", head=head, rows=rows, words=(0, 5))
    drawn = {
        label: ([float(M) for M in sorted(at)], [at[M][0] for M in sorted(at)])
        for label, at in series.items()
    }
    chart = charts.lines(
        "ratio", "Times as fast as the dense search",
        f"Rate of scanning codes over that of {_DENSE} product and top-k, same classes and width.",
        drawn, x="number of sub-codebooks M", y="ratio", flat=(1.0, "as fast"), from_zero=True,
        log_x=any(max(xs) > 10 * min(xs) for xs, _ in drawn.values()),
    )  # fmt: skip
    return [table], [chart]


def codewords(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Codeword counts over a sample of codes of each model: entropy, and codewords never used."""
    rows, drawn = [], []
    seen: set[str] = set()
    for store in findings.codes:
        for fingerprint in sorted(set(store.latest.shards.totals.models) - seen):
            seen.add(fingerprint)
            usage = _count_codes(store, fingerprint)
            if usage is None:
                continue
            M, K = usage.shape
            n = int(usage[0].sum())
            bits = usage_bits(usage)
            unused = int((usage == 0).sum())
            rows.append(
                [
                    f"{fingerprint[:8]}, M = {M}", count(n), f"{bits.mean():.2f}",
                    f"{bits.min():.2f}", f"{np.log2(K):.2f}", f"{unused:,} of {M * K:,}",
                ]
            )  # fmt: skip
            drawn.append(
                charts.band(
                    f"codewords-{fingerprint[:8]}", f"How often codewords are used, M = {M}",
                    f"Model {fingerprint[:8]}, {n:,} codes: share of each codeword in percent, the "
                    "most used first.",
                    -np.sort(-100 * usage / n, axis=1), x="codeword, most used first",
                    y="share of images (%)", level=100 / K, word="uniform usage",
                )
            )  # fmt: skip
    head = ["model", "codes counted", "entropy, mean bits", "least of a sub-codebook",
            "at most", "codewords never used"]  # fmt: skip
    return ([Table(title="Usage", head=head, rows=rows)] if rows else []), drawn


def _count_codes(store: Store, fingerprint: str) -> NDArray[np.int64] | None:
    """Counts [M, K] over files chosen evenly until the sample is full."""
    receipts = [receipt for receipt in store.latest.shards if receipt.model == fingerprint]
    files = [receipt for receipt in receipts[:: max(1, len(receipts) // 16)] if receipt.rows]
    usage: NDArray[np.int64] | None = None
    for receipt in files:
        file = CodeFile.open(join(store.place, receipt.path), size=receipt.bytes)
        if usage is not None and usage.shape != (file.M, file.K):
            raise InputError(
                file.uri,
                expected="codes of M = {}, K = {}, as in other files of one model".format(
                    *usage.shape
                ),
                found=f"M = {file.M}, K = {file.K}",
            )
        room = _SAMPLE_ROWS // len(files)
        for batch in file.batches(min(16_384, room)):
            flat = (batch.B.astype(np.int64) + file.K * np.arange(file.M)).reshape(-1)
            part = np.bincount(flat, minlength=file.M * file.K).reshape(file.M, file.K)
            usage = part if usage is None else usage + part
            room -= len(batch.B)
            if room <= 0:
                break
    return usage


def training(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """The quantization error and the objective of every pass, for models that record them."""
    series: dict[str, dict[str, Any]] = {"objective": {}, "quantization_error": {}}
    for fingerprint, item in sorted(findings.models.items(), key=lambda pair: pair[1].place):
        model = item.content["model"]
        history = item.content.get("record", {}).get("history") or []
        label = f"{model['method']}, M = {model['M']}"
        if any(label in known for known in series.values()):
            label = f"{label}, {fingerprint[:8]}"
        for key, known in series.items():
            values = [(note["iteration"], note[key]) for note in history if note.get(key)]
            if len(values) > 1:
                first = values[0][1]
                known[label] = ([at for at, _ in values], [value / first for _, value in values])
    words = {
        "objective": ("Objective", "The objective that training minimizes"),
        "quantization_error": ("Quantization error", "Mean ‖u − q(u)‖² over the training images"),
    }
    drawn = [
        charts.lines(
            f"training-{key.replace('_', '-')}", words[key][0],
            f"{words[key][1]}, relative to the first pass.", known, x="pass",
            y="relative to the first pass", whole_x=True,
        )
        for key, known in series.items()
        if known
    ]  # fmt: skip
    return [], drawn


def drift(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Statistics of the shards that each version added, compared with the training data."""
    rows, drawn = [], []
    short = shorten([store.place for store in findings.stores])
    for number, store in enumerate(findings.codes):
        points, lines = _versions(store)
        if not points:
            continue
        rows += [[short[store.place], *line] for line in lines]
        if len(store.versions) < 2:
            continue
        baseline: Mapping[str, Any] = {}
        latest = store.latest.summary.get("fingerprint")
        if isinstance(latest, str) and latest in findings.models:
            baseline = findings.models[latest].content.get("record", {}).get("baseline") or {}
        levels = []
        if baseline and baseline["optimism"] <= MOST_OPTIMISM:
            expected = baseline["error"]["mean"] * baseline["optimism"]
            levels.append((expected, "expected of new images"))
        drawn.append(
            charts.scatter(
                f"drift-{number}",
                f"Quantization error of new shards: {short[store.place]}",
                "Each point is a shard, at the version that added it: mean ‖u − q(u)‖² divided "
                "by the mean ‖u‖², on a sample of its rows.",
                points,
                x="version",
                y="relative error",
                levels=levels,
            )
        )
    head = ["store", "version", "made (UTC)", "new shards", "images", "relative error",
            "feature norm", "entropy, bits", "called drifted"]  # fmt: skip
    return (
        [Table(title="New shards by version", head=head, rows=rows, words=(0, 2))] if rows else []
    ), drawn


def _versions(store: Store) -> tuple[list[tuple[float, float]], list[list[Any]]]:
    points: list[tuple[float, float]] = []
    rows: list[list[Any]] = []
    known: set[str] = set()
    for version in store.versions:
        fresh = [item for item in version.shards if item.path not in known]
        known |= {item.path for item in version.shards}
        measured = [item for item in fresh if item.stats]
        points += [
            (float(version.version), item.stats.error.mean) for item in measured if item.stats
        ]
        weights = [item.rows for item in measured]
        drifted = snapshot_summary.items(store.place, version, "drift", "shards")

        def mean(values: list[float], weights: list[int] = weights) -> float | None:
            return float(np.average(values, weights=weights)) if sum(weights) else None

        stats = [item.stats for item in measured if item.stats]
        rows.append(
            [
                version.version, moment(version.created), len(fresh),
                count(sum(r.rows for r in fresh)),
                share(mean([item.error.mean for item in stats])),
                share(mean([item.norm.mean for item in stats])),
                share(mean([item.entropy for item in stats])),
                "not checked" if drifted is None else len(drifted),
            ]
        )  # fmt: skip
    return points, rows


def throughput(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Images over time, from the modification times of the files of the latest run."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    rows: list[list[Any]] = []
    short = shorten([store.place for store in findings.stores])
    for store in findings.stores:
        before = store.versions[-2].shards if len(store.versions) > 1 else ()
        old = {receipt.path for receipt in before}
        fresh = [receipt for receipt in store.latest.shards if receipt.path not in old]
        files = list_files(join(store.place, "data"))
        done = sorted(
            (files[name].written, receipt.rows)
            for receipt in fresh
            if (name := receipt.path.removeprefix("data/")) in files
        )
        number = partial(snapshot_summary.number, store.place, store.latest, least=0)
        images, shards = number("worked", "images"), number("worked", "shards")
        seconds = work_seconds(store)
        if images and seconds:
            times = (number("run", "seconds", name) for name in ("plan", "start"))
            rows.append(
                [short[store.place], store.kind, count(shards), count(images),
                 *(DASH if time is None else f"{time:.1f} s" for time in times),
                 f"{seconds:.1f} s", count(images / seconds)]
            )  # fmt: skip
        if len(done) > 1 and seconds:
            start = done[-1][0] - seconds
            xs = [0.0, *(max(0.0, at - start) for at, _ in done)]
            ys = [0.0, *np.cumsum([float(n) for _, n in done])]
            series[short[store.place]] = (xs, ys)
    head = ["store", "of", "shards", "images or rows", "plan", "start of workers", "work",
            "images/s of the work"]  # fmt: skip
    note = "Plan: listings, the model, what is finished. Start: Ray, until a worker is ready."
    table = Table(title="Rates of the latest runs", head=head, rows=rows, words=(0, 1), note=note)
    tables = [table] if rows else []
    if not series:
        return tables, []
    longest = sorted(series, key=lambda name: -series[name][0][-1])[: charts.MAX_SERIES]
    series = {name: series[name] for name in series if name in longest}
    chart = charts.lines(
        "throughput", "Images done over time",
        "Each point is a finished shard, at the time that its file was written, since the "
        f"workers were ready. At most the {charts.MAX_SERIES} longest runs are drawn.",
        series, x="seconds", y="images done", from_zero=True,
    )  # fmt: skip
    return tables, [chart]
