"""Parts that nobody will complete are discarded where the store allows it."""

import boto3
import pytest
from botocore.stub import Stubber

from visrec.storage import s3
from visrec.storage.store import Store


def open_uploads(store: Store, *names: str) -> None:
    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    client = s3.boto_client(store.endpoint)
    for name in names:
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{name}")


def keys_of_uploads(store: Store) -> list[str]:
    bucket = store.root.removeprefix("s3://").partition("/")[0]
    found = s3.boto_client(store.endpoint).list_multipart_uploads(Bucket=bucket)
    return [upload["Key"].rpartition("/")[2] for upload in found.get("Uploads", [])]


@pytest.mark.s3
def test_uploads_of_one_key_or_of_all_are_discarded(s3_env: str) -> None:
    store = Store.at(f"{s3_env}/a")
    open_uploads(store, "x", "x2", "y")
    store.discard_unfinished("x")
    assert sorted(keys_of_uploads(store)) == ["x2", "y"]
    store.abort_uploads()
    assert keys_of_uploads(store) == []


def test_role_that_may_only_write_objects_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("s3", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    monkeypatch.setattr(s3, "boto_client", lambda _: client)
    with Stubber(client) as replies:
        replies.add_client_error("list_multipart_uploads", "AccessDenied", http_status_code=403)
        Store("s3://shop/lists").discard_unfinished("lists.jsonl")
        replies.assert_no_pending_responses()
