"""What an extraction takes of a workspace."""

import pytest

from visrec.features.sentences import TextConfig
from visrec.pipelines.extract_features import ExtractJob, takes_pictures
from visrec.storage.store import Store


@pytest.mark.parametrize("name", ["a.jpg", "shirts/a.jpg", "part-0.parquet"])
def test_pictures_of_the_default_folder_are_taken_beside_texts(store: Store, name: str) -> None:
    job = ExtractJob(workspace=store.root, text=TextConfig(model="m"))
    store.write("items.csv", b"item_id,title\na,A\n")
    store.write("images_old/a.jpg", b"")
    assert not takes_pictures(job)
    store.write(f"images/{name}", b"")
    assert takes_pictures(job)
