"""The report: every figure is there, and no text of others changes the structure of the page."""

import re
from html.parser import HTMLParser

import pytest

from tests.evaluation.test_cards import picture
from visrec.evaluation.cards import thumbnail
from visrec.evaluation.record import EvaluationRecord
from visrec.evaluation.report import render
from visrec.evaluation.report_content import (
    ClusterRow,
    HeldBackRun,
    ItemCard,
    ListEntry,
    RejectedPicture,
    RejectedPictures,
    Report,
    SweepSummary,
    SweepTrial,
    TrainingCurve,
    UserExample,
    VisualClusters,
    WorkspaceFacts,
)
from visrec.evaluation.verdict import Verdict, judge
from visrec.publication.gate import Gate

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
        if {"style", "script"} & set(self._inside):
            return
        self.text += data
        if "td" in self._inside or "th" in self._inside:
            self.rows[-1][-1] += data.strip() + " "


def report(**changes: object) -> Report:
    given = {
        "model": "curatornet",
        "model_id": "curatornet-1",
        "metrics": METRICS,
        "verdict": judge("curatornet", METRICS, {}),
        "made": "today",
        "users": 50,
        "items": 300,
    }
    return Report(**{**given, **changes})  # type: ignore[arg-type]


def user(user_id: str = "u", **changes: object) -> UserExample:
    given = {"profile": [], "profile_size": 0, "held_out": [], "recommended": []}
    return UserExample(user_id=user_id, **{**given, **changes})  # type: ignore[arg-type]


def table(html: str) -> list[list[str]]:
    """Rows of the table of metrics, which is the first one."""
    first = html.partition("</table>")[0]
    return [[cell.strip() for cell in row] for row in Page(first).rows]


