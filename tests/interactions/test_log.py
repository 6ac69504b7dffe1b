"""Baskets, lists and shards of a log."""

import numpy as np
import pyarrow as pa

from tests.interactions import CATALOGUE, batch
from visrec.interactions.log import assign_shards
from visrec.interactions.read import build_log


def test_basket_is_what_a_user_took_at_one_timestamp() -> None:
    log = build_log(
        [
            batch(("u", "rug", 7), ("u", "chair", 7), ("u", "vase", 8)),
            batch(("v", "lamp", 8), ("v", "rug", 9), ("w", "rug", 9)),
        ],
        CATALOGUE,
        pa.array(["a", "uu", "z"]),  # users without rows before, between and after the others
    )
    assert log.basket_numbers().tolist() == [0, 0, 1, 0, 1, 0]


def test_items_where_has_a_list_for_every_user() -> None:
    log = build_log([batch(("u", "rug", 1), ("u", "vase", 2), ("v", "lamp", 1))], CATALOGUE)
    late = log.items_where(log.time_R == 2)
    assert [late[u].tolist() for u in range(2)] == [[3], []]


def test_shards_never_change() -> None:
    # tests/test_hashes.py derives these hashes from their definition.
    users = pa.array(["user-1", "ein längerer Name", "user-1"])
    hashes = [10131164718978439035, 13545729418844332944, 10131164718978439035]
    for shards in (1, 7, 1 << 32):
        assert assign_shards(users, shards).tolist() == [one % shards for one in hashes]
    assert assign_shards(users[:0], 3).tolist() == []


def test_shards_share_the_users_evenly() -> None:
    shards = assign_shards(pa.array([f"user-{n}" for n in range(8_000)]), 8)
    assert np.bincount(shards, minlength=8).min() > 900
    assert set(shards.tolist()) == set(range(8))
