"""What columns hold, as the writers of tables write it: the right value, or a refusal with an
example."""

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from visrec.storage.column_types import (
    FLAG,
    ID,
    NAME,
    NUMBER,
    PICTURE,
    TIME,
    VECTOR,
    Kind,
    ValueRefusedError,
)

NOON = 1_614_600_000  # 2021-03-01 12:00 UTC
SOME = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
TO = {
    ID: pa.string(), NAME: pa.string(), NUMBER: pa.float64(), FLAG: pa.bool_(), TIME: pa.int64(),
    PICTURE: pa.large_binary(), VECTOR: pa.list_(pa.float64()),
}  # fmt: skip


def taken(kind: Kind, values: Any, type: pa.DataType | None = None) -> list[Any]:
    array = values if isinstance(values, pa.Array) else pa.array(values, type)
    assert kind.takes(array.type)
    return kind.of(pa.chunked_array([array]), TO[kind]).to_pylist()


def refusal(kind: Kind, values: Any, type: pa.DataType | None = None) -> str:
    with pytest.raises((ValueRefusedError, pa.ArrowInvalid)) as caught:
        taken(kind, values, type)
    return str(caught.value)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]


@pytest.mark.parametrize("type", TEXTS, ids=str)
def test_blank_ids_are_nulls_and_others_stay_as_they_are(type: pa.DataType) -> None:
    ids = ["", " ", "\t\u00a0 ", None, "007", " a", "NA", "nan", "-"]
    encoded = [None if i is None else i.encode() for i in ids]
    array = pa.array(encoded if "binary" in str(type) else ids, type)
    assert taken(ID, array) == [None] * 4 + ids[4:]
    if "view" not in str(type):
        assert taken(ID, array.dictionary_encode()) == [None] * 4 + ids[4:]


def test_blank_ids_in_runs_and_extensions_are_nulls() -> None:
    assert taken(ID, pc.run_end_encode(pa.array(["a", "a", ""]))) == ["a", "a", None]
    assert taken(ID, pa.array(['"a"', None], pa.json_())) == ['"a"', None]


