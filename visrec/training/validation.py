"""The exact validation AUC: a user's held-out items are ranked among the whole catalogue.

Shapes: E held-out users, B of them.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from visrec.errors import InputError, VisrecError
from visrec.interactions.split import HeldOut
from visrec.models.base import Model
from visrec.retrieval.metrics import per_user
from visrec.retrieval.moments import MomentRanker, Moments
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext, mean_over_workers

LIST_LENGTH = 20  # of the lists that nDCG and recall look at


def validation_auc(
    model: Model, data: TrainingData, held: HeldOut, context: WorkerContext
) -> float:
    """The mean AUC over the users of all workers: see `validation_means`."""
    return validation_means(model, data, held, context, ("auc",))[0]


def validation_means(
    model: Model,
    data: TrainingData,
    held: HeldOut,
    context: WorkerContext,
    metrics: Sequence[str],
) -> list[float]:
    """The mean of each metric over the users of all workers.

    Args:
        model: scored as it is, without dropout.
        data: the catalogue to rank.
        held: all validation users, of which this worker scores its share.
        context: which worker this is.
        metrics: names in `visrec.retrieval.metrics.per_user`, of lists of `LIST_LENGTH` items.

    Returns:
        The means. NaN without validation users, or if a score is not finite in float32.
    """
    share = np.arange(context.rank, len(held), context.workers)
    total = torch.zeros(len(metrics) + 1, dtype=torch.float64, device=context.device)
    if len(share):
        try:
            found = held_out_metrics(model, data, held, share)
            sums = [float(found[name].sum()) for name in metrics]
        except InputError:
            raise  # the machine or the data is at fault: a lower learning rate would not help
        except VisrecError:
            # The mean over all workers then is NaN, so that all of them stop.
            sums = [math.nan] * len(metrics)
        total += torch.tensor([*sums, len(share)], dtype=total.dtype, device=total.device)
    total = mean_over_workers(total, context)
    return [float(mean) for mean in total[:-1] / total[-1]]


def held_out_aucs(model: Model, data: TrainingData, held: HeldOut) -> npt.NDArray[np.float64]:
    """(E,) each user's AUC, ordered by moment, not as in `held`."""
    return held_out_metrics(model, data, held, np.arange(len(held)))["auc"]


def held_out_metrics(
    model: Model, data: TrainingData, held: HeldOut, rows: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric's (B,) values for some of the users.

    Args:
        model: scored as it is.
        data: the catalogue to rank.
        held: all users, who decide together what each of them is ranked among (`Moments`).
        rows: (B,) which of them, ascending, in the order of `held_out_aucs`.
    """
    model.eval()
    order = data.item_order
    moments = Moments(order.of_held_out(held), order.activity, data.provenance.split.by == "night")
    arrays = order.of_arrays(model.item_arrays(data.catalogue))
    model_ranker = MomentRanker(model.scorer, arrays, moments.held_out.user_E, moments)
    return per_user(model_ranker.ranks(rows), (LIST_LENGTH,))


def sample_users(held: HeldOut, limit: int, seed: int) -> HeldOut:
    """At most `limit` of the users, sampled without replacement and kept in their order."""
    if len(held) <= limit:
        return held
    rows = np.random.default_rng(seed).choice(len(held), limit, replace=False)
    return held.take(np.sort(rows))