def test_table_holds_every_model_and_metric_by_decreasing_auc() -> None:
    html = render(report())
    assert "which does not say what is sold out" in Page(html).text
    header, *rows = table(html)
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
    folded = table(html[html.index("Other cut-offs") :])
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
    assert re.findall(r'<td class="(up|down)">([^<]+)', html) == [
        ("up", "+0.100"),
        ("down", "−0.100"),
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
    assert html.index("AUC</h4>") < html.index("Other metrics") < html.index("Precision@200</h4>")
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
    names = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") == "img"]
    assert names == ["A hill", "A hill", "b"]
    every = render(report(clusters=VisualClusters(count=2, rows=rows)))
    assert "all 2 clusters" in Page(every).text
    assert "Visual clusters" not in render(report())


def test_report_without_content_is_still_a_page() -> None:
    html = render(report(metrics={}, verdict=judge("curatornet", {}, {})))
    text = Page(html).text
    assert "There is no AUC of curatornet" in text
    assert "No figures." in text
    assert "Lists of curatornet" not in text
    text = Page(render(report(examples=[user()]))).text
    assert "Nothing is known of this user." in text
    assert "Nothing is left to recommend." in text


def test_verdict_comes_first_with_what_to_do() -> None:
    verdict = Verdict(
        outcome="worse", sentence="It lost.", details=("By far.",), advice=("Do this.", "Or that.")
    )
    page = Page(render(report(verdict=verdict)))
    shown = ["Worse than a baseline", "It lost.", "By far.", "Do this.", "Or that.", "Figures"]
    main = page.text[page.text.index("Worse") :]
    assert [main.index(text) for text in shown] == sorted(main.index(text) for text in shown)


def test_commands_in_the_advice_are_code() -> None:
    verdict = Verdict(outcome="better", sentence="s", advice=["Run `visrec <b>` now."])
    assert "Run <code>visrec &lt;b&gt;</code> now." in render(report(verdict=verdict))


def test_user_has_profile_list_reasons_and_what_was_held_out() -> None:
    cards = {key: ItemCard(item_id=key, title=f"Title {key}") for key in "abcd"}
    html = render(
        report(
            examples=[
                user(
                    "ann",
                    profile=[cards["a"]],
                    profile_size=12,
                    recommended=[
                        ListEntry(item=cards["b"], rank=1, because=cards["a"]),
                        ListEntry(item=cards["c"], rank=2, hit=True),
                    ],
                    held_out=[
                        ListEntry(item=cards["c"], rank=2, hit=True),
                        ListEntry(item=cards["d"], rank=1234, badges=("new item",)),
                    ],
                    auc=0.75,
                    rival_auc=0.5,
                    is_cold=True,
                )
            ]
        )
    )
    page = Page(html)
    (attributes,) = [attrs for _, attrs in page.tags if attrs.get("class") == "user"]
    assert attributes["data-user"] == "ann"
    assert (attributes["data-auc"], attributes["data-gain"]) == ("0.75000", "0.25000")
    assert {"data-found", "data-cold"} <= attributes.keys()
    for text in (
        *("1 of 2 found in the first 2", "Profile: 1 of 12 items", "Lists of curatornet"),
        *("because of Title a", "#1,234", "new item", "AUC 0.750, visrank-mean 0.500"),
    ):
        assert text in page.text
    cards_shown = [attrs for _, attrs in page.tags if "card" in (attrs.get("class") or "").split()]
    assert [(c["data-id"], c.get("data-because")) for c in cards_shown] == [
        *(("a", None), ("b", "a"), ("c", None), ("c", None), ("d", None))
    ]


def test_reason_that_all_entries_share_is_given_once() -> None:
    a, b, c = (ItemCard(item_id=key, title=f"Title {key}") for key in "abc")
    one = user(recommended=[ListEntry(item=item, because=a) for item in (b, c)])
    text = Page(render(report(examples=[one]))).text
    assert text.count("because of") == text.count("best first, because of Title a") == 1
    two = user(recommended=[ListEntry(item=c, because=item) for item in (a, b)])
    text = Page(render(report(examples=[two]))).text
    assert text.count("because of") == 2
    assert "best first, because of" not in text
    none = user(recommended=[ListEntry(item=c)])
    assert "because of" not in Page(render(report(examples=[none]))).text


def test_groups_of_users_are_counted() -> None:
    hit = ListEntry(item=ItemCard(item_id="a"), rank=1, hit=True)
    users = [user("1", recommended=[hit]), user("2", is_cold=True), user("3")]
    text = " ".join(Page(render(report(examples=users))).text.split())
    assert "All 3 In the first 12: 1 Not in the first 12: 2 Cold 1 Warm 2" in text


def test_picture_is_embedded_once_however_often_it_is_shown() -> None:
    card = ItemCard(item_id="a", thumbnail=thumbnail(picture(40, 30)))
    same_picture = ItemCard(item_id="b", thumbnail=card.thumbnail)
    users = [user(str(n), profile=[card, same_picture]) for n in range(5)]
    rows = [ClusterRow(size=1, share=1, items=[card])]
    clusters = VisualClusters(count=1, rows=rows)
    html = render(report(examples=users, clusters=clusters))
    assert html.count("data:image/webp;base64,") == 1


def test_changes_since_the_evaluation_before_are_shown() -> None:
    before = EvaluationRecord(
        model_id="curatornet-0",
        digest="d",
        data_until=1,
        made_at="2026-11-21T03:00:00+00:00",
        users=40,
        items=310,
        means={"auc": 0.8, "rr": 0.9},
        rival="visrank-max",
        rival_means={"auc": 0.7},
    )
    html = render(report(before=before))
    assert part(html, "This evaluation and the one before") == [
        ["", "before curatornet-0", "now curatornet-1", "change"],
        ["AUC", "0.800", "0.850", "+0.050"],
        ["RR", "0.900", "0.820", "−0.080"],
        ["AUC of the best baseline", "0.700", "0.750", "+0.050"],
        ["Test users", "40", "50", "+10"],
        ["Items", "310", "300", "−10"],
    ]
    assert "+5.0 since 2026-11-21" in Page(html).text


def test_facts_of_the_workspace_have_their_sections() -> None:
    gate = Gate("concentration", 0.99, "at most 0.98", "failed", "gates.max_item", "the note")
    trials = [
        SweepTrial(number=n, values={"train.epochs": str(n)}, auc=auc, status="finished")
        for n, auc in enumerate([0.8, None, 0.85])
    ]
    facts = WorkspaceFacts(
        data={"Backbone": "lite"},
        curves=[TrainingCurve(model="m", val_auc=[0.6, 0.7], loss=[2.0, 1.0], best_epoch=2)],
        sweeps=[SweepSummary(name="s", trials=trials)],
        held_back=HeldBackRun(run_id="2026-11-22", held_back_at="then", gates=[gate]),
        rejected=RejectedPictures(
            by_reason={"truncated": 3},
            examples=[RejectedPicture(item_id="x", reason="truncated", detail="It ends early.")],
        ),
        seconds={"train": {"read": 1.0, "train": 9.0}, "evaluate": {"rank": 5.0}},
    )
    html = render(report(facts=facts))
    text = " ".join(Page(html).text.split())
    for shown in (
        "Trained for 2 epochs; epoch 2 was the best, with a validation AUC of 0.7000.",
        "3 trials; the best one, trial 2, has a validation AUC of 0.8500, and the default "
        "configuration 0.8000.",
        "Run 2026-11-22 was held back at then",
        "3 pictures were rejected: 3 truncated. The first 1 of them are below.",
    ):
        assert shown in text
    rows = [[cell.strip() for cell in row] for row in Page(html).rows]
    for row in (
        ["concentration", "failed", "0.99", "at most 0.98", "the note --gates.max_item"],
        ["x", "truncated", "It ends early."],
        ["train", "10.0", "", "read 1.0, train 9.0"],
        ["evaluate", "5.0", "", "rank 5.0"],
    ):
        assert row in rows
    assert 'style="width:50.0%"' in html


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_and_changes_no_tag(hostile: str) -> None:
    def filled(text: str) -> str:
        card = ItemCard(item_id=text, title=text)
        pictured = ItemCard(item_id=text, thumbnail=b"webp")
        entry = ListEntry(item=card, rank=1, score=1.0, because=card, hit=True, badges=(text,))
        example = user(text, profile=[card], recommended=[entry], held_out=[entry])
        metrics = {**METRICS, text: {text: figure(0.5), "auc": figure(0.5)}}
        gate = Gate(text, text, text, "passed", text, text)
        trial = SweepTrial(number=0, values={text: text}, auc=0.5, status=text)
        return render(
            Report(
                model="curatornet",
                model_id=text,
                verdict=Verdict(outcome="better", sentence=text, details=[text], advice=[text]),
                metrics=metrics,
                made=text,
                users=1,
                items=1,
                examples=[example],
                lists=metrics,
                by_profile_size={text: {model: {text: figure(0.5)} for model in metrics}},
                paired={text: {text: figure(0.5)}},
                clusters=VisualClusters(
                    count=1, rows=[ClusterRow(size=1, share=1.0, items=[card, pictured])]
                ),
                facts=WorkspaceFacts(
                    data={text: text},
                    curves=[TrainingCurve(model=text, val_auc=[1, 2], loss=[1], best_epoch=1)],
                    sweeps=[SweepSummary(name=text, trials=[trial])],
                    held_back=HeldBackRun(run_id=text, held_back_at=text, gates=[gate]),
                    rejected=RejectedPictures(
                        by_reason={text: 1},
                        examples=[RejectedPicture(item_id=text, reason=text, detail=text)],
                    ),
                    seconds={text: {text: 1.0}},
                ),
            )
        )

    html = filled(hostile)
    page, plain = Page(html), Page(filled("plain"))
    assert html.encode() is not None
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [set(attrs) for _, attrs in page.tags] == [set(attrs) for _, attrs in plain.tags]
    shown = hostile.replace("\n", "␊").replace("\0", "␀").replace("\ud800", "?")
    assert page.text.count(shown) >= 30


def test_page_loads_nothing_from_outside_and_runs_one_script() -> None:
    card = ItemCard(item_id="a", thumbnail=thumbnail(picture(40, 30)))
    html = render(report(examples=[user(profile=[card])]))
    assert not re.search(r"https?:|//[a-z]|@import", re.sub(r"base64,[^)]*", "", html))
    urls = re.findall(r"url\(([^)]*)\)", html)
    assert urls
    assert all(url.startswith("data:image/webp;base64,") for url in urls)
    page = Page(html)
    assert not {"img", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 1
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "script-src 'sha256-" in policy
