"""Recommendation: the lists, the run's files, the pointer."""

import hashlib
import json
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import without_ray
from tests.integration.workspace import copy, published_rows, run_recommend, run_train
from visrec.cli.job import ModelChoice
from visrec.cli.launch import visrec_cause
from visrec.errors import InputError
from visrec.features.table import load_features
from visrec.interactions.activity import DAY
from visrec.interactions.prepare import prepare_table
from visrec.interactions.prepared import PREPARED
from visrec.models import MODELS
from visrec.models.artifact import load_artifact
from visrec.publication.claims import claim_run
from visrec.recommend.score import ScoreResources
from visrec.retrieval.rules import RulesConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store

K, SHARDS = 10, 8


def profiles(workspace: Path) -> dict[str, list[str]]:
    """Each user's items; users without items are included."""
    found: dict[str, list[str]] = {
        user: [] for user in pq.read_table(workspace / "users.parquet")["user_id"].to_pylist()
    }
    for row in pq.read_table(workspace / "interactions.parquet").to_pylist():
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return found


def unavailable(workspace: Path) -> set[str]:
    items = pq.read_table(workspace / "items.parquet").to_pylist()
    return {row["item_id"] for row in items if not row["available"]}


def read_run(workspace: Path, run_id: str) -> tuple[Path, dict[str, Any]]:
    folder = workspace / "recommendations" / f"run={run_id}"
    manifest: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return folder, manifest


def test_every_user_has_one_list_of_k_available_items_not_taken_before(recommended: Path) -> None:
    rows, taken = published_rows(recommended / "recommendations"), profiles(recommended)
    assert [row["user_id"] for row in rows] == sorted(taken)
    gone = unavailable(recommended)
    for row in rows:
        items = [entry["item_id"] for entry in row["items"]]
        assert len(set(items)) == len(items) == K
        assert not set(items) & set(taken[row["user_id"]])
        assert not set(items) & gone
        scores = [entry["score"] for entry in row["items"]]
        assert scores == sorted(scores, reverse=True)


def test_lists_are_the_top_k_of_the_models_dot_products(recommended: Path) -> None:
    """Compared with a loop over users in float64, which shares only the two towers."""
    artifact = load_artifact(Store.at(str(recommended / "models" / "one")))
    model: Any = artifact.model.double()
    item_ids, feature_ND = load_features(Store.at(str(recommended / "features")))
    row_of = {item_id: row for row, item_id in enumerate(item_ids.to_pylist())}
    with torch.inference_mode():
        scale = model.feature_scale
        vector_Nd = model.item_tower(scale(torch.from_numpy(feature_ND.astype(np.float64)))).numpy()
    taken, gone = profiles(recommended), unavailable(recommended)
    for row in published_rows(recommended / "recommendations"):
        if row["cold"]:
            continue
        mine = vector_Nd[[row_of[item] for item in taken[row["user_id"]]]]
        pooled = np.concatenate([mine.max(axis=0), mine.mean(axis=0)])
        with torch.inference_mode():
            user_d = model.user_tower(torch.from_numpy(pooled)[None])[0].numpy()
        score_N = vector_Nd @ user_d
        closed = [row_of[item] for item in {*gone, *taken[row["user_id"]]}]
        score_N[closed] = -np.inf
        best = np.sort(score_N)[::-1][:K]
        found = np.array([entry["score"] for entry in row["items"]])
        np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)
        listed = np.array([score_N[row_of[entry["item_id"]]] for entry in row["items"]])
        np.testing.assert_allclose(listed, best, rtol=1e-4, atol=1e-4)


