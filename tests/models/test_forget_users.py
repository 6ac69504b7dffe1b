"""A model that is kept loses users; all others are scored as before, to the bit."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from tests.stepping import Actor, MemoryStore
from tests.training import checkerboard, provenance
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.models.artifact import (
    Artifact,
    earlier_digests,
    forget_users,
    load_artifact,
    read_digest,
    save_artifact,
)
from visrec.models.base import Sizes
from visrec.storage.store import Store

GONE = pa.array(["u0001", "nobody"])
PER_USER = [name for name, model in MODELS.items() if not model.traits.supports_new_users]


def saved() -> MemoryStore:
    store, data = MemoryStore("s3://shop/model"), checkerboard(items=8, users=4, dim=3)
    torch.manual_seed(0)
    artifact = Artifact(
        name="bpr_mf",
        model=MODELS["bpr_mf"](MODELS["bpr_mf"].Config(), data.sizes),
        config=MODELS["bpr_mf"].Config(),
        sizes=data.sizes,
        item_ids=data.item_ids,
        user_ids=data.user_ids,
        provenance=provenance(),
        metrics={},
        model_id="m1",
        held_out=pa.table({"user_id": ["u0000", "u0001"], "item_id": ["i0002", "i0003"]}),
    )
    save_artifact(artifact, store)
    return store


def require_forgotten(store: Store, before: Artifact) -> None:
    after = load_artifact(store)
    assert after.user_ids is not None
    assert after.user_ids.to_pylist() == ["u0000", "", "u0002", "u0003"]
    assert after.held_out["user_id"].to_pylist() == ["u0000"]
    was, now = (each.model.state_dict() for each in (before, after))
    assert now["users.weight"][1].count_nonzero() == 0
    now["users.weight"][1] = was["users.weight"][1]
    assert all(torch.equal(now[name], was[name]) for name in was)
    assert earlier_digests(store) == [before.digest]
    assert read_digest(store) == after.digest != before.digest


def test_model_without_some_users_scores_the_others_as_before() -> None:
    store = saved()
    before = load_artifact(store)
    assert forget_users(store, GONE) == 2  # an id, and a held-out row
    require_forgotten(store, before)
    objects = dict(store.objects)
    assert forget_users(store, GONE) == 0
    assert store.objects == objects


def test_forgetting_in_a_model_that_is_killed_at_any_moment_can_be_started_again() -> None:
    start, point = saved(), 0
    before = load_artifact(start)
    while True:
        store = replace(start, objects=dict(start.objects))
        actor = Actor(store, lambda model: forget_users(model, GONE))
        actor.step(point)
        if actor.done:
            break
        actor.kill()
        forget_users(store, GONE)
        require_forgotten(store, before)
        point += 1
    assert point > 10


def test_damaged_model_is_refused_and_stays() -> None:
    store = saved()
    store.write("user_ids.parquet", store.read("item_ids.parquet"))
    objects = dict(store.objects)
    with pytest.raises(InputError, match="has changed since it was written"):
        forget_users(store, GONE)
    assert store.objects == objects


@pytest.mark.parametrize("name", PER_USER)
def test_vectors_of_users_are_where_forgetting_looks_for_them(name: str) -> None:
    sizes = Sizes(items=11, users=7, feature_dim=5, categories=3)
    weights = MODELS[name](MODELS[name].Config(), sizes).state_dict()
    assert [key for key, value in weights.items() if len(value.shape) and len(value) == 7] == [
        "users.weight"
    ]
