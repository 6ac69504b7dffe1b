"""Fingerprints change with everything that they are computed from, and with nothing else."""

import numpy as np
import pyarrow as pa

from visrec.jagged import Jagged
from visrec.recommend.fingerprints import item_fingerprints, query_fingerprints

IDS, NUMBERS = pa.array(["a", "b"]), np.arange(4.0).reshape(2, 2)
FINGERPRINTS = item_fingerprints([IDS], [NUMBERS])


def test_item_fingerprints_differ_between_items_and_are_reproducible() -> None:
    assert len(set(FINGERPRINTS.tolist())) == 2
    assert (item_fingerprints([IDS], [NUMBERS]) == FINGERPRINTS).all()


def test_item_fingerprint_changes_with_the_items_own_id_and_numbers_alone() -> None:
    other_id = item_fingerprints([pa.array(["a", "c"])], [NUMBERS])
    other_number = item_fingerprints([IDS], [NUMBERS + np.array([[0], [1]])])
    assert (other_id == FINGERPRINTS).tolist() == [True, False]
    assert (other_number == FINGERPRINTS).tolist() == [True, False]


def test_item_fingerprint_changes_with_another_column() -> None:
    assert (item_fingerprints([IDS, IDS], [NUMBERS]) != FINGERPRINTS).all()


def test_null_and_empty_strings_differ_and_strings_do_not_run_together() -> None:
    texts = [pa.array([None, "ab"]), pa.array(["", "c"])]
    others = [pa.array(["", "a"]), pa.array([None, "bc"], pa.string())]
    assert (item_fingerprints(texts, []) != item_fingerprints(others, [])).all()


def _query(*lists: list[int], flag: bool = False) -> int:
    jagged = [Jagged(np.array(each, np.int64), np.array([0, len(each)])) for each in lists]
    return int(query_fingerprints(FINGERPRINTS, np.full((1, 1), flag), *jagged)[0])


def test_query_fingerprint_changes_with_the_order_and_the_list_of_its_items() -> None:
    queries = (_query([0, 1], []), _query([1, 0], []), _query([0], [1]), _query([], [0, 1]))
    assert len({*queries, _query([], [])}) == 5


def test_query_fingerprint_changes_with_its_flags() -> None:
    assert _query([0]) != _query([0], flag=True)
