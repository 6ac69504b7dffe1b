"""Which models can be evaluated at all, and on what."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.features import write_features
from tests.training import provenance
from visrec.errors import InputError
from visrec.evaluation.data import EvaluationInputs, _restore_split, prepare_evaluation
from visrec.interactions.activity import DAY
from visrec.interactions.read import build_log, read_log
from visrec.interactions.split import SplitConfig
from visrec.models import MODELS
from visrec.models.artifact import Artifact, save_artifact
from visrec.models.provenance import InteractionsProvenance
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.schemas import HELD_OUT
from visrec.storage.store import Store
from visrec.training.data import TrainingInputs, load_training_data


@pytest.mark.parametrize(
    ("digest", "why"),
    [(None, "without interactions"), ("of some", "none of its users had two baskets")],
)
def test_model_that_held_nothing_out_is_refused_with_the_reason(
    digest: str | None, why: str
) -> None:
    item_ids = pa.array(["a", "b"], pa.large_string())
    made_from = provenance(interactions=InteractionsProvenance(digest=digest, last_timestamp=0))
    looks: Any = SimpleNamespace(
        held_out=HELD_OUT.empty_table(), provenance=made_from, model_id="looks"
    )
    log = read_log(InteractionsConfig(), None, item_ids)
    with pytest.raises(InputError, match=rf"looks.*{why}"):
        _restore_split(looks, log, item_ids, "interactions.parquet")


@pytest.mark.parametrize(("was_marked", "known"), [(True, [0]), (False, [0, 1])])
def test_evaluation_column_counts_only_if_it_marked_the_rows_of_the_training(
    was_marked: bool, known: list[int]
) -> None:
    item_ids = pa.array(["a", "b", "c"], pa.large_string())
    columns = {"user_id": [*"uvu"], "item_id": [*"abc"], "timestamp": [0, 0, 1]}
    log = build_log([pa.table({**columns, "evaluation": [False, True, True]})], item_ids)
    interactions = InteractionsProvenance(
        digest="i", last_timestamp=1, has_marked_test_rows=was_marked
    )
    artifact: Any = SimpleNamespace(
        held_out=pa.table({"user_id": ["u"], "item_id": ["c"]}),
        provenance=provenance(interactions=interactions),
        model_id="m",
    )
    restored = _restore_split(artifact, log, item_ids, "interactions.parquet")
    assert restored.known_items.values.tolist() == known


ITEMS = ["a", "b", "c", "d"]
ROWS = [("u", "a", DAY), ("v", "b", DAY), ("u", "b", 5 * DAY + 8), ("v", "a", 5 * DAY + 9)]


def ranked_items(folder: Path, later: list[tuple[str, str, int]]) -> list[int]:
    """How many items each test user is ranked among, if rows came after the training."""
    features, log = Store.at(str(folder / "features")), str(folder / "log.parquet")
    write_features(features, ITEMS, np.eye(4, dtype=np.float16), rows_per_part=4)

    def write_log(rows: list[tuple[str, str, int]]) -> None:
        columns = ("user_id", "item_id", "timestamp")
        pq.write_table(pa.table(list(map(list, zip(*rows, strict=True))), names=columns), log)

    write_log(ROWS)
    kind = MODELS["popularity"]
    data = load_training_data(
        TrainingInputs(
            features=features, interactions=InteractionsConfig(), interactions_uri=log,
            items_table=None, split=SplitConfig(), traits=kind.traits, sampling=None,
        )
    )  # fmt: skip
    artifact = Artifact(
        name="popularity", model=kind(kind.Config(), data.sizes), config=kind.Config(),
        sizes=data.sizes, item_ids=data.item_ids, user_ids=None, metrics={}, model_id="m",
        provenance=provenance(data.provenance), held_out=data.test_pairs,
    )  # fmt: skip
    model = Store.at(str(folder / "model"))
    save_artifact(artifact, model)
    write_log([*ROWS, *later])
    evaluation = prepare_evaluation(
        EvaluationInputs(
            models={"": model}, features=features, interactions=InteractionsConfig(),
            interactions_uri=log, items_table=None, truth=None,
        )
    )  # fmt: skip
    assert evaluation.user_ids.to_pylist() == ["u", "v"]
    groups = evaluation.moments.groups(np.arange(2), by_each_moment=True)
    return [known for _, known, rows in groups for _ in rows]


def test_rows_after_the_end_of_the_training_data_add_no_items_to_the_ranking(
    tmp_path: Path,
) -> None:
    later = [("w", "c", 5 * DAY + 20), ("w", "d", 5 * DAY + 21), ("w", "a", 7 * DAY)]
    assert ranked_items(tmp_path / "before", []) == [2, 2]
    assert ranked_items(tmp_path / "after", later) == [2, 2]
