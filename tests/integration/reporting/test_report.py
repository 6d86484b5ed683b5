"""The report: everything that was found is in the page, and the page is fit to be looked at."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import (
    ClassifyJob,
    ClusterJob,
    ClusterSettings,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    EvaluateJob,
    ReindexJob,
    RetrievalJob,
    SearchJob,
    TrainJob,
)
from raypq.data.store import snapshot
from raypq.errors import InputError
from raypq.reporting import retrieval
from raypq.reporting.findings import gather

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def results(world: Any, alone: ClusterSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two sizes of codes, exact features, two versions, and results of every kind."""
    root = tmp_path_factory.mktemp("report")
    features = root / "features"
    shutil.copytree(world.test, features)
    later = features / "part-1.parquet"
    later.rename(root / "later.parquet")
    for M in (2, 4):
        model, codes = str(root / f"model-{M}"), str(root / f"codes-{M}")
        settings = {"M": M, "K": 16}
        api.train(
            TrainJob(method="pqzsl", features=[world.train], classes=world.classes,
                     output=model, settings=settings, where=alone)
        )  # fmt: skip
        api.encode(EncodeJob(model=model, features=[str(features)], output=codes, where=alone))
    (root / "later.parquet").rename(later)
    for M in (2, 4):
        model, codes = str(root / f"model-{M}"), str(root / f"codes-{M}")
        api.encode(EncodeJob(model=model, features=[str(features)], output=codes, where=alone))
        _judge(root, f"M{M}", world.classes, alone, codes=codes)
    exact = {"model": str(root / "model-4"), "features": [str(features)]}
    _judge(root, "exact", world.classes, alone, **exact)
    retrieval = RetrievalJob(codes=str(root / "codes-4"), queries=[str(later)], at=(1, 10),
                             features=[str(features)], where=alone)  # fmt: skip
    _write(root / "retrieval.json", api.evaluate_retrieval(retrieval))
    groups = DeduplicateJob(codes=str(root / "codes-4"), metric="cosine", threshold=0.99,
                            output=str(root / "groups"), where=alone)  # fmt: skip
    api.deduplicate(groups)
    found = {"codes": str(root / "codes-4"), "where": alone}
    api.search(SearchJob(queries=[str(later)], output=str(root / "found"), top_k=5, **found))
    pairs = {"metric": "cosine", "threshold": 0.99, "output": str(root / "pairs")}
    api.duplicates(DuplicatesJob(**pairs, **found))
    api.cluster(ClusterJob(k=4, metric="l2", output=str(root / "clusters"), **found))
    _nights(root, str(root / "model-4"), alone)
    _write(root / "bench.json", BENCH)
    _write(root / "other.json", {"a": 1})
    return root


def _nights(root: Path, model: str, where: ClusterSettings) -> None:
    """A night, a night with a damaged shard, and one that rolls out another model."""
    source = root / "source"
    shutil.copytree(root / "features", source)

    def night(model: str, **more: Any) -> None:
        codes = str(root / "night")
        job = ReindexJob(model=model, features=[str(source)], codes=codes, where=where, **more)
        api.reindex(job)

    night(model)
    (source / "part-1.parquet").write_bytes(b"damaged")
    night(model, on_bad_shard="quarantine")
    shutil.copy(root / "features" / "part-1.parquet", source / "part-2.parquet")
    night(str(root / "model-2"), on_bad_shard="quarantine", rollout=0.5)


def _judge(root: Path, name: str, classes: str, where: ClusterSettings, **source: Any) -> None:
    output = str(root / f"predictions-{name}")
    api.classify(ClassifyJob(classes=classes, output=output, where=where, **source))
    job = EvaluateJob(predictions=output, classes=classes, where=where)
    _write(root / f"{name}.json", api.evaluate(job))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


