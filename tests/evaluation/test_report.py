"""The report: every figure is there, and no text of others changes the structure of the page."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from visrec.evaluation.cards import thumbnail
from visrec.evaluation.report import (
    ClusterRow,
    ItemCard,
    Report,
    UserExample,
    VisualClusters,
    render,
)

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE users; --",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "\u202egnp.exe",
    "a\nb\x00c",
    "\ud800",
    "https://example.com/?a=1&b=2",
    "x" * 2048,
]
NAMES = ["auc", "rr", "recall@20", "precision@20", "ndcg@20", "recall@100", "precision@100"]


def figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02, "n": 50}


METRICS = {
    model: {name: figure(auc - 0.03 * place) for place, name in enumerate(NAMES)}
    for model, auc in {
        "random": 0.5,
        "oracle": 0.95,
        "visrank-max": 0.7,
        "curatornet": 0.85,
        "visrank-mean": 0.75,
    }.items()
}


class Page(HTMLParser):
    """Tags with attributes, visible text, and the cells of every table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.text += data
        if "td" in self._inside or "th" in self._inside:
            self.rows[-1][-1] += data.strip() + " "


def report(**changes: object) -> Report:
    given = {"title": "A title", "metrics": METRICS, "examples": [], "metadata": {"users": "50"}}
    return Report(**{**given, **changes})  # type: ignore[arg-type]


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 200
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def table(html: str) -> list[list[str]]:
    """Rows of the table of metrics, which is the first one."""
    first = html.partition("</table>")[0]
    return [[cell.strip() for cell in row] for row in Page(first).rows]


def test_table_holds_every_model_and_metric_by_decreasing_auc() -> None:
    header, *rows = table(render(report()))
    assert header[:4] == ["Model", "AUC", "RR", "Recall@20"]
    assert len(header) == 1 + len(NAMES)
    order = ["curatornet", "visrank-mean", "visrank-max", "random", "oracle"]
    assert [row[0] for row in rows] == order
    for row in rows:
        figures = [METRICS[row[0]][name] for name in NAMES]
        assert row[1:] == [f"{f['mean']:.3f} {f['low']:.3f}–{f['high']:.3f}" for f in figures]


def test_best_of_each_column_is_highlighted_and_the_oracle_does_not_compete() -> None:
    html = render(report())
    best = re.findall(r'<td class="best">([\d.]+)', html)
    assert best == [f"{METRICS['curatornet'][name]['mean']:.3f}" for name in NAMES]


def test_progress_to_the_oracle_is_a_share_of_the_distance_from_visrank() -> None:
    # From 0.75 to 0.95, 0.85 is half way.
    text = Page(render(report())).text
    assert "curatornet (0.850) closes 50% of the distance" in text
    assert "best VisRank (visrank-mean, 0.750) to the oracle (0.950)" in text


def test_model_below_visrank_closes_none_of_the_distance() -> None:
    metrics = {**METRICS, "curatornet": {"auc": figure(0.6)}}
    assert (
        "curatornet (0.600) closes none of the distance"
        in Page(render(report(metrics=metrics))).text
    )


@pytest.mark.parametrize("absent", ["oracle", "visrank", "curatornet"])
def test_progress_is_not_shown_without_oracle_visrank_and_trained_model(absent: str) -> None:
    metrics = {name: value for name, value in METRICS.items() if not name.startswith(absent)}
    assert "of the distance" not in render(report(metrics=metrics))


def test_missing_figures_are_dashes_and_unknown_metrics_fold_away() -> None:
    metrics = {
        "curatornet": {"auc": {"mean": 0.8, "n": 3}, "surprise": figure(0.4)},
        "empty": {},
        "broken": {"auc": figure(float("nan"))},
    }
    html = render(report(metrics=metrics))
    header, *rows = table(html)
    assert header == ["Model", "AUC"]
    assert rows == [["curatornet", "0.800"], ["empty", "–"], ["broken", "–"]]
    folded = table(html[html.index("<details>") :])
    assert folded == [
        ["Model", "surprise"],
        ["curatornet", "0.400 0.390–0.420"],
        ["empty", "–"],
        ["broken", "–"],
    ]


def part(html: str, heading: str) -> list[list[str]]:
    """Rows of the first table behind a heading."""
    return table(html[html.index(f"{heading}</h") :])


def difference(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high, "above": 0.5, "n": 50}


def test_differences_whose_interval_excludes_zero_are_highlighted() -> None:
    paired = {
        "a - b": {"auc": difference(0.1, 0.02, 0.2), "rr": difference(-0.1, -0.2, -0.05)},
        "a - c": {"auc": difference(0.1, -0.02, 0.2), "rr": difference(0.0, 0.0, 0.0)},
    }
    html = render(report(paired=paired))
    assert part(html, "Differences between models") == [
        ["Models", "AUC", "RR"],
        ["a - b", "+0.100 0.020 to 0.200", "−0.100 −0.200 to −0.050"],
        ["a - c", "+0.100 −0.020 to 0.200", "+0.000 0.000 to 0.000"],
    ]
    assert re.findall(r'<td class="(more|less)">([^<]+)', html) == [
        ("more", "+0.100"),
        ("less", "−0.100"),
    ]


