"""The S3 backend of a store: objects below a prefix of one bucket."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError, ClientError

from visrec.storage.backend import FileInfo, is_hidden
from visrec.storage.s3_clients import MISSING_CODES, arrow_filesystem, boto_client, error_code
from visrec.storage.s3_upload import PartedUpload, discard_uploads

BUSY_PAUSES = (0.1, 0.3, 1.0, 3.0)  # seconds between attempts while another put of the key runs
_BUSY_CODES = {"409", "ConditionalRequestConflict"}
_CONDITION_FAILED_CODES = {"412", "PreconditionFailed"}
_EMPTY_OBJECT_CODES = {"416", "InvalidRange"}  # of a range request
_WRITE_ID = "visrec-write-id"  # key of an object's metadata


@dataclass(frozen=True)
class S3Backend:
    """Objects below a prefix.

    Attributes:
        bucket: name of the bucket.
        prefix: what the keys start with, without a slash at the end; empty for the whole bucket.
        endpoint: URL of the store, None for AWS.
    """

    bucket: str
    prefix: str
    endpoint: str | None

    def filesystem(self) -> pafs.FileSystem:
        return arrow_filesystem(self.endpoint)

    def read(self, name: str) -> tuple[bytes, str]:
        reply = self._client().get_object(**self._object(name))
        return reply["Body"].read(), reply["ETag"]

    def read_start(self, name: str, size: int) -> bytes:
        try:
            reply = self._client().get_object(**self._object(name), Range=f"bytes=0-{size - 1}")
        except ClientError as error:
            if error_code(error) in _EMPTY_OBJECT_CODES:
                return b""
            raise
        return bytes(reply["Body"].read())

    def exists(self, name: str) -> bool:
        try:
            self._client().head_object(**self._object(name))
        except ClientError as error:
            if error_code(error) in MISSING_CODES:
                return False
            raise
        return True

    def write(self, name: str, data: bytes) -> None:
        self._client().put_object(**self._object(name), Body=data)

    @contextmanager
    def staged(self, name: str) -> Iterator[pa.NativeFile]:
        upload = PartedUpload(self._client(), self._object(name))
        try:
            yield pa.PythonFile(upload, "w")
            upload.complete()
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # the first error says more
                upload.abort()
            raise

    # Conditional writes.

    def create(self, name: str, data: bytes) -> bool:
        return self._put_if(name, data, {"IfNoneMatch": "*"})

    def replace(self, name: str, data: bytes, version: str) -> bool:
        return self._put_if(name, data, {"IfMatch": version})

    def _put_if(self, name: str, data: bytes, condition: dict[str, str]) -> bool:
        """Puts an object if a condition holds; waits while another put of the key runs (409)."""
        for pause in BUSY_PAUSES:
            try:
                return self._put_once(name, data, condition)
            except ClientError as error:
                if error_code(error) not in _BUSY_CODES:
                    raise
            time.sleep(pause)
        return self._put_once(name, data, condition)

    def _put_once(self, name: str, data: bytes, condition: dict[str, str]) -> bool:
        """One conditional put, whose lost reply is neither a lost nor a duplicate write.

        The retry of a put that did succeed gets 412, so an id in the object's metadata tells which
        writer it is from.
        """
        write_id, target = uuid.uuid4().hex, self._object(name)
        client = self._client()
        try:
            client.put_object(**target, Body=data, Metadata={_WRITE_ID: write_id}, **condition)
            return True
        except (ClientError, BotoCoreError) as error:
            if self._stored_write_id(name) == write_id:
                return True
            missing = MISSING_CODES if "IfMatch" in condition else set()
            if error_code(error) in _CONDITION_FAILED_CODES | missing:
                return False
            raise

    def _stored_write_id(self, name: str) -> str | None:
        try:
            metadata = self._client().head_object(**self._object(name))["Metadata"]
        except ClientError as error:
            if error_code(error) not in MISSING_CODES:
                raise
            return None
        write_id: str | None = metadata.get(_WRITE_ID)
        return write_id

    # Listing and removal.

    def list(self, prefix: str, follow_links: bool) -> Iterator[FileInfo]:  # noqa: ARG002  # no links
        base = self._key("")
        pages = self._client().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=base + prefix):
            for entry in page.get("Contents", []):
                name = entry["Key"][len(base) :]
                if name and not name.endswith("/") and not is_hidden(name):
                    yield FileInfo(name, entry["Size"], entry["ETag"].strip('"'))

    def delete(self, name: str) -> None:
        self._client().delete_object(**self._object(name))

    def delete_empty_folder(self, name: str) -> None:
        """Does nothing: S3 has no folders."""

    def delete_all(self) -> int:
        for entry in list(self.list("", False)):
            self.delete(entry.name)
        return sum(1 for _ in self.list("", False))

    def abort_uploads(self) -> None:
        discard_uploads(self._client(), self.bucket, self._key(""))

    def discard_unfinished(self, name: str) -> None:
        key = self._key(name)
        discard_uploads(self._client(), self.bucket, key, key)

    def _client(self) -> Any:
        return boto_client(self.endpoint)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}
