"""Declared columns: which types are accepted, what they become, and why others are refused."""

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest

from visrec.errors import SchemaError
from visrec.storage import schemas

WHERE = "s3://bucket/log.parquet (--interactions.path)"
NOON = datetime(2021, 3, 1, 12, 0, 0, tzinfo=UTC)
NOON_SECONDS = 1_614_600_000


def log(**columns: pa.Array) -> pa.Table:
    """Two interactions, some of whose columns are replaced."""
    defaults = {
        "user_id": pa.array(["u1", "u2"]),
        "item_id": pa.array(["a", "b"]),
        "timestamp": pa.array([1, 2], pa.int64()),
    }
    return pa.table({**defaults, **columns})


def conformed(table: pa.Table) -> pa.Table:
    return schemas.conform(table, schemas.INTERACTIONS, WHERE)


def refusal(table: pa.Table, columns: tuple[schemas.Column, ...] = schemas.INTERACTIONS) -> str:
    with pytest.raises(SchemaError) as caught:
        schemas.conform(table, columns, WHERE)
    message = str(caught.value)
    assert "\n" not in message
    assert WHERE in message
    return message


# -------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 12]),
        pa.array([7, 12], pa.int8()),
        pa.array([7, 12], pa.uint64()),
        pa.array(["7", "12"], pa.large_string()),
        pa.array(["7", "12"], pa.string_view()),
        pa.array(["7", "12"]).dictionary_encode(),
        pa.array([7, 12]).dictionary_encode(),
        pa.array(["7", "12"], pa.large_string()).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type).replace(" ", ""),
)
def test_ids_become_strings(ids: pa.Array) -> None:
    column = conformed(log(item_id=ids))["item_id"]
    assert column.type == pa.large_string()
    assert column.to_pylist() == ["7", "12"]


def test_ids_that_look_like_numbers_are_kept() -> None:
    assert conformed(log(item_id=pa.array(["007", "1e3"])))["item_id"].to_pylist() == ["007", "1e3"]


@pytest.mark.parametrize(
    "ids", [pa.array([True, False]), pa.array([[1], [2]]), pa.array([b"ab", b"cd"], pa.binary(2))]
)
def test_ids_of_another_type_are_refused(ids: pa.Array) -> None:
    message = refusal(log(item_id=ids))
    assert f"the column item_id has the type {ids.type}; expected strings or integers" in message


@pytest.mark.parametrize("blank", [None, "", "  "])
@pytest.mark.parametrize("encode", [False, True])
def test_blank_item_ids_are_refused_with_an_example(blank: str | None, encode: bool) -> None:
    ids = pa.array(["a", blank])
    ids = ids.dictionary_encode() if encode else ids
    message = refusal(pa.table({"item_id": ids, "stock": [1, 2]}), schemas.ITEMS)
    assert "1 of 2 values of the column item_id are null or blank" in message
    assert "as in the row item_id None, stock 2.0" in message


def test_null_in_a_dictionary_is_a_null_id() -> None:
    ids = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None]))
    assert conformed(log(item_id=ids))["item_id"].to_pylist() == ["a", None]


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_interactions_may_contain_nulls(name: str) -> None:
    assert conformed(log(**{name: pa.nulls(2)}))[name].null_count == 2


# ------------------------------------------------------------------------------------------ times


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON_SECONDS, NOON_SECONDS + 1]),
        pa.array([NOON_SECONDS, NOON_SECONDS + 1], pa.uint32()),
        pa.array([NOON_SECONDS + 0.25, NOON_SECONDS + 1.999]),
        *(
            pa.array([NOON, NOON + timedelta(seconds=1.75)], pa.timestamp(unit, zone))
            for unit in ("ms", "us", "ns")
            for zone in (None, "UTC", "America/Santiago")
        ),
        pa.array([NOON, NOON + timedelta(seconds=1)], pa.timestamp("s")),
    ],
    ids=lambda times: str(times.type),
)
def test_times_become_whole_seconds(times: pa.Array) -> None:
    column = conformed(log(timestamp=times))["timestamp"]
    assert column.type == pa.int64()
    assert column.to_pylist() == [NOON_SECONDS, NOON_SECONDS + 1]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_date_becomes_its_first_second(kind: pa.DataType) -> None:
    times = pa.array([date(1970, 1, 1), date(2021, 3, 1)], kind)
    column = conformed(log(timestamp=times))["timestamp"]
    assert column.to_pylist() == [0, NOON_SECONDS - 12 * 3600]


