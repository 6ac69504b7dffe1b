"""A few test users for the report: their profiles, their held-out items, their recommendations."""

from dataclasses import replace

import numpy as np

from visrec.evaluation.cards import make_cards
from visrec.evaluation.data import EvaluationData, build_scorer
from visrec.evaluation.report import ItemCard, UserExample
from visrec.retrieval.similar import nearest_profile_items
from visrec.retrieval.topk import top_k

_LIST_LENGTH = 10  # pictures in a row on a wide screen
_PROFILE_LENGTH = 8  # the latest items of a profile


def make_examples(
    data: EvaluationData, users: int, images: str, items_uri: str | None
) -> list[UserExample]:
    """Recommendations of the table's first model to some test users, drawn with a fixed seed.

    Args:
        data: as evaluation prepared it.
        users: how many users.
        images: where the pictures are; an item may have none.
        items_uri: an items table with titles, or None.
    """
    if not users:
        return []
    chosen = np.random.default_rng(0).permutation(len(data.held_out))[:users]
    held_out, model = data.held_out.take(chosen), data.evaluated_models[0]
    scorer = build_scorer(model, data)
    user_B = data.user_rows[model.label][chosen]
    best = top_k(scorer, held_out.profiles, user_B, held_out.profiles, None, _LIST_LENGTH)
    reason_BK = np.full(best.row_BK.shape, -1)
    if scorer.space_Nd is not None:
        reason_BK = nearest_profile_items(scorer.space_Nd, held_out.profiles, best.row_BK)
    profiles = [held_out.profiles[b][-_PROFILE_LENGTH:] for b in range(len(chosen))]
    targets = [held_out.targets[b] for b in range(len(chosen))]
    rows = np.unique(np.concatenate([*profiles, *targets, *best.row_BK, *reason_BK]))
    cards = make_cards(rows[rows >= 0], data.item_ids, images, items_uri)
    examples = []
    for b, user in enumerate(chosen):
        entries = zip(best.row_BK[b], best.score_BK[b], reason_BK[b], strict=True)
        recommended = [
            replace(
                cards[row],
                score=float(score),
                hit=bool(row in targets[b]),
                because=_name(cards[because]) if because >= 0 else None,
            )
            for row, score, because in entries
            if row >= 0
        ]
        examples.append(
            UserExample(
                user_id=data.user_ids[int(user)].as_py(),
                profile=[cards[row] for row in profiles[b]],
                held_out=[cards[row] for row in targets[b]],
                recommended=recommended,
            )
        )
    return examples


def _name(card: ItemCard) -> str:
    return card.title or card.item_id