@pytest.mark.parametrize(
    ("values", "type", "expected"),
    [
        ([Decimal(7), Decimal(-12), None], pa.decimal128(38, 0), ["7", "-12", None]),
        ([Decimal(10) ** 37], pa.decimal256(50, 0), ["1" + "0" * 37]),
        ([7.0, float("nan"), None, 2.0**53 - 1], pa.float64(), ["7", None, None, str(2**53 - 1)]),
        ([7.0, 2.0**24 - 1], pa.float32(), ["7", str(2**24 - 1)]),
        ([7.0, 2047.0, float("nan")], pa.float16(), ["7", "2047", None]),
        ([2**64 - 1, 0], pa.uint64(), [str(2**64 - 1), "0"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_that_are_whole_are_ids(
    values: list[Any], type: pa.DataType, expected: list[str | None]
) -> None:
    assert taken(ID, values, type) == expected


def test_numbers_that_are_no_ids_are_refused() -> None:
    assert "found 7.5 as an id; expected whole numbers" in refusal(ID, [7.0, 7.5])
    assert "found 9007199254740992 as an id" in refusal(ID, [2.0**53])
    assert "found 16777216 as an id" in refusal(ID, [2.0**24], pa.float32())
    assert "found inf" in refusal(ID, [float("inf")])
    assert not ID.takes(pa.decimal128(38, 2))
    _, offsets, data = pa.array([b"\xff\xfe"]).buffers()
    for array in (pa.array([b"\xff\xfe"]), pa.StringArray.from_buffers(1, offsets, data)):
        assert "found an id that is not UTF-8" in refusal(ID, array)


def test_ids_that_were_integers_before_pandas_are_refused_as_text() -> None:
    text = [None, "17850.0", "", "2.0"]
    assert "found ids such as '17850.0' alone, which pandas makes" in refusal(ID, text)
    assert taken(NAME, text) == [None, "17850.0", None, "2.0"]
    assert taken(ID, ["2.0", "2.1"]) == ["2.0", "2.1"]


def test_uuids_are_ids_in_their_usual_form() -> None:
    ids = pa.array([SOME.bytes, None, bytes(16)], pa.uuid())
    assert taken(ID, ids) == [str(SOME), None, str(uuid.UUID(int=0))]
    assert taken(ID, ids.slice(1)) == [None, str(uuid.UUID(int=0))]


@pytest.mark.parametrize(
    ("values", "type", "expected"),
    [
        ([True, None, False], None, [True, None, False]),
        ([1, 0, None], pa.int8(), [True, False, None]),
        ([1.0, 0.0, float("nan")], None, [True, False, None]),
        ([Decimal(1), Decimal(0), None], pa.decimal128(1, 0), [True, False, None]),
        (["true", "False", "1", "0", "YES", "n", "t", "F"], None, [True, False] * 4),
        (["1.0", "0.0", "", " ", "NULL", None, " y "], None, [True, False, *[None] * 4, True]),
        ([None], pa.null(), [None]),
    ],
)
def test_flags_of_any_writer(values: list[Any], type: pa.DataType, expected: list[Any]) -> None:
    assert taken(FLAG, values, type) == expected


def test_flags_that_are_neither_are_refused() -> None:
    expected = "expected true or false, 1 or 0, yes or no"
    assert f"found 'maybe'; {expected}" in refusal(FLAG, ["true", "maybe"])
    assert f"found 2.0; {expected}" in refusal(FLAG, [1, 0, 2])


@pytest.mark.parametrize(
    ("values", "type", "expected"),
    [
        ([Decimal("4.5"), None], pa.decimal128(2, 1), [4.5, None]),
        ([Decimal("4.5"), None], pa.decimal32(2, 1), [4.5, None]),
        ([1.5, float("nan")], pa.float16(), [1.5, None]),
        (["4.5", "-3", "+1", "1e3", "4.", ".5", "-.5e1", "", "NaN", "NA", " 2 "], None,
         [4.5, -3, 1, 1000, 4, 0.5, -5, None, None, None, 2]),
    ],
)  # fmt: skip
def test_numbers_of_any_writer(values: list[Any], type: pa.DataType, expected: list[Any]) -> None:
    assert taken(NUMBER, values, type) == expected


def test_numbers_that_are_none_are_refused() -> None:
    assert "found '4,5'; expected numbers, as 4.5" in refusal(NUMBER, ["4.5", "4,5"])
    assert "found 'inf'" in refusal(NUMBER, ["inf"])
    assert "found '.'" in refusal(NUMBER, ["."])
    assert "found an infinite number" in refusal(NUMBER, [float("inf")])


SECONDS = [
    *(["1614600000", "1614600000.75", "1.6146e9", " 1614600000 "], ["2021-03-01 12:00:00"]),
    *(["2021-03-01T12:00:00.123"], ["2021-03-01 12:00:00.123456789"], ["2021-03-01T12:00"]),
    *(["2021-03-01T12:00:00Z"], ["2021-03-01T13:00:00+01:00"], ["2021-03-01T13:00:00.5+0100"]),
    *(["2021-03-01 12:00:00 UTC"], ["2021-03-01 12:00:00.25 UTC"], ["2021-03-01 13:00:00.5+01"]),
    *(["2021-03-01T08:30:00-03:30", "2021-03-01 12:00:00", "1614600000"],),
]


@pytest.mark.parametrize("values", SECONDS, ids=str)
def test_times_in_words_are_seconds(values: list[str]) -> None:
    assert taken(TIME, values) == [NOON] * len(values)
    assert taken(TIME, pa.array([*values, "", None, "NaT"]).dictionary_encode()) == [
        *[NOON] * len(values), None, None, None,
    ]  # fmt: skip


def test_dates_and_early_times_in_words_are_rounded_down() -> None:
    assert taken(TIME, ["1970-01-02", "1969-12-31T23:59:59.5"]) == [86_400, -1]


@pytest.mark.parametrize("text", ["yesterday", "01/03/2021", "2021-02-30", "2021-03-01 25:00"])
def test_other_words_are_no_times(text: str) -> None:
    assert f"found {text!r}; expected seconds since 1970" in refusal(TIME, ["2021-03-01", text])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Santiago", "UTC", "+05:30"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_zoned_times_are_instants(zone: str, unit: str) -> None:
    """Each quarter of an hour around changes of the clock, when a zone shows an hour twice."""
    starts = (datetime(2021, 10, 31, tzinfo=UTC), datetime(2021, 4, 4, tzinfo=UTC))
    seconds = [int(start.timestamp()) + 900 * n for start in starts for n in range(16)]
    instants = [datetime.fromtimestamp(second, UTC) for second in seconds]
    array = pa.array(instants, pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, zone))
    assert taken(TIME, array) == seconds


@pytest.mark.parametrize(
    "times",
    [
        pa.array([Decimal("1614600000.999"), None], pa.decimal128(20, 3)),
        pa.array([NOON + 0.5, float("nan")]),
        pa.array([datetime(2021, 3, 1, 12), None], pa.timestamp("us")),
    ],
    ids=lambda times: str(times.type),
)
def test_times_of_other_types(times: pa.Array) -> None:
    assert taken(TIME, times) == [NOON, None]


def test_types_that_hold_no_time_are_refused() -> None:
    for type in (pa.float16(), pa.bool_(), pa.time64("us"), pa.duration("s"), pa.list_(pa.int64())):
        assert not TIME.takes(type)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")],
)
def test_times_in_another_unit_are_named(factor: int, unit: str) -> None:
    for times in ([NOON * factor], [str(NOON * factor)], [float(NOON * factor)]):
        message = refusal(TIME, times)
        assert f"{unit}? Expected seconds since 1970" in message
        assert str(NOON * factor)[:9] in message


def test_the_year_of_milliseconds_is_told() -> None:
    message = refusal(TIME, [0, 1_700_000_000_000])
    assert "up to the year 55840, such as 1700000000000; milliseconds?" in message


@pytest.mark.parametrize("first", [2021_03_01, 2021_03_01_12_00_00])
def test_dates_written_as_numbers_are_no_seconds(first: int) -> None:
    for times in ([first, None], [str(first)], [float(first), float("nan")], [f" {first}", ""]):
        assert f"such as {first} alone, which are dates written as numbers" in refusal(TIME, times)


def test_seconds_that_look_like_a_date_are_seconds_beside_others() -> None:
    for other in (0, 2021_13_01, 2021_03_00, 2021_02_32, NOON):
        assert taken(TIME, [2021_03_01, other]) == [2021_03_01, other]
    assert taken(TIME, pa.nulls(2, pa.int64())) == [None, None]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([datetime(1, 1, 1)], pa.timestamp("us")),
        pa.array([datetime(1900, 1, 1)], pa.timestamp("ms")),
        pa.array([date(1753, 1, 1)]),
        pa.array(["0001-01-01T00:00:00"]),
        pa.array([-62_135_596_800]),
    ],
    ids=lambda times: str(times.type),
)
def test_dates_that_stand_for_none_are_refused(times: pa.Array) -> None:
    assert "blanks where a time is not known" in refusal(TIME, times)


def test_a_far_date_is_refused() -> None:
    assert "in the year 9999 (253402214400" in refusal(
        TIME, [datetime(9999, 12, 31)], pa.timestamp("us")
    )
    assert "found inf; expected seconds" in refusal(TIME, [float("inf")])


def test_vectors_and_pictures_of_any_writer() -> None:
    for type in (pa.list_view(pa.float32()), pa.large_list_view(pa.float16())):
        views = pa.array([[1.0, 2.0], [9.0, 9.0], None, [3.0]], type)
        assert taken(VECTOR, views.take([0, 2, 3])) == [[1, 2], None, [3]]
    storage = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), storage)
    assert taken(VECTOR, tensor) == [[1, 2]]
    pictures = pa.array([{"bytes": b"jpg", "path": "a"}, {"bytes": None, "path": "b"}, None])
    assert taken(PICTURE, pictures) == [b"jpg", None, None]
    assert not PICTURE.takes(pa.struct({"path": pa.string()}))