@pytest.mark.parametrize(
    "times",
    [pa.array([-0.5, -1.0]), pa.array([-500, -1000], pa.timestamp("ms"))],
    ids=lambda times: str(times.type),
)
def test_times_before_1970_are_rounded_down_too(times: pa.Array) -> None:
    assert conformed(log(timestamp=times))["timestamp"].to_pylist() == [-1, -1]


def test_time_in_words_is_refused() -> None:
    message = refusal(log(timestamp=pa.array(["2021-03-01", "today"])))
    assert "the column timestamp: found 'today'; expected seconds, milliseconds, " in message


# ---------------------------------------------------------------------------------------- columns


def test_refusal_of_a_wide_table_is_one_paragraph() -> None:
    wide = pa.table({"item_id": ["a"], **{f"f{n}": [0.5] for n in range(1280)}})
    message = refusal(wide, schemas.FEATURES)
    assert "lacks the column feature. Found item_id, f0, f1," in message
    assert "f18 and 1,261 more; expected item_id, feature." in message


def test_missing_column_is_named_with_found_and_expected_columns() -> None:
    message = refusal(pa.table({"user": ["u"], "item_id": ["a"]}))
    assert "lacks the columns user_id, timestamp. Found user, item_id; expected user_id" in message
    assert "rating (optional)" in message
    assert "lacks the column timestamp." in refusal(log().drop_columns("timestamp"))


def test_optional_columns_are_cast_and_undeclared_ones_dropped() -> None:
    table = log(
        rating=pa.array([1, None], pa.int8()),
        weight=pa.array([0.5, 1.5], pa.float32()),
        evaluation=pa.array([True, None]),
        comment=pa.array(["x", "y"]),
    )
    cast = conformed(table)
    kinds = {
        name: str(kind) for name, kind in zip(cast.schema.names, cast.schema.types, strict=True)
    }
    ids = {"user_id": "large_string", "item_id": "large_string"}
    optional = {"rating": "double", "weight": "double", "evaluation": "bool"}
    assert kinds == {**ids, "timestamp": "int64", **optional}
    assert cast["rating"].to_pylist() == [1.0, None]
    assert conformed(log()).column_names == ["user_id", "item_id", "timestamp"]


@pytest.mark.parametrize(("name", "expected"), [("rating", "numbers"), ("evaluation", "booleans")])
def test_optional_column_of_another_type_is_refused(name: str, expected: str) -> None:
    days = pa.array([date(2021, 3, 1)] * 2)
    message = refusal(log(**{name: days}))
    assert f"the column {name} has the type date32[day]; expected {expected}" in message


def test_duplicate_column_is_refused() -> None:
    table = log().append_column("user_id", pa.array(["x", "y"]))
    assert f"{WHERE} has 2 columns named user_id; expected one." in refusal(table)


def test_column_of_nulls_gets_the_declared_type() -> None:
    column = conformed(log(rating=pa.nulls(2)))["rating"]
    assert column.type == pa.float64()
    assert column.null_count == 2


def test_table_without_rows_conforms() -> None:
    assert conformed(log().slice(0, 0)).num_rows == 0


def test_pictures_accept_every_binary_type() -> None:
    struct = pa.array([{"bytes": b"jpg", "path": "1.jpg"}])  # Hugging Face
    for image in (*(pa.array([b"jpg"], k) for k in (pa.binary(), pa.large_binary())), struct):
        table = pa.table({"item_id": [1], "image": image})
        assert schemas.conform(table, schemas.PICTURES, WHERE)["image"].to_pylist() == [b"jpg"]
    table = pa.table({"item_id": [1], "image": ["path.jpg"]})
    assert "expected the bytes of a picture" in refusal(table, schemas.PICTURES)
