"""A few users for the report: what they took, what was held out, what the model recommends."""

from dataclasses import replace

import numpy as np

from visrec.evaluation.cards import make_cards
from visrec.evaluation.data import EvaluationData, scorer_of
from visrec.evaluation.report import ItemCard, UserExample
from visrec.retrieval.topk import nearest_of_profile, top_k

_SHOWN = 10  # items a row of pictures holds on a wide screen
_PROFILE = 8


def make_examples(
    data: EvaluationData, users: int, images: str, items_uri: str | None
) -> list[UserExample]:
    """Examples for some held-out users, drawn with a fixed seed, by the table's first model.

    Args:
        data: as evaluation prepared it.
        users: how many.
        images: where pictures are looked for; those that are not there are left out.
        items_uri: an items table with titles, or None.
    """
    if not users:
        return []
    chosen = np.random.default_rng(0).permutation(len(data.held))[:users]
    held, trained = data.held.take(chosen), data.evaluated_models[0]
    scorer = scorer_of(trained, data)
    user_B = data.user_rows[trained.label][chosen]
    best = top_k(scorer, held.profiles, user_B, held.profiles, None, _SHOWN)
    because_BK = np.full(best.row_BK.shape, -1)
    if scorer.space_Nd is not None:
        because_BK = nearest_of_profile(scorer.space_Nd, held.profiles, best.row_BK)
    profiles = [held.profiles[b][-_PROFILE:] for b in range(len(chosen))]
    targets = [held.targets[b] for b in range(len(chosen))]
    rows = np.unique(np.concatenate([*profiles, *targets, *best.row_BK, *because_BK]))
    cards = make_cards(rows[rows >= 0], data.item_ids, images, items_uri)
    examples = []
    for b, user in enumerate(chosen):
        entries = zip(best.row_BK[b], best.score_BK[b], because_BK[b], strict=True)
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
