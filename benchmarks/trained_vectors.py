"""Vectors of a trained CuratorNet, to search among: a catalogue with planted taste.

Items have features with a spectrum like those of pictures (variances that fall as a power of their
rank), in clusters; users take items that suit their taste, and popular ones more often. CuratorNet
is trained on these interactions with the defaults of jobs/train.py for a few epochs. Kept in
runs/topk.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.recommend_scale import TAKEN, commit_features
from visrec.interactions.split import SplitConfig
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models import MODELS
from visrec.models.base import Catalogue
from visrec.models.scorers import DotScorer
from visrec.retrieval.topk import user_vectors
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store
from visrec.training.data import TrainingInputs, load_training_data
from visrec.training.distributed import WorkerContext
from visrec.training.fit import TrainingRecipe, build_model
from visrec.training.loop import TrainConfig, Trainer

KEPT = Path(__file__).parents[1] / "runs" / "topk"
USERS = 16_384
DIM = 256  # of the features
CLUSTERS = 300
EPOCHS = 6
DECAY = 0.7  # of the features' variance with its rank
Floats = npt.NDArray[np.float32]


def trained_vectors(items: int) -> tuple[Floats, Floats, Jagged]:
    """(N, 200) items, (`USERS`, 200) users and their profiles, trained once and kept."""
    path = KEPT / f"trained-{items}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        feature_ND, profiles = _planted(items)
        item_Nd, user_Bd = _train(feature_ND, profiles)
        np.savez(path, items=item_Nd, users=user_Bd, taken=profiles.values, ends=profiles.offsets)
    with np.load(path) as kept:
        return kept["items"], kept["users"], Jagged(kept["taken"], kept["ends"])


def _planted(items: int) -> tuple[Floats, Jagged]:
    """(N, DIM) features, and what each user took, from `TAKEN` to twice as many items."""
    random = np.random.default_rng(0)
    spectrum_D = np.arange(1, DIM + 1) ** (-DECAY / 2)
    centre_CD = random.normal(size=(CLUSTERS, DIM)) * spectrum_D
    feature_ND = centre_CD[random.integers(0, CLUSTERS, items)]
    feature_ND = (feature_ND + 0.7 * random.normal(size=(items, DIM)) * spectrum_D).astype("f4")
    popular_N = random.permutation(np.arange(1, items + 1) ** -0.5)
    popular_N /= popular_N.sum()
    taken = []
    for _ in range(USERS):
        # Of some items that a user sees, those that are most like two that the user started from.
        seen = random.choice(items, 2000, p=popular_N)
        taste_D = feature_ND[seen[0]] + feature_ND[seen[1]]
        best = np.argsort(-feature_ND[seen] @ taste_D)
        taken.append(np.unique(seen[best[: random.integers(TAKEN, 2 * TAKEN)]]))
    offsets = offsets_from_lengths(np.array([len(t) for t in taken]))
    return feature_ND, Jagged(np.concatenate(taken), offsets)


def _train(feature_ND: Floats, profiles: Jagged) -> tuple[Floats, Floats]:
    """The vectors of items and users of CuratorNet, trained on these profiles."""
    items = len(feature_ND)
    ids = pa.array([f"item-{n:07}" for n in range(items)])
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        commit_features(workspace, ids, feature_ND.astype(np.float16))
        users = pa.array([f"user-{u:06}" for u in profiles.row_ids])
        random = np.random.default_rng(1)
        pq.write_table(
            pa.table(
                {
                    "user_id": users,
                    "item_id": ids.take(pa.array(profiles.values)),
                    "timestamp": random.integers(0, 10**9, len(users)),
                }
            ),
            workspace / "interactions.parquet",
        )
        traits, sampling = MODELS["curatornet"].traits, SamplingConfig()
        data = load_training_data(
            TrainingInputs(
                features=Store.at(str(workspace / "features")),
                interactions=InteractionsConfig(),
                interactions_uri=str(workspace / "interactions.parquet"),
                items_table=None,
                split=SplitConfig(),
                traits=traits,
                sampling=sampling,
            )
        )
    config = replace(TrainConfig(), epochs=EPOCHS)
    recipe = TrainingRecipe("curatornet", MODELS["curatornet"].Config(), config, sampling)
    trainer = Trainer(build_model(recipe, data), data, config, sampling, WorkerContext())
    trainer.run(lambda t: print(f"epoch {t.progress.epoch}: {t.progress.history[-1]}", flush=True))
    model = trainer.model
    model.load_state_dict(trainer.best_weights)
    model.eval()
    with torch.inference_mode():
        arrays = model.item_arrays(Catalogue(feature_ND.astype(np.float16), np.arange(items), None))
        scorer = model.scorer(arrays)
        assert isinstance(scorer, DotScorer)
        user_Bd = user_vectors(scorer, profiles, np.arange(USERS))
    return arrays["vectors"], user_Bd.numpy()
