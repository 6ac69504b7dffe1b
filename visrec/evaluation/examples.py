"""Some test users for the report: their profiles, what they took next, their recommendations.

Shapes: E users, K list length.
"""

import hashlib
import hmac

import numpy as np
import numpy.typing as npt

from visrec.evaluation.baselines import EvaluatedModel
from visrec.evaluation.data import EvaluationData
from visrec.evaluation.ranking import ranker
from visrec.evaluation.report_content import LIST_LENGTH, ItemCard, ListEntry, UserExample
from visrec.models import MODELS
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import TargetRanks
from visrec.retrieval.similar import nearest_profile_items
from visrec.retrieval.topk import TopKResult

_PROFILE_LENGTH = 9  # items of a profile
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def find_examples(
    data: EvaluationData, count: int, rival: str | None, hash_key: str | None
) -> list[UserExample]:
    """Recommendations of the table's first model to some test users, drawn with a fixed seed.

    Args:
        data: as evaluation prepared it.
        count: how many users.
        rival: label of the best baseline; None without one.
        hash_key: replaces user ids by keyed hashes; None shows the ids.

    Returns:
        The users; their items have neither titles nor pictures.
    """
    if not count:
        return []
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.held_out))[:count])
    held_out = data.held_out.take(chosen)
    model = data.evaluated_models[0]
    user_E = data.user_rows[model.label][chosen]
    of_model = ranker(model, data, LIST_LENGTH)
    by_moment = [(group.lists(), group.ranks()) for group in of_model.groups(chosen)]
    best = TopKResult.concatenate([lists for lists, _ in by_moment])
    ranks = TargetRanks.concatenate([ranks for _, ranks in by_moment])
    reason_EK = np.full(best.row_BK.shape, -1)
    if (space_Nd := of_model.space_Nd) is not None:
        reason_EK = nearest_profile_items(space_Nd, held_out.profiles, best.row_BK)
    auc_E = per_user(ranks)["auc"]
    rival_auc_E = _rival_auc(data, rival, chosen)
    is_unknown_E = _is_unknown(model, user_E)
    users = []
    for e, user in enumerate(chosen):
        user_id = data.user_ids[int(user)].as_py()
        targets = held_out.targets[e]
        profile = held_out.profiles[e]
        users.append(
            UserExample(
                user_id=hash_user_id(user_id, hash_key) if hash_key else user_id,
                profile=[_card(data, row) for row in _shown_profile(profile, reason_EK[e])],
                profile_size=len(profile),
                held_out=_held_out(data, targets, ranks, e, best),
                recommended=_recommended(data, best, reason_EK, e, targets),
                auc=float(auc_E[e]),
                rival_auc=None if rival_auc_E is None else float(rival_auc_E[e]),
                is_cold=bool(is_unknown_E[e] or data.item_statistics.cold_N[targets].any()),
            )
        )
    return users


def _shown_profile(profile: Ints, reason_K: Ints) -> Ints:
    """The items of a profile that explain the list, then the latest of the others; latest first."""
    latest = profile[::-1]
    explains = np.isin(latest, reason_K)
    shown = np.argsort(~explains, kind="stable")[:_PROFILE_LENGTH]
    return np.asarray(latest[np.sort(shown)])


def _held_out(
    data: EvaluationData, targets: Ints, ranks: TargetRanks, e: int, best: TopKResult
) -> list[ListEntry]:
    """What a user took next, best rank first."""
    rank_T = ranks.above_P[ranks.offsets[e] : ranks.offsets[e + 1]] + 1
    return [
        ListEntry(
            item=_card(data, targets[t]),
            rank=int(rank_T[t]),
            hit=bool(targets[t] in best.row_BK[e]),
            badges=_badges(data, targets[t]),
        )
        for t in np.argsort(rank_T, kind="stable")
    ]


def _recommended(
    data: EvaluationData, best: TopKResult, reason_EK: Ints, e: int, targets: Ints
) -> list[ListEntry]:
    """A user's list, best first."""
    entries = zip(best.row_BK[e], reason_EK[e], strict=True)
    return [
        ListEntry(
            item=_card(data, row),
            rank=k,
            because=_card(data, reason) if reason >= 0 else None,
            hit=bool(row in targets),
            badges=_badges(data, row),
        )
        for k, (row, reason) in enumerate(entries, 1)
        if row >= 0
    ]


def _card(data: EvaluationData, row: np.int64) -> ItemCard:
    return ItemCard(item_id=data.item_ids[int(row)].as_py())


def _badges(data: EvaluationData, row: np.int64) -> tuple[str, ...]:
    return ("new item",) if data.item_statistics.cold_N[row] else ()


def _is_unknown(model: EvaluatedModel, user_E: Ints) -> npt.NDArray[np.bool_]:
    """(E,) which users a model cannot score: unseen in training, and it supports no new users."""
    if model.model is None or MODELS[model.model].traits.supports_new_users:
        return np.zeros(len(user_E), bool)
    return np.asarray(user_E < 0)


def _rival_auc(data: EvaluationData, rival: str | None, chosen: Ints) -> Floats | None:
    """(E,) AUC of the best baseline; None without one."""
    found = next((model for model in data.evaluated_models if model.label == rival), None)
    if found is None:
        return None
    return per_user(ranker(found, data).ranks(chosen))["auc"]


def hash_user_id(user_id: str, key: str) -> str:
    """A short keyed hash: somebody who has only the page cannot recover the id, not even by hashing
    candidate ids.

    Args:
        user_id: the user's id.
        key: the digest of the evaluated model, which the page does not show.
    """
    return hmac.new(key.encode(), user_id.encode(), hashlib.sha256).hexdigest()[:12]
