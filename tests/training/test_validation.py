"""Validation by several workers against that by one."""

import dataclasses

import numpy as np

from tests.training import checkerboard, data_provenance, held_baskets, jagged_lists
from visrec.interactions.activity import DAY
from visrec.interactions.split import SplitConfig
from visrec.models import MODELS
from visrec.training.validation import held_out_metrics

ITEMS = 10


def test_what_is_ranked_does_not_depend_on_the_number_of_workers() -> None:
    days = np.arange(ITEMS)
    # Item n is first taken on day n, by another user. Half of the held-out items are new that day,
    # so the targets are mostly known; those of one of the last two users are not.
    held = held_baskets(
        np.arange(1, 5),
        jagged_lists([[0]] * 4),
        jagged_lists([[1], [2], [8], [9]]),
        DAY * np.array([5, 6, 8, 9]),
    )
    data = dataclasses.replace(
        checkerboard(items=ITEMS, users=5),
        train=jagged_lists([days.tolist(), *[[0]] * 4]),
        time_R=DAY * np.append(days, np.zeros(4, np.int64)),
        validation=held,
        provenance=data_provenance(split=SplitConfig(by="night")),
    )
    kind = MODELS["visrank"]
    model = kind(kind.Config(), data.sizes)
    model.fit(data.catalogue, data.train)
    alone = held_out_metrics(model, data, held, np.arange(4))
    for workers in (2, 4):
        for rank in range(workers):
            share = np.arange(rank, 4, workers)
            of_share = held_out_metrics(model, data, held, share)
            for name, value_E in alone.items():
                np.testing.assert_array_equal(of_share[name], value_E[share], err_msg=name)
