"""The report in a browser: search, filter, order, themes, keyboard, phones, accessibility."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Chromium, axe_or_skip, chromium_or_skip
from tests.evaluation.test_cards import picture
from tests.evaluation.test_report import METRICS, difference, figure, report, user
from tests.publication.runs import draft_manifest
from visrec.evaluation.cards import thumbnail
from visrec.evaluation.explanation_page import Explanation, render_explanation
from visrec.evaluation.record import EvaluationRecord
from visrec.evaluation.report import render
from visrec.evaluation.report_content import (
    ClusterRow,
    HeldBackRun,
    ItemCard,
    ListEntry,
    RejectedPicture,
    RejectedPictures,
    SweepSummary,
    SweepTrial,
    TrainingCurve,
    UserExample,
    VisualClusters,
    WorkspaceFacts,
)
from visrec.evaluation.verdict import judge
from visrec.publication.gate import Gate
from visrec.recommend.explanation import KeptOut, KeptOutItem, ListedItem, TakenItem

USERS = 12
HOSTILE = "<script>window.hacked = 1</script>"
VISIBLE = "[...document.querySelectorAll('.user')].filter(u => u.checkVisibility())"
SHOWN = f"{VISIBLE}.map(u => u.dataset.user)"
STATUS = "document.getElementById('status').textContent"
FOCUS = "(document.activeElement.id || document.activeElement.textContent.trim())"


def example(n: int) -> UserExample:
    """User n: AUC and profile grow with n; every third one is cold, every second one found."""
    cards = [
        ItemCard(
            item_id=f"item-{n}-{k}",
            title=f"Work {k} of {n}" if k else HOSTILE,
            thumbnail=thumbnail(picture(40 + n, 20 + k)),
        )
        for k in range(4)
    ]
    hit = n % 2 == 0
    return user(
        f"user-{n:02}",
        profile=cards[:2],
        profile_size=n + 2,
        recommended=[
            ListEntry(item=cards[2], rank=1, score=2.5, because=cards[0], hit=hit),
            ListEntry(item=ItemCard(item_id=f"bare-{n}"), rank=2, score=1.5),
        ],
        held_out=[ListEntry(item=cards[2 if hit else 3], rank=1 if hit else 99, hit=hit)],
        auc=0.5 + n / 100,
        rival_auc=0.9 - n / 50,
        is_cold=n % 3 == 0,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section."""
    users = [example(n) for n in range(USERS)]
    paired = {
        f"curatornet - {other}": {"auc": difference(0.1, 0.05, 0.2)}
        for other in METRICS
        if other != "curatornet"
    }
    gate = Gate("concentration", 0.99, "at most 0.98", "failed", "gates.max_item", "a note")
    trials = [
        SweepTrial(number=n, values={"train.epochs": "9"}, auc=0.7 + n / 50, status="finished")
        for n in range(3)
    ]
    before = EvaluationRecord(
        model_id="curatornet-0",
        digest="d",
        data_until=1,
        made_at="2026-11-21",
        users=40,
        items=310,
        means={"auc": 0.8},
    )
    facts = WorkspaceFacts(
        data={"Backbone": "lite"},
        curves=[TrainingCurve(model="m", val_auc=[0.6, 0.7], loss=[2, 1], best_epoch=2)],
        sweeps=[SweepSummary(name="s", trials=trials)],
        held_back=HeldBackRun(run_id="2026-11-22", held_back_at="then", gates=[gate]),
        rejected=RejectedPictures(
            by_reason={"truncated": 1},
            examples=[RejectedPicture(item_id="x", reason="truncated", detail="It ends early.")],
        ),
        seconds={"train": {"read": 1.0}},
    )
    content = replace(
        report(),
        verdict=judge("curatornet", METRICS, paired),
        examples=users,
        paired=paired,
        before=before,
        lists={model: {"coverage@100": {"mean": 0.5}} for model in METRICS},
        by_profile_size={"1": {model: {"auc": figure(0.5)} for model in METRICS}},
        costs={"curatornet": {"parameters": 5, "train_s": 1.0, "score_ms": 0.1}},
        clusters=VisualClusters(
            count=1, rows=[ClusterRow(size=2, share=1, items=users[0].profile)]
        ),
        facts=facts,
    )
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render(content))
    return file


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium(chromium_or_skip()) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Chromium, page: Path) -> Iterator[Chromium]:
    """The report, just opened; at the end of a test nothing has gone wrong in it."""
    chromium.open(page)
    yield chromium
    assert not chromium.messages
    assert chromium.run("window.hacked") is None


