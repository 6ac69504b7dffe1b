"""URLs of --to: what is understood, what is refused, and that no password is shown."""

import sys
from types import SimpleNamespace

import pytest

from visrec.errors import InputError, StorageError
from visrec.exports.targets import parse_target
from visrec.storage.store import Store

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://shop:{SECRET}@db:5432/lists", "postgresql://db:5432/lists"),
        (f"postgres://db/lists?user=shop&password={SECRET}", "postgres://db/lists"),
        (f"redis://:{SECRET}@cache:6379/0", "redis://cache:6379/0"),
        (f"rediss://{SECRET}@cache", "rediss://cache"),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("postgresql://a:5432,b:5433/lists", "postgresql://a:5432,b:5433/lists"),
        ("postgresql:///lists?host=/run/postgresql", "postgresql:///lists"),
        ("redis://cache/0?socket_timeout=5", "redis://cache/0"),
        ("dynamodb://visrec", "dynamodb://visrec"),
        ("dynamodb://visrec?region=eu-west-1", "dynamodb://visrec?region=eu-west-1"),
        ("s3://shop/lists.jsonl.gz", "s3://shop/lists.jsonl.gz"),
        ("/data/LISTS.CSV", "/data/LISTS.CSV"),
    ],
)
def test_target_is_shown_without_its_secrets(url: str, shown: str) -> None:
    target = parse_target(url)
    assert target.shown == shown
    assert SECRET not in target.shown


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "mysql://db/lists",
            r"Found the target mysql://db/lists \(--to, or .*\); expected postgresql://",
        ),
        (f"amqp://u:{SECRET}@mq/x", "Found the target amqp://mq/x .*; expected"),
        (
            "lists.parquet",
            "Found the target 'lists.parquet' .*; expected .* a file, .* ends in .jsonl",
        ),
        ("s3://shop", "expected"),
        ("dynamodb://t", "Found the target dynamodb://t with the parameters none .*; expected"),
        ("dynamodb://visrec?regoin=x", "with the parameters regoin .*; expected"),
        (f"redis://:{SECRET}/x@cache:6379/0", "is not shown here because it may contain"),
        (f"postgresql://u:{SECRET}?a@db/x", "is not shown here"),
        (f"postgresql://db/x?password=a@{SECRET}", "is not shown here"),
        (f"postgresql://u@{SECRET}@db/x", "write @ as %40"),
        (f"postgresql:/u:{SECRET}@db/x", "not shown here .* Expected postgresql://"),
        (f"Redis:/:{SECRET}@cache/lists.csv", "is not shown here"),
        (f"postgressql//u:{SECRET}@db/x", "is not shown here"),
        (f"postgresql/db/x?password={SECRET}", "is not shown here"),
        (f"postgresql://u:{SECRET}@[::1/db", "is not valid"),
        (f"postgresql://u:{SECRET}@db:port/x", "is not valid"),
        (f"postgresql://u:{SECRET}@db/x?sslmood=require", "is not valid"),
        (f"postgresql://u:{SECRET}", "is not valid"),
        (f"redis://:{SECRET}@[::1/0", "is not valid"),
        (f"redis://:{SECRET}@cache:70000/0", "is not valid"),
        (f"redis://:{SECRET}@cache:port/0", "is not valid"),
        (f"redis://:{SECRET}@cache/shop", "is not valid"),
        (f"redis://:{SECRET}@cache/0?db=shop", "is not valid"),
        (f"redis://:{SECRET}@cache/0?sokcet_timeout=5", "is not valid"),
        ("dynamodb://[visrec", "is not valid"),
    ],
)
def test_other_url_is_refused_without_its_secrets(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_target(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "package"), [("redis://x", "redis"), ("postgresql://x", "psycopg")]
)
def test_missing_library_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"redis": "redis_store", "psycopg": "postgres_store"}
    monkeypatch.delitem(sys.modules, f"visrec.exports.{modules[package]}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'visrec\[export\]'") as caught:
        parse_target(url)
    assert f"the package {package} is not installed" in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://u:{}@127.0.0.1:1/x", "redis://:{}@127.0.0.1:1/0"])
def test_server_that_does_not_answer_is_named(url: str) -> None:
    target = parse_target(url.format(SECRET))
    with pytest.raises(StorageError, match=r"Could not export to \w+://127.0.0.1:1/") as caught:
        target.export(
            SimpleNamespace(name="recommendations", id_column="user_id"),  # type: ignore[arg-type]
            Store.at("."),
            only_changed=True,
            before_shard=lambda *_: None,
        )
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)
