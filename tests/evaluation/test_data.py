"""Which models can be evaluated at all."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from tests.training import provenance
from visrec.errors import InputError
from visrec.evaluation.data import _restore_split
from visrec.interactions.read import read_log
from visrec.models.provenance import InteractionsProvenance
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.schemas import HELD_OUT


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