def search(browser: Chromium, text: str) -> list[str]:
    """The users that a search shows."""
    browser.run(
        f"query.value = {text!r}; query.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    return list(browser.run(SHOWN))


def choose(browser: Chromium, kind: str) -> list[str]:
    browser.run(f"document.querySelector('[name=kind][value={kind}]').click()")
    return list(browser.run(SHOWN))


def order(browser: Chromium, by: str) -> list[str]:
    browser.run(
        f"order.value = {by!r}; order.dispatchEvent(new Event('change', {{bubbles: true}}))"
    )
    return list(browser.run(SHOWN))


def names(numbers: Any) -> list[str]:
    return [f"user-{n:02}" for n in numbers]


def violations(browser: Chromium) -> list[str]:
    """What axe-core finds on the page that is open."""
    browser.run(f"{axe_or_skip()}; 0")
    found: list[str] = browser.run(
        "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map("
        "v => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map(n => n.html).join(' ')}`))"
    )
    return found


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide", "phone"])
def test_axe_finds_nothing(chromium: Chromium, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width, dark=dark)
    chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(chromium) == []


def test_axe_finds_nothing_on_an_explanation(chromium: Chromium, tmp_path: Path) -> None:
    cards = {card.item_id: card for card in example(1).items}
    explanation = Explanation(
        user_id=HOSTILE,
        manifest=draft_manifest(),
        published_at="now",
        listed=[
            ListedItem(item_id=n, rank=r, score=9 - r, because_item_id=n, rank_before=5)
            for r, n in enumerate(cards, 1)
        ],
        before="yesterday",
        taken=[TakenItem(item_id=name, timestamp=0) for name in cards],
        kept_out=KeptOut(items=[KeptOutItem(item_id="item-1-0", score=3.0, why="taken already")]),
        cards=cards,
    )
    file = tmp_path / "page.html"
    file.write_text(render_explanation(explanation, 30))
    chromium.open(file, 390, dark=True)
    assert violations(chromium) == []
    assert chromium.run("document.documentElement.scrollWidth") == 390
    assert chromium.run("document.querySelector('h1').textContent") == f"The list of {HOSTILE}"
    assert not chromium.messages


def test_page_fits_a_phone(chromium: Chromium, page: Path) -> None:
    chromium.open(page, 390, 844)
    assert chromium.run("document.documentElement.scrollWidth") == 390
    too_wide = (
        "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && "
        "!e.closest('.wide, .visually-hidden') && e.getBoundingClientRect().right > 391)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert chromium.run(too_wide) == []


def test_names_and_links_are_whole_on_a_phone(chromium: Chromium, tmp_path: Path) -> None:
    """The tiles with a long name of a baseline, and the links of every section."""
    metrics = {"curatornet": METRICS["curatornet"], "visrank-mean_top_k": METRICS["visrank-mean"]}
    lists = {model: {"coverage@100": {"mean": 0.5}} for model in metrics}
    facts = WorkspaceFacts(
        curves=[TrainingCurve(model="m", val_auc=[0.6], loss=[2], best_epoch=1)],
        data={"Backbone": "lite"},
        seconds={"train": {"read": 1.0}},
    )
    verdict = judge("curatornet", metrics, {})
    content = report(
        metrics=metrics, lists=lists, facts=facts, verdict=verdict, examples=[example(1)]
    )
    file = tmp_path / "page.html"
    file.write_text(render(content))
    chromium.open(file, 390, 844)
    tiles = "[...document.querySelectorAll('.tile')].filter(t => t.checkVisibility())"
    assert chromium.run(f"{tiles}.length") == 4
    too_wide = f"{tiles}.filter(t => t.scrollWidth > t.clientWidth).map(t => t.textContent)"
    assert chromium.run(too_wide) == []
    cut_off = (
        "[...document.querySelectorAll('.bar nav a')].filter(a => a.getBoundingClientRect().right "
        "> a.parentNode.getBoundingClientRect().right).map(a => a.textContent)"
    )
    assert chromium.run(cut_off) == []


def test_pictures_are_whole_and_titles_full(browser: Chromium) -> None:
    styles = browser.run(
        f"{VISIBLE}.flatMap(u => [...u.querySelectorAll('.pic:not(.none)')])"
        ".map(p => getComputedStyle(p))"
        ".map(s => [s.backgroundSize, s.backgroundImage.slice(0, 20)])"
    )
    assert len(styles) >= 30
    assert {tuple(style) for style in styles} == {("contain", 'url("data:image/webp')}
    cut_off = (
        f"{VISIBLE}.flatMap(u => [...u.querySelectorAll('.name')]).filter(n => n.scrollWidth > "
        "n.clientWidth + 1 || getComputedStyle(n).textOverflow === 'ellipsis').length"
    )
    assert browser.run(cut_off) == 0
    assert browser.run("document.querySelector('.profile .name').textContent") == HOSTILE


def test_first_users_are_shown_and_more_on_demand(browser: Chromium) -> None:
    assert browser.run(SHOWN) == names(range(10))
    assert browser.run("more.textContent") == "Show 2 more of 2"
    browser.run("more.click()")
    assert browser.run(SHOWN) == names(range(USERS))
    assert browser.run(FOCUS) == "user-11"  # the id of its heading
    assert not browser.run("more.checkVisibility()")


def test_search_finds_users_and_items(browser: Chromium) -> None:
    assert search(browser, "USER-07") == names([7])
    assert browser.run(STATUS) == "1 of 12 users"
    assert search(browser, "work 3 of 5") == names([5])
    assert search(browser, "bare-11") == names([11])  # an item without a title
    marked = "[...document.querySelectorAll('.match')].map(c => c.dataset.id)"
    assert browser.run(marked) == ["bare-11"]
    assert search(browser, "nothing like it") == []
    assert browser.run(STATUS) == "0 of 12 users"
    assert search(browser, "") == names(range(10))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("found", range(0, USERS, 2)),
        ("missed", range(1, USERS, 2)),
        ("cold", range(0, USERS, 3)),
        ("warm", [n for n in range(USERS) if n % 3]),
    ],
)
def test_filter_shows_a_group_of_users(browser: Chromium, kind: str, expected: Any) -> None:
    assert choose(browser, kind) == names(expected)
    both = [n for n in expected if n == 6]
    assert search(browser, "user-06") == names(both)


