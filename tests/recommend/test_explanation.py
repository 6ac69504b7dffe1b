"""A user's list is read from a published run."""

import pytest

from tests.exports.lists import Listed, publish
from visrec.errors import InputError
from visrec.publication.manifest import read_run_manifest
from visrec.publication.run_spec import run_store
from visrec.recommend.explanation import read_list
from visrec.storage.store import Store


def test_run_of_similar_items_has_no_list_of_a_user(store: Store) -> None:
    publish(store, "r1", {"u1": Listed((("a", 0.5, None),))}, kind="item_to_item")
    manifest = read_run_manifest(run_store(store, "r1"))
    assert manifest is not None
    for user in ("u1", "other"):
        with pytest.raises(InputError, match=r"the run r1 .* lists are of items; .*--recommend"):
            read_list(store, manifest, user)
