"""What would serve tonight, for planted shops; nights of such shops are in test_young_shop.py."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from visrec.ids import TEXT
from visrec.interactions.log import InteractionLog
from visrec.interactions.read import build_log
from visrec.interactions.split import SplitConfig
from visrec.pipelines.night_choice import DEFAULT_ROW
from visrec.pipelines.night_prediction import predict_served

ITEMS = [f"i{n}" for n in range(9)]
NIGHT = date(2026, 11, 22)  # three days after a training day
OPENED = int(datetime(2026, 11, 17, 9, tzinfo=UTC).timestamp())


def orders(users: int, *days: int) -> InteractionLog:
    """One order of each user on each of these days after the shop opened."""
    rows = [
        {
            "user_id": f"u{n}",
            "item_id": ITEMS[(7 * n + day) % 9],
            "timestamp": OPENED + day * 86_400,
        }
        for day in days
        for n in range(users)
    ]
    return build_log([pa.Table.from_pylist(rows)], pa.array(ITEMS, TEXT), None)


@pytest.mark.parametrize(
    ("log", "split", "expected"),
    [
        (orders(60, 0), {}, f"{DEFAULT_ROW}: hybrid could not be trained, because none"),
        (orders(60, 30, 31), {},
         f"{DEFAULT_ROW}: hybrid could not be trained, because all interactions are"),
        (orders(40, 0, 1, 2, 3), {},
         f"{DEFAULT_ROW}, until it is known whether hybrid is better: 40 users could test "
         "it, fewer than gates.min_lists (50)"),
        (orders(60, 0, 1, 2, 3), {},
         "hybrid if its auc on the held-out items of 60 users reaches that of VisRank and of"),
        (orders(60, 0, 1, 2, 3, 5), {}, "hybrid if its auc on the held-out items of 60 users"),
        (orders(60, 0, 1, 2, 3), {"test": False},
         "hybrid, compared with no other model: --split.test false"),
    ],
    ids=["nothing to train on", "all of the future",
         "too few to judge", "judged", "known by then", "no test"],
)  # fmt: skip
def test_prediction_follows_the_rule_of_the_night(
    log: InteractionLog, split: dict[str, bool], expected: str
) -> None:
    found = predict_served(log, len(ITEMS), SplitConfig(**split), NIGHT)
    assert found.sentence.startswith(expected)
    assert found.is_trained == ("could not be trained" not in expected)
    assert found.may_serve == expected.startswith("hybrid")


def test_log_before_a_moment_has_the_earlier_rows_of_the_same_users() -> None:
    log = orders(3, 0, 1, 2)
    known = log.before(OPENED + 86_401)
    assert known.items.lengths.tolist() == [2, 2, 2]
    assert known.user_ids == log.user_ids
    assert (known.time_R <= OPENED + 86_400).all()
    assert known.item_R.tolist() == [i for row in range(3) for i in log.items[row][:2]]