@pytest.mark.parametrize(
    ("by", "first"),
    [("best", 11), ("worst", 0), ("gain", 11), ("loss", 0), ("long", 11), ("short", 0)],
)
def test_order_decides_who_comes_first(browser: Chromium, by: str, first: int) -> None:
    shown = order(browser, by)
    assert shown[0] == f"user-{first:02}"
    assert shown == sorted(shown, reverse=first == 11)
    assert order(browser, "drawn") == names(range(10))


def test_keyboard_reaches_everything(browser: Chromium) -> None:
    browser.press("Tab")
    assert browser.run(FOCUS) == "Skip to the users"
    assert browser.run("document.activeElement.getBoundingClientRect().top >= 0")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"
    browser.press("Enter")
    assert browser.run("location.hash") == "#users"
    reached = []
    for _ in range(8):
        browser.press("Tab")
        reached.append(browser.run(FOCUS))
    assert reached[:2] == ["query", ""]  # then the chosen radio button, which has no id
    assert "order" in reached
    assert "more" in reached


def test_slash_starts_a_search_and_escape_ends_it(browser: Chromium) -> None:
    browser.press("/")
    assert browser.run(FOCUS) == "query"
    browser.press(*"r-03")
    assert browser.run("query.value") == "r-03"
    assert browser.run(SHOWN) == names([3])
    browser.press("/")
    assert browser.run("query.value") == "r-03/"  # a character like any other in here
    browser.press("Escape")
    assert browser.run("query.value") == ""
    assert len(browser.run(SHOWN)) == 10


def test_theme_follows_the_system_until_it_is_chosen(chromium: Chromium, page: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    chromium.open(page)
    light = chromium.run(paper)
    chromium.open(page, dark=True)
    dark = chromium.run(paper)
    assert light != dark
    assert chromium.run("theme.getAttribute('aria-pressed')") == "true"
    chromium.run("theme.click()")
    assert chromium.run(paper) == light
    deadline = time.monotonic() + 20  # Chromium writes what it remembers when it has time
    while True:
        chromium.open(page, dark=True)
        if chromium.run(paper) == light:
            break
        assert time.monotonic() < deadline, "the theme was not remembered"
    chromium.run("localStorage.clear()")


def test_reason_is_ringed_under_the_pointer(browser: Chromium) -> None:
    browser.run(
        "document.querySelector('[data-because]').dispatchEvent("
        "new PointerEvent('pointerover', {bubbles: true}))"
    )
    ringed = browser.run("[...document.querySelectorAll('.source')].map(c => c.dataset.id)")
    assert ringed == ["item-0-0"]


def test_without_scripts_every_user_is_shown(chromium: Chromium, page: Path) -> None:
    chromium.allow_scripts(False)
    try:
        chromium.open(page)
        assert len(chromium.run(SHOWN)) == USERS
        assert not chromium.run("document.querySelector('.tools').checkVisibility()")
    finally:
        chromium.allow_scripts(True)
