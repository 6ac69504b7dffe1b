"""A stream to one S3 object that appears when the stream is complete, and not before.

pyarrow's own stream completes its upload also when an error ends the writing, and leaves a
truncated object. Here a small object is one put, and a large one a multipart upload, of which S3
shows nothing until it is completed.
"""

import io
from contextlib import suppress
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

_PART_BYTES = 16 << 20  # 10,000 parts, the most that S3 takes, are 160 GB


class PartedUpload(io.RawIOBase):
    """Takes bytes in order; `complete` assembles the object, `abort` discards them.

    Args:
        client: boto3's.
        target: bucket and key, as parameters of boto3.
    """

    def __init__(self, client: Any, target: dict[str, str]) -> None:
        super().__init__()
        self._client, self._target = client, target
        self._buffer = bytearray()
        self._upload: dict[str, str] = {}  # bucket, key and id, once it has begun
        self._parts: list[dict[str, Any]] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        """Takes some bytes; Any, because pyarrow passes any buffer."""
        self._buffer += data
        self._size += len(data)
        while len(self._buffer) >= _PART_BYTES:
            self._send_part(self._buffer[:_PART_BYTES])
            del self._buffer[:_PART_BYTES]
        return len(data)

    def complete(self) -> None:
        """Makes the object."""
        if not self._upload:
            self._client.put_object(**self._target, Body=bytes(self._buffer))
            return
        if self._buffer:
            self._send_part(self._buffer)
        parts = {"Parts": self._parts}
        self._client.complete_multipart_upload(**self._upload, MultipartUpload=parts)

    def abort(self) -> None:
        """Discards what was sent."""
        if self._upload:
            self._client.abort_multipart_upload(**self._upload)

    def _send_part(self, data: bytearray) -> None:
        if not self._upload:
            reply = self._client.create_multipart_upload(**self._target)
            self._upload = {**self._target, "UploadId": reply["UploadId"]}
        number = len(self._parts) + 1
        reply = self._client.upload_part(**self._upload, PartNumber=number, Body=bytes(data))
        self._parts.append({"PartNumber": number, "ETag": reply["ETag"]})


def discard_uploads(client: Any, bucket: str, prefix: str, key: str | None = None) -> None:
    """Discards multipart uploads that nobody will complete, as far as the store allows it.

    Nobody sees such parts, so a store without this request, or a role that may only write objects,
    is no reason to fail.

    Args:
        client: boto3's.
        bucket: the bucket.
        prefix: what the keys start with.
        key: the only key whose uploads are discarded; None for all.
    """
    with suppress(ClientError, BotoCoreError):
        pages = client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                if key in (None, upload["Key"]):
                    client.abort_multipart_upload(
                        Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