# As `raypq bench ratio --json` writes it.
BENCH = {
    "date": "2026-01-02", "cpu": "a processor", "cores": 2, "threads": 2, "packages": {},
    "results": [
        {"bench": "ratio", "case": f"M={M}", "unit": "images/s",
         "sizes": {"T": 500, "D": 20, "M": M},
         "lines": [{"name": "raypq codes", "rate": 70_000.0 / M, "seconds": 1, "ours": True},
                   {"name": "torch fp32", "rate": 1000.0, "seconds": 1, "ours": False}]}
        for M in (2, 4)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    output = results / "report.html"
    done = CliRunner().invoke(main, ["report", str(results), "--output", str(output)])
    assert done.exit_code == 0, done.output
    return output


def test_every_chapter_is_filled(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<section id="([a-z]+)"', text)
    assert found == [
        "settings", "health", "nights", "accuracy", "quantization", "speed", "classes",
        "codewords", "retrieval", "training", "drift", "throughput", "queries", "duplicates",
        "groups", "sources",
    ]  # fmt: skip
    assert "Chapters without findings" not in text


def test_the_numbers_are_those_of_the_files(page: Path, results: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in ("M2", "M4", "exact"):
        told = json.loads((results / f"{name}.json").read_text())
        cells = [f"<td>{told[key]:.3f}</td>" for key in ("zsl", "ts", "tr", "H")]
        row = next(row for row in text.split("<tr>") if f'<td class="word">{name}</td>' in row)
        assert [cell for cell in cells if cell not in row] == []
    told = json.loads((results / "M4.json").read_text())
    worst = min(told["per_class"], key=lambda one: (one["hit@1"], -one["images"], one["class_id"]))
    listed = text[text.index("recognised worst") :]
    assert listed.index(worst["name"]) < listed.index("</tr>", listed.index("</tr>") + 1)
    told = json.loads((results / "retrieval.json").read_text())
    ranked = [told[key] for key in ("map", "map@10", "precision@10", "recall@10", "1-recall@10")]
    for value in (*(f"<td>{value:.3f}</td>" for value in ranked), "35.0×", "17.5×",
                  "2026-01-02, a processor"):  # fmt: skip
        assert value in text


def test_the_curve_of_precision_over_recall_is_drawn(page: Path, results: Path) -> None:
    curve = json.loads((results / "retrieval.json").read_text())["precision_recall"]
    found = gather([str(results / "retrieval.json")])
    (chart,) = [one for one in retrieval.chapter(found)[1] if one.title == "Precision over recall"]
    assert curve[-1][0] == 1.0
    assert chart.svg in page.read_text(encoding="utf-8")


def test_confusions_add_up(results: Path) -> None:
    told = json.loads((results / "M2.json").read_text())
    wrong = sum(one["images"] * (1 - one["hit@1"]) for one in told["per_class"])
    assert sum(one["images"] for one in told["confusions"]) == pytest.approx(wrong)
    assert all(one["class_id"] != one["answer_id"] for one in told["confusions"])
    counts = [one["images"] for one in told["confusions"]]
    assert counts == sorted(counts, reverse=True)


def test_every_kind_of_store_has_cards(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    cards = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", text))
    assert cards["images in codes"] == "120"
    assert cards["images classified"] == "120"
    assert cards["queries × results"] == "60 × 5"
    assert cards["clusters"] == "4"
    assert {"pairs of near-duplicates", "groups of near-duplicates", "images to drop"} <= {*cards}


def rows_of(page: Path, table: str) -> list[list[str]]:
    """The cells of a table, by its title."""
    text = page.read_text(encoding="utf-8")
    body = text.split(f"<h3>{table}</h3>")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in body.split("</tr>")[:-1]]


def test_nights_are_told_one_by_one(page: Path) -> None:
    nights = [row for row in rows_of(page, "Nights") if row[0] == "night"]
    assert [row[1] for row in nights] == ["1", "2", "3"]
    assert [row[3] for row in nights] == ["120", "0", "60"]  # new images
    assert [row[9] for row in nights] == ["0", "1", "1"]  # shards left out
    assert nights[0][10] == "100%"
    assert nights[2][10] in ("50%", "100%")


def test_shards_that_are_left_out_are_named(page: Path, results: Path) -> None:
    (left,) = [row for row in rows_of(page, "Shards that are left out") if row[0] == "night"]
    assert left[1] == str(results / "source" / "part-1.parquet")
    assert left[2]
    assert "Parquet" in left[3]
    states = {row[0]: row[1] for row in rows_of(page, "Latest runs")}
    assert "1 shard(s) left out" in states["night"]
    assert states["codes-4"] == "nothing to look at"


def test_queries_that_find_themselves_are_warned_of(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "Queries of retrieval are stored themselves" in text
    (row,) = rows_of(page, "Rankings")
    assert row[4:6] == ["60", "60"]
    assert "the query itself" in text  # of search results


def test_rates_are_without_the_start_of_workers(page: Path, results: Path) -> None:
    run = snapshot.read(str(results / "codes-4")).summary["run"]["seconds"]
    (row,) = [row for row in rows_of(page, "Rates of the latest runs") if row[0] == "codes-4"]
    rate = float(row[7].replace(",", ""))
    assert rate == pytest.approx(60 / run["encode"], rel=0.05)
    assert row[5] == f"{run['start']:.1f} s"


def test_an_unknown_file_is_named(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.search(r"<li>[^<]*other\.json: not the result of an evaluation or a bench", text)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href") and value:
                if value.startswith("#"):
                    self.inside.append(value[1:])
                elif not value.startswith("data:"):
                    self.outside.append(value)


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = _Links()
    links.feed(text)
    assert links.outside == []
    assert len(set(links.ids)) == len(links.ids)
    assert set(links.inside) <= set(links.ids)
    assert "<script" not in text
    assert "url(http" not in text
    assert "#0102" not in text, "a colour that did not become a variable"


def test_a_page_of_one_file(results: Path, tmp_path: Path) -> None:
    """The other chapters are named with the commands that fill them."""
    output = tmp_path / "one.html"
    assert api.report([str(results / "retrieval.json")], str(output)) == 4
    text = output.read_text(encoding="utf-8")
    assert "Codeword usage (filled by a code store)" in text


def test_words_of_the_data_are_text(results: Path, tmp_path: Path) -> None:
    told = json.loads((results / "M2.json").read_text())
    told["per_class"][0] |= {"name": "<script>alert(1)</script>", "hit@1": -1.0}
    _write(tmp_path / "evil.json", told)
    api.report([str(tmp_path)], str(tmp_path / "evil.html"))
    text = (tmp_path / "evil.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_nothing_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected result files"):
        api.report([str(tmp_path)], str(tmp_path / "report.html"))
    with pytest.raises(InputError, match="nowhere: expected a file"):
        api.report([str(tmp_path / "nowhere")], str(tmp_path / "report.html"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright."""
    place = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if place is None:
        pytest.skip(f"no browser here (looked for {', '.join(BROWSERS)})")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as library:
        opened = library.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(browser: Any, page: Path, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    errors: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.as_uri())
    ask: Callable[[str], Any] = tab.evaluate
    assert errors == []
    assert ask("document.documentElement.scrollWidth") == width
    drawn = ask(
        "[...document.querySelectorAll('figure svg')].map(x => x.getBoundingClientRect().height)"
    )
    assert len(drawn) >= 12
    assert min(drawn) > 150
    # Words of a figure are in the colours of the page, and inside the figure.
    ink, ground = ask(
        "[getComputedStyle(document.querySelector('figure svg text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    assert _contrast(ink, ground) > 4.5
    tables = ask(
        "[...document.querySelectorAll('.wide')].map(box => [box.getAttribute('aria-label'),"
        " box.scrollWidth, box.clientWidth,"
        " Math.max(...[...box.querySelectorAll('th')].map(th => th.offsetHeight)),"
        " getComputedStyle(box).backgroundAttachment])"
    )
    for title, whole, visible, head, shade in tables:
        assert head < 60, f"{title}: a head of more than two lines"
        assert "local" in shade  # the sign that a table goes on
        assert "scroll" in shade
        assert width < 1280 or whole <= visible, f"{title} is cut off"
    outside = ask(
        "[...document.querySelectorAll('figure svg')].flatMap(svg => {"
        " const box = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter(text => {"
        "  const at = text.getBoundingClientRect();"
        "  return at.left < box.left - 2 || at.right > box.right + 2;"
        " }).map(text => text.textContent)})"
    )
    assert outside == []
    context.close()


def _contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours, after WCAG 2."""
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
