"""Where the held-out items stand among all others: exact ranks, tile by tile.

Every item but those of the user's profile is ranked; held-out items stay in. A tile's scores are
computed twice, once to know the held-out items' own scores and once to count what stands above
them: two sweeps of bounded memory instead of one row of N scores a user.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.models.contract import Scorer
from visrec.ragged import Ragged
from visrec.scoring.topk import item_tiles, user_blocks


@dataclass(frozen=True)
class Standing:
    """Where P held-out items of B users stand, user after user.

    Args:
        offsets: (B + 1,) each user's part of the P.
        ranked_B: (B,) M, how many items were ranked for each user.
        above_P: (P,) ranked items, held-out ones too, with a higher score, or the same and a lower
            row: the 0-based rank.
        others_above_P: (P,) those not held out with a higher score.
        others_equal_P: (P,) those not held out with the same score.
    """

    offsets: npt.NDArray[np.int64]
    ranked_B: npt.NDArray[np.int64]
    above_P: npt.NDArray[np.int64]
    others_above_P: npt.NDArray[np.int64]
    others_equal_P: npt.NDArray[np.int64]


@torch.inference_mode()
def stand(
    scorer: Scorer, profiles: Ragged, user_B: npt.NDArray[np.int64], targets: Ragged
) -> Standing:
    """Ranks the held-out items of B users.

    Args:
        scorer: the scores.
        profiles: B lists of catalogue rows known before.
        user_B: (B,) trained user rows, -1 for users that training has not seen.
        targets: B lists of held-out rows, none of which is in that user's profile.
    """
    above, others_above, others_equal = [], [], []
    for block, state in user_blocks(scorer, profiles, user_B):
        size = block.stop - block.start
        profile = profiles.slice(block.start, block.stop)
        target = targets.slice(block.start, block.stop)
        own_P = _own_scores(scorer, state, target)
        counts = [torch.zeros_like(own_P, dtype=torch.int64) for _ in range(3)]
        for start, tile in item_tiles(scorer, state):
            score_BT = tile[:size]
            for higher, part in zip(
                counts, _count(score_BT, start, own_P, profile, target), strict=True
            ):
                higher += part
        above.append(counts[0].cpu().numpy())
        others_above.append(counts[1].cpu().numpy())
        others_equal.append(counts[2].cpu().numpy())
    return Standing(
        offsets=targets.offsets.astype(np.int64),
        ranked_B=scorer.num_items - profiles.lengths,
        above_P=np.concatenate(above),
        others_above_P=np.concatenate(others_above),
        others_equal_P=np.concatenate(others_equal),
    )


def _own_scores(scorer: Scorer, state: object, target: Ragged) -> Tensor:
    """(P,) the scores of the held-out items themselves."""
    owner_P, item_P = target.owners, np.asarray(target.values, np.int64)
    own_P = torch.empty(len(item_P), device=scorer.device)
    for start, tile in item_tiles(scorer, state):
        inside = np.flatnonzero((item_P >= start) & (item_P < start + tile.shape[1]))
        own_P[inside] = tile[owner_P[inside], item_P[inside] - start]
    return own_P


def _count(
    score_BT: Tensor, start: int, own_P: Tensor, profile: Ragged, target: Ragged
) -> tuple[Tensor, Tensor, Tensor]:
    """What one tile adds to above_P, others_above_P and others_equal_P."""
    ranked_BT = score_BT.clone()
    _mark(ranked_BT, profile, start)
    others_BT = ranked_BT.clone()
    _mark(others_BT, target, start)
    device = score_BT.device
    item_P = torch.from_numpy(np.asarray(target.values, np.int64)).to(device)
    owner_P = torch.from_numpy(target.owners).to(device)
    columns = torch.arange(start, start + score_BT.shape[1], device=device)
    above, others_above, others_equal = [], [], []
    for part in torch.split(torch.arange(len(own_P), device=device), _PAIR_ROWS):
        ranked_PT, others_PT = ranked_BT[owner_P[part]], others_BT[owner_P[part]]
        own = own_P[part, None]
        before_PT = columns[None, :] < item_P[part, None]
        above.append(((ranked_PT > own) | ((ranked_PT == own) & before_PT)).sum(dim=1))
        others_above.append((others_PT > own).sum(dim=1))
        others_equal.append((others_PT == own).sum(dim=1))
    return torch.cat(above), torch.cat(others_above), torch.cat(others_equal)


_PAIR_ROWS = 128  # held-out items compared with a tile at a time: 8 MB at most


def _mark(score_BT: Tensor, lists: Ragged, start: int) -> None:
    """Puts NaN, which is neither above nor equal to any score, at the lists' items in a tile."""
    item_V = np.asarray(lists.values, np.int64)
    inside = np.flatnonzero((item_V >= start) & (item_V < start + score_BT.shape[1]))
    score_BT[lists.owners[inside], item_V[inside] - start] = torch.nan
