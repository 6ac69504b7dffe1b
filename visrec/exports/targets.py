"""Where lists are exported to, by its URL."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from visrec.errors import InputError, StorageError
from visrec.exports.generations import ExportReport, export_to_store
from visrec.exports.list_files import FileFormat, ListFile
from visrec.exports.run_lists import BeforeShard, RunLists
from visrec.exports.serving_store import ServingStore
from visrec.storage.store import Store, file_at

_EXPECTED = (
    "postgresql://[user[:password]@]host[:port]/database, "
    "redis://[user:password@]host[:port]/number (rediss:// with TLS), "
    "dynamodb://table[?region=name], or the path of a file, local or s3://, that ends in .jsonl, "
    ".jsonl.gz, .csv or .csv.gz"
)
_KEYS = " (--to, or --export_to of a night)"
# Everything that could be part of a password is before the only @.
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+]*)://((?P<user>[^/?#@]*)@)?(?P<rest>[^@]*)", re.I)
_FILE = re.compile(r".+\.(?P<format>jsonl|csv)(?P<gz>\.gz)?", re.DOTALL | re.I)
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_FORMATS: dict[str, FileFormat] = {"jsonl": "jsonl", "csv": "csv"}

Opener = Callable[[str, str], AbstractContextManager[ServingStore]]


class Target(Protocol):
    """A place that lists are exported to."""

    @property
    def shown(self) -> str:
        """The target without user, password and parameters that name no place; two targets of one
        text are one."""

    def export(
        self,
        run: RunLists,
        recommendations: Store,
        *,
        only_changed: bool,
        before_shard: BeforeShard,
    ) -> ExportReport:
        """Exports a run.

        Args:
            run: the run.
            recommendations: where the runs are.
            only_changed: write only lists that differ from those of the target.
            before_shard: called before each shard; raises if this process must not go on.

        Raises:
            ConflictError: another process exports to the target.
            InputError: a file of the run is damaged.
            StorageError: the target refused or failed a request.
        """


@dataclass(frozen=True)
class FileTarget:
    """A file, which is always written whole.

    Attributes:
        file: what is written.
    """

    file: ListFile

    @property
    def shown(self) -> str:
        return self.file.folder.uri(self.file.name)

    def export(
        self,
        run: RunLists,
        recommendations: Store,
        *,
        only_changed: bool,
        before_shard: BeforeShard,
    ) -> ExportReport:
        del recommendations, only_changed
        return ExportReport(run_id=run.key.run_id, written=self.file.write(run, before_shard))


@dataclass(frozen=True)
class StoreTarget:
    """A store.

    Attributes:
        shown: the store in messages.
        open: connects to it; gets the name of the lists and their column of ids.
        errors: what its library raises.
        password: the password of the URL, which no message may contain; empty if there is none.
    """

    shown: str
    open: Opener
    errors: tuple[type[Exception], ...]
    password: str = ""

    def export(
        self,
        run: RunLists,
        recommendations: Store,
        *,
        only_changed: bool,
        before_shard: BeforeShard,
    ) -> ExportReport:
        try:
            with self.open(run.name, run.id_column) as store:
                return export_to_store(
                    store,
                    self.shown,
                    run,
                    recommendations,
                    only_changed=only_changed,
                    before_shard=before_shard,
                )
        except self.errors as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".") + "."
            if self.password:
                reason = reason.replace(self.password, "***")
            raise StorageError(
                f"Could not export to {self.shown}: {reason} Readers see a whole run: this one or "
                "the one before. Start the export again, and it goes on.",
                path=self.shown,
                code=type(error).__name__,
                reason=reason,
            ) from None  # the library's own text may contain the password


def parse_target(url: str) -> Target:
    """The target of a URL.

    Raises:
        InputError: it is not one, or the library of the store is not installed.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme in ("", "file", "s3", "s3a", "s3n"):
        return _file(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise _invalid_url()
    shown = f"{scheme}://{re.split('[?#]', match['rest'])[0]}"
    try:
        urlsplit(url)
    except ValueError:  # of brackets that hold no IPv6 address; its text may have the password
        raise _invalid_url() from None
    if scheme == "dynamodb":
        return _dynamodb(url, shown)
    if scheme not in _SERVERS:
        raise InputError(f"Found the target {shown}{_KEYS}; expected {_EXPECTED}.", key="to")
    return _SERVERS[scheme](url, shown)


def _invalid_url() -> InputError:
    return InputError(
        f"The URL of the target{_KEYS} is not valid. It is not shown here because it may contain a "
        f"password. Expected {_EXPECTED}. In a user name or password, write @ as %40, / as %2F, ? "
        "as %3F and # as %23. Or leave the password out and set PGPASSWORD (PostgreSQL) or "
        "REDISCLI_AUTH (Redis).",
        key="to",
    )


def _file(path: str) -> FileTarget:
    match = _FILE.fullmatch(path)
    if path.partition(":")[0].lower() in (*_SERVERS, "dynamodb"):
        raise _invalid_url()  # a slash is missing
    if match is None and re.search("[@?]", path):
        raise _invalid_url()
    if match is None:
        raise InputError(f"Found the target {path!r}{_KEYS}; expected {_EXPECTED}.", key="to")
    folder, name = file_at(path)
    return FileTarget(ListFile(folder, name, _FORMATS[match["format"].lower()], bool(match["gz"])))


def _postgresql(url: str, shown: str) -> StoreTarget:
    try:
        from visrec.exports.postgres_store import ERRORS, PostgresStore, is_valid_url
    except ModuleNotFoundError as error:
        raise _missing(shown, error) from error
    if not is_valid_url(url):
        raise _invalid_url()
    return StoreTarget(shown, partial(PostgresStore.open, url), ERRORS, _password(url))


def _redis(url: str, shown: str) -> StoreTarget:
    try:
        from visrec.exports.redis_store import ERRORS, RedisStore, is_valid_url
    except ModuleNotFoundError as error:
        raise _missing(shown, error) from error
    if not is_valid_url(url):
        raise _invalid_url()
    return StoreTarget(shown, partial(RedisStore.open, url), ERRORS, _password(url))


def _dynamodb(url: str, shown: str) -> StoreTarget:
    from visrec.exports.dynamodb_store import ERRORS, DynamoStore

    parts = urlsplit(url)
    parameters = parse_qs(parts.query, keep_blank_values=True)
    table = url.partition("://")[2].partition("?")[0].rstrip("/")
    if not _TABLE.fullmatch(table) or parameters.keys() - {"region"}:
        raise InputError(
            f"Found the target {shown} with the parameters {', '.join(parameters) or 'none'}"
            f"{_KEYS}; expected dynamodb://table, optionally with ?region=name. Credentials come "
            "from environment, profile or role, and another endpoint from "
            "AWS_ENDPOINT_URL_DYNAMODB.",
            key="to",
        )
    region = parameters.get("region", [None])[0]
    if region:
        shown += f"?region={region}"
    return StoreTarget(shown, partial(DynamoStore.open, table, region), ERRORS)


_SERVERS: dict[str, Callable[[str, str], StoreTarget]] = {
    "postgresql": _postgresql,
    "postgres": _postgresql,
    "redis": _redis,
    "rediss": _redis,
}


def _password(url: str) -> str:
    """The password of a URL, as it would be in a message; empty if there is none."""
    parts = urlsplit(url)
    in_query = parse_qs(parts.query).get("password", [""])[0]
    return unquote(parts.password or in_query)


def _missing(shown: str, error: ModuleNotFoundError) -> InputError:
    return InputError(
        f"Found the target {shown}{_KEYS}, for which the package {error.name} is not installed "
        "here; expected it: pip install 'visrec[export]'.",
        key="to",
    )
