"""Random is a hash of seed, user and item, whatever the tile or the batch."""

import numpy as np
import torch

from tests.training import jagged_lists
from visrec.jagged import Jagged
from visrec.models.base import Catalogue, Sizes
from visrec.models.inputs import JaggedTensor
from visrec.models.random import Random, RandomConfig
from visrec.models.scorers import Scorer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets

ITEMS = 500


def _scorer(seed: int = 0) -> Scorer:
    model = Random(RandomConfig(seed=seed), Sizes(items=ITEMS, users=0, feature_dim=1))
    catalogue = Catalogue(np.zeros((ITEMS, 1), np.float16), np.arange(ITEMS))
    return model.scorer(model.item_arrays(catalogue))


def _scores(scorer: Scorer, profiles: Jagged, start: int = 0, stop: int = ITEMS) -> torch.Tensor:
    rows = torch.full((len(profiles),), -1)
    return scorer.tile(scorer.prepare(JaggedTensor.from_jagged(profiles), rows), start, stop)


def _profiles(users: int, seed: int = 0) -> Jagged:
    random = np.random.default_rng(seed)
    return jagged_lists(
        [sorted(random.choice(ITEMS, 3, replace=False).tolist()) for _ in range(users)]
    )


def test_auc_is_one_half() -> None:
    profiles = _profiles(400)
    random = np.random.default_rng(1)
    others = [np.setdiff1d(np.arange(ITEMS), profiles[b]) for b in range(400)]
    targets = jagged_lists([random.choice(rows, 5, replace=False).tolist() for rows in others])
    ranks = rank_targets(_scorer(), profiles, np.full(400, -1), targets)
    # 2,000 held-out items, each uniform in [0, 1]: a standard error of 0.289 / sqrt(2000) = 0.0065.
    assert abs(per_user(ranks)["auc"].mean() - 0.5) < 4 * 0.0065


def test_scores_are_uniform() -> None:
    score = _scores(_scorer(), _profiles(100)).numpy()
    assert score.min() >= 0
    assert score.max() < 1
    counts = np.histogram(score, bins=10, range=(0, 1))[0] / score.size
    assert np.abs(counts - 0.1).max() < 0.01


def test_scores_do_not_depend_on_tile_and_batch() -> None:
    scorer, profiles = _scorer(), _profiles(9)
    whole = _scores(scorer, profiles)
    assert torch.equal(_scores(scorer, profiles, 123, 300), whole[:, 123:300])
    for b in range(9):
        assert torch.equal(_scores(scorer, profiles.slice(b, b + 1)), whole[b : b + 1])


def test_scores_do_not_depend_on_the_order_of_the_profile() -> None:
    one, other = _scores(_scorer(), jagged_lists([[1, 2, 3], [3, 1, 2]]))
    assert torch.equal(one, other)


def test_scores_of_users_and_seeds_are_uncorrelated() -> None:
    profiles = _profiles(2)
    one, other = _scores(_scorer(), profiles).numpy()
    again = _scores(_scorer(seed=1), profiles).numpy()[0]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
    assert abs(np.corrcoef(one, again)[0, 1]) < 0.2