def test_users_without_a_profile_get_the_most_popular_items(recommended: Path) -> None:
    taken, gone = profiles(recommended), unavailable(recommended)
    buyers: dict[str, set[str]] = defaultdict(set)
    for user, items in taken.items():
        for item in items:
            buyers[item].add(user)
    every = sorted(p.stem for p in (recommended / "images").iterdir())
    log = pd.read_parquet(recommended / "interactions.parquet")
    midnight = (log["timestamp"].max() // DAY + 1) * DAY
    week = log[log["timestamp"] >= midnight - 7 * DAY]["item_id"].value_counts()
    totals: dict[int, set[int]] = defaultdict(set)  # of the items with as many takers last week
    for item in every:
        totals[week.get(item, 0)].add(len(buyers[item]))

    def score_of(item: str) -> float:
        last_week = week.get(item, 0)
        same = sorted(totals[last_week])
        return last_week + same.index(len(buyers[item])) / len(same)

    score = {item: np.float32(score_of(item)) for item in every}
    popular = sorted(set(every) - gone, key=lambda item: (-score[item], item))[:K]
    fallback = [
        {"item_id": item, "score": pytest.approx(float(score[item])), "because_item_id": None}
        for item in popular
    ]
    cold = {
        row["user_id"] for row in published_rows(recommended / "recommendations") if row["cold"]
    }
    assert cold == {user for user, items in taken.items() if not items}
    assert cold
    for row in published_rows(recommended / "recommendations"):
        if row["cold"]:
            assert row["items"] == fallback


def test_reason_of_each_entry_is_the_nearest_item_of_the_profile(recommended: Path) -> None:
    artifact = load_artifact(Store.at(str(recommended / "models" / "one")))
    item_ids, feature_ND = load_features(Store.at(str(recommended / "features")))
    row_of = {item_id: row for row, item_id in enumerate(item_ids.to_pylist())}
    model: Any = artifact.model
    with torch.inference_mode():
        vector_Nd = model.encode_items(torch.from_numpy(feature_ND).float()).double().numpy()
    unit_Nd = vector_Nd / np.linalg.norm(vector_Nd, axis=1, keepdims=True)
    taken = profiles(recommended)
    for row in published_rows(recommended / "recommendations"):
        for entry in [] if row["cold"] else row["items"]:
            mine = taken[row["user_id"]]
            assert entry["because_item_id"] in mine
            nearness = unit_Nd[[row_of[i] for i in mine]] @ unit_Nd[row_of[entry["item_id"]]]
            because = nearness[mine.index(entry["because_item_id"])]
            assert because == pytest.approx(nearness.max(), abs=1e-5)


def test_items_that_nobody_took_are_recommended(recommended: Path) -> None:
    sold = {item for items in profiles(recommended).values() for item in items}
    shown = {
        entry["item_id"]
        for row in published_rows(recommended / "recommendations")
        if not row["cold"]
        for entry in row["items"]
    }
    assert shown - sold


def test_manifest_pointer_and_file_metadata_have_the_declared_fields(recommended: Path) -> None:
    folder, manifest = read_run(recommended, "first")
    assert len(manifest["files"]) == SHARDS
    assert {p.name for p in folder.glob("part-*")} == manifest["files"].keys()
    digest = manifest["inputs_digest"][:12]
    assert set(manifest["files"]) == {f"part-{n:05}-of-00008-{digest}.parquet" for n in range(8)}
    prints = {f"_fingerprints/{p.name}" for p in (folder / "_fingerprints").iterdir()}
    assert prints == manifest["fingerprints"].keys()
    for name, facts in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["bytes"] == len(data)
        file = pq.read_table(folder / name)
        assert facts["rows"] == file.num_rows
        assert file.schema.metadata[b"visrec.model_id"] == b"one"
        assert file.schema.metadata[b"visrec.run_id"] == b"first"
    assert manifest["rows"] == manifest["queries"] == 160
    assert {gate["outcome"] for gate in manifest["gates"]} == {"passed", "skipped"}
    assert {"inputs_digest", "inputs", "seconds", "model_id"} <= manifest.keys()
    assert (manifest["model_name"], manifest["choice"]) == ("curatornet", None)
    pointer = json.loads((recommended / "recommendations" / "_latest.json").read_text())
    assert pointer["run_id"] == "first"
    assert pointer["manifest"] == "run=first/_manifest.json"
    whole = (folder / "_manifest.json").read_bytes()
    assert pointer["manifest_sha256"] == hashlib.sha256(whole).hexdigest()


def test_complete_run_is_not_scored_again(recommended: Path) -> None:
    folder, _ = read_run(recommended, "first")
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    summary = run_recommend(recommended, run_id="first", shards=SHARDS)
    assert summary.rows["shards scored now"] == 0
    assert "score" not in summary.phases
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_complete_run_is_refused_with_other_inputs(recommended: Path) -> None:
    with pytest.raises(InputError, match=r"first.*other inputs.*--run_id"):
        run_recommend(recommended, run_id="first", shards=SHARDS, k=5)


def test_rerun_scores_only_missing_and_damaged_shards(recommended: Path, tmp_path: Path) -> None:
    tables = ("interactions.parquet", "items.parquet", "users.parquet")
    copy(recommended, tmp_path, "features", "models", "recommendations", *tables)
    folder, manifest = read_run(tmp_path, "first")
    (folder / "_manifest.json").unlink()
    for shard in (1, 4, 7):
        (folder / sorted(manifest["files"])[shard]).unlink()
    for name in (sorted(manifest["files"])[0], sorted(manifest["fingerprints"])[0]):
        flip_a_bit(folder / name)
    summary = run_recommend(tmp_path, run_id="first", shards=SHARDS)
    assert summary.rows["shards scored now"] == 4
    made_again = read_run(tmp_path, "first")[1]
    assert made_again["files"] == manifest["files"]
    assert made_again["fingerprints"] == manifest["fingerprints"]


def test_long_layout_with_other_shards_has_the_same_lists(
    recommended: Path, tmp_path: Path
) -> None:
    run_recommend(
        recommended, recommendations=str(tmp_path), run_id="long", layout="long", shards=3
    )
    nested = [
        {"user_id": row["user_id"], "rank": rank, **entry}
        for row in published_rows(recommended / "recommendations")
        for rank, entry in enumerate(row["items"], start=1)
    ]
    assert published_rows(tmp_path) == nested


def run_files(recommendations: Path, run_id: str) -> dict[str, bytes]:
    """The files of a run that its manifest names, and the manifest without its times and digest."""
    folder = recommendations / f"run={run_id}"
    manifest = json.loads((folder / "_manifest.json").read_text())
    names = [*manifest["files"], *manifest["fingerprints"]]
    for name in ("seconds", "completed_at", "digest"):  # the last one is of all the others, too
        del manifest[name]
    files = {name: (folder / name).read_bytes() for name in names}
    return {"_manifest.json": json.dumps(manifest).encode(), **files}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("partitions", [3, 17])
def test_files_of_a_run_equal_those_of_a_job_without_ray(
    recommended: Path, tmp_path: Path, partitions: int
) -> None:
    """Two nights, of which the second carries lists over; with a block list, and a cold user."""
    tables = ("interactions.parquet", "items.parquet", "users.parquet")
    copy(recommended, tmp_path, "features", "models", *tables)
    log = pq.read_table(tmp_path / "interactions.parquet").select(
        ["user_id", "item_id", "timestamp"]
    )
    user, item = log["user_id"][0].as_py(), log["item_id"][-1].as_py()
    pq.write_table(pa.table({"user_id": [user, "nobody"], "item_id": [item, item]}),
                   tmp_path / "blocked.parquet")  # fmt: skip
    pq.write_table(log.slice(1), tmp_path / "interactions.parquet")
    interactions = InteractionsConfig().table(str(tmp_path / "interactions.parquet"))
    prepare_table(interactions, INTERACTIONS, Store.at(str(tmp_path)) / PREPARED, partitions)
    rules = RulesConfig(blocked=str(tmp_path / "blocked.parquet"))
    carried = []
    for night in ("first", "second"):
        for place in ("ray", "here"):
            with nullcontext() if place == "ray" else without_ray():
                lists = str(tmp_path / place)
                workers = ScoreResources(workers=2 if place == "ray" else None)
                keys = {"run_id": night, "shards": SHARDS, "rules": rules, "resources": workers}
                done = run_recommend(tmp_path, recommendations=lists, **keys)
                carried.append(done.rows["lists carried over"])
        files = run_files(tmp_path / "ray", night)
        assert len(files) == 2 * SHARDS + 2
        assert files == run_files(tmp_path / "here", night)
        pq.write_table(log, tmp_path / "interactions.parquet")
        prepare_table(interactions, INTERACTIONS, Store.at(str(tmp_path)) / PREPARED, partitions)
    assert carried[0] == carried[1] == 0 < carried[2] == carried[3]
    manifests = [json.loads(p.read_text()) for p in (tmp_path / PREPARED).glob("*/_manifest.json")]
    assert [len(each["parts_P"]) for each in manifests] == [partitions] * 3


def test_item_rated_too_low_is_neither_in_the_profile_nor_recommended(
    featured: Path, tmp_path: Path
) -> None:
    """Every second row is rated 2. Even lists as long as the catalogue do not have its item."""
    copy(featured, tmp_path, "features", "users.parquet")
    log = pq.read_table(featured / "interactions.parquet")
    rating = [5.0 if row % 2 else 2.0 for row in range(len(log))]
    pq.write_table(log.append_column("rating", [rating]), tmp_path / "interactions.parquet")
    liked = InteractionsConfig(min_rating=4.0)
    visrank = ModelChoice("visrank", MODELS["visrank"].Config())
    run_train(tmp_path, model=visrank, interactions=liked)
    with pytest.raises(InputError, match=r"min_rating none, and 4 for the model visrank"):
        run_recommend(tmp_path)
    users = pq.read_table(featured / "users.parquet")
    # The other users are only in the interactions.
    pq.write_table(users.slice(0, 1), tmp_path / "users.parquet")
    summary = run_recommend(tmp_path, interactions=liked, k=300)
    assert summary.rows["interactions read"] == len(log)
    assert summary.rows["rows left out"]["rated below min_rating"] == rating.count(2.0)
    taken, profile = profiles(tmp_path), defaultdict(set)
    for row, stars in zip(log.to_pylist(), rating, strict=True):
        profile[row["user_id"]] |= {row["item_id"]} if stars > 4 else set()
    rows = published_rows(tmp_path / "recommendations")
    # A user whose rows are all rated too low has the fallback list.
    assert [row["user_id"] for row in rows] == sorted(taken)
    for row in rows:
        user, entries = row["user_id"], row["items"]
        assert {entry["item_id"] for entry in entries}.isdisjoint(taken[user])
        assert len(entries) == 300 - len(set(taken[user]))
        assert row["cold"] == (not profile[user])
        if not row["cold"]:
            assert {entry["because_item_id"] for entry in entries} <= profile[user]


def test_features_of_another_backbone_than_the_models_are_refused(
    recommended: Path, tmp_path: Path
) -> None:
    copy(recommended, tmp_path, "features", "interactions.parquet")
    manifest = json.loads((tmp_path / "features" / "_manifest.json").read_text())
    manifest["identity"]["weights_digest"] = "0" * 64
    (tmp_path / "features" / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"weights 00000000.*--model, or --features") as refusal:
        run_recommend(tmp_path, model=str(recommended / "models" / "one"))
    assert isinstance(visrec_cause(refusal.value), InputError)
    assert not list((tmp_path / "recommendations").rglob("part-*"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_last_publication_is_reported_and_changes_no_list(
    recommended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit flips in a shard, then in fingerprints, then in the manifest."""
    tables = ("interactions.parquet", "items.parquet", "users.parquet")
    copy(recommended, tmp_path, "features", "models", "recommendations", *tables)
    truth, last = published_rows(tmp_path / "recommendations"), "first"
    for name in ("part-", "_fingerprints/items", "_manifest.json"):
        folder, manifest = read_run(tmp_path, last)
        files = {*manifest["files"], *manifest["fingerprints"], "_manifest.json"}
        flip_a_bit(folder / next(file for file in sorted(files) if file.startswith(name)))
        last = f"after-{len(name)}"
        capsys.readouterr()
        assert run_recommend(tmp_path, run_id=last, shards=SHARDS).rows["published"] == "now"
        assert "last publication" in capsys.readouterr().out
        assert published_rows(tmp_path / "recommendations") == truth


def test_inputs_that_change_during_a_run_are_refused(
    recommended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is swapped after its digest was computed, so the manifest would be wrong."""
    tables = ("interactions.parquet", "items.parquet", "users.parquet")
    copy(recommended, tmp_path, "features", "models", *tables)
    log = pq.read_table(tmp_path / "interactions.parquet")

    def claim_and_swap(run: Store, inputs: str) -> None:
        claim_run(run, inputs)
        pq.write_table(log.slice(1), tmp_path / "interactions.parquet")

    monkeypatch.setattr("visrec.pipelines.recommend.claim_run", claim_and_swap)
    with pytest.raises(InputError, match="changed while they were read: interactions"):
        run_recommend(tmp_path, run_id="swapped", shards=SHARDS)
    assert not (tmp_path / "recommendations" / "_latest.json").exists()