def test_each_metric_has_a_table_by_profile_size() -> None:
    def metrics_of(auc: float, users: int) -> dict[str, dict[str, dict[str, float]]]:
        one, other = ({**figure(value), "n": users} for value in (auc, auc - 0.2))
        return {
            "random": {"auc": other, "precision@200": other, "novelty@100": one},
            "curatornet": {"auc": one, "precision@200": one, "novelty@100": other},
        }

    metrics = {model: METRICS[model] for model in ("random", "curatornet")}
    lists = {model: {"novelty@100": figure(5)} for model in metrics}
    sizes = {"1": metrics_of(0.6, 1200), "5-9": metrics_of(0.8, 9)}
    html = render(report(metrics=metrics, lists=lists, by_profile_size=sizes))
    expected = [
        ["Model", "1 item 1,200 users", "5-9 items 9 users"],
        ["curatornet", "0.600 0.590–0.620", "0.800 0.790–0.820"],
        ["random", "0.400 0.390–0.420", "0.600 0.590–0.620"],
    ]
    html = html[html.index("By profile size") :]
    assert part(html, "AUC") == expected
    assert part(html, "Precision@200") == expected
    assert html.index("AUC</h3>") < html.index("<details>") < html.index("Precision@200</h3>")
    # The best of each column is highlighted, but not where a higher value is not better.
    assert re.findall(r'class="best">([\d.]+)', html) == ["0.600", "0.800"] * 2


def test_list_metrics_are_in_the_order_of_the_models() -> None:
    lists = {model: {"coverage@100": {"mean": 0.5}} for model in METRICS}
    lists["curatornet"]["diversity@100"] = figure(0.9)
    html = render(report(lists=lists))
    header, *rows = part(html, "What the lists are like")
    assert header == ["Model", "Coverage@100", "Diversity@100"]
    assert rows[0] == ["curatornet", "0.500", "0.900 0.890–0.920"]
    assert [row[0] for row in rows] == [row[0] for row in table(html)[1:]]
    assert rows[1][1:] == ["0.500", "–"]


def test_cluster_is_a_row_of_pictures_with_size_and_share() -> None:
    card = ItemCard(item_id="a", title="A hill", thumbnail=thumbnail(picture(40, 30)))
    rows = [
        ClusterRow(size=1234, share=0.125, items=[card, card]),
        ClusterRow(size=2, share=0.0002, items=[ItemCard(item_id="b")]),
    ]
    page = Page(render(report(clusters=VisualClusters(count=100, rows=rows))))
    assert "the 2 largest of 100 clusters" in page.text
    for text in ("1,234", "12.5 %", "0.0 %"):
        assert text in page.text
    names = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert names == ["A hill", "A hill"]
    every = render(report(clusters=VisualClusters(count=2, rows=rows)))
    assert "all 2 clusters" in Page(every).text
    assert "Visual clusters" not in render(report())


def test_report_without_content_is_still_a_page() -> None:
    text = Page(render(report(metrics={}, metadata={}))).text
    assert "No figures." in text
    assert "Examples" not in text
    empty = UserExample(user_id="u", profile=[], held_out=[], recommended=[])
    assert Page(render(report(examples=[empty]))).text.count("None.") == 3


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_and_changes_no_tag(hostile: str) -> None:
    def filled(text: str) -> str:
        card = ItemCard(item_id=text, title=text, because=text, score=1.0, hit=True)
        bare = ItemCard(item_id=text)
        pictured = ItemCard(item_id=text, thumbnail=b"jpeg")
        user = UserExample(user_id=text, profile=[bare], held_out=[card], recommended=[card, bare])
        metrics = {**METRICS, text: {text: figure(0.5), "auc": figure(0.5)}}
        return render(
            Report(
                title=text,
                metrics=metrics,
                examples=[user],
                metadata={text: text},
                lists=metrics,
                by_profile_size={text: {model: {text: figure(0.5)} for model in metrics}},
                paired={text: {text: figure(0.5)}},
                clusters=VisualClusters(
                    count=1, rows=[ClusterRow(size=1, share=1.0, items=[card, bare, pictured])]
                ),
                notes=[text],
            )
        )

    html = filled(hostile)
    page, plain = Page(html), Page(filled("plain"))
    assert html.encode() is not None
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [set(attrs) for _, attrs in page.tags] == [set(attrs) for _, attrs in plain.tags]
    shown = hostile.replace("\n", "␊").replace("\0", "␀").replace("\ud800", "?")
    assert page.text.count(shown) >= 8


def test_page_loads_nothing_from_outside() -> None:
    card = ItemCard(item_id="a", thumbnail=thumbnail(picture(40, 30)))
    user = UserExample(user_id="u", profile=[card], held_out=[card], recommended=[card])
    html = render(report(examples=[user]))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", html))
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 3
    assert all(src is not None and src.startswith("data:image/jpeg;base64,") for src in sources)


@pytest.mark.parametrize("shape", [(640, 480), (30, 400), (96, 96), (5, 5)])
def test_thumbnail_is_a_small_square_jpeg(shape: tuple[int, int]) -> None:
    small = thumbnail(picture(*shape))
    assert small is not None
    with Image.open(io.BytesIO(small)) as opened:
        assert (opened.format, opened.size, opened.mode) == ("JPEG", (96, 96), "RGB")
        red, green, blue = opened.getpixel((48, 48))
    assert abs(red - 200) < 5
    assert max(green, blue) < 5


@pytest.mark.parametrize("data", [b"", b"not a picture", picture(64, 64)[:80], b"<svg></svg>"])
def test_bytes_that_are_no_picture_have_no_thumbnail(data: bytes) -> None:
    assert thumbnail(data) is None
