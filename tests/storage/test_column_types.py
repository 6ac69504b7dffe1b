"""Values of every column type as writers store them: parsed, or refused with an example."""

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrec.storage.arrow_values import InvalidValueError
from visrec.storage.column_types import (
    FLAG,
    ID,
    NAME,
    NUMBER,
    PICTURE,
    TIMESTAMP,
    VECTOR,
    ColumnType,
)
from visrec.storage.timestamps import FIRST_TIME, LAST_TIME, describe_timestamps

NOON = 1_614_600_000  # 2021-03-01 12:00 UTC
A_UUID = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
DTYPES = {
    ID: pa.string(), NAME: pa.string(), NUMBER: pa.float64(), FLAG: pa.bool_(),
    TIMESTAMP: pa.int64(), PICTURE: pa.large_binary(), VECTOR: pa.list_(pa.float64()),
}  # fmt: skip


def parsed(column_type: ColumnType, values: Any, type: pa.DataType | None = None) -> list[Any]:
    array = values if isinstance(values, pa.Array) else pa.array(values, type)
    assert column_type.supports(array.type)
    return column_type.cast(pa.chunked_array([array]), DTYPES[column_type]).to_pylist()


def refusal(column_type: ColumnType, values: Any, type: pa.DataType | None = None) -> str:
    with pytest.raises((InvalidValueError, pa.ArrowInvalid)) as caught:
        parsed(column_type, values, type)
    return str(caught.value)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]


@pytest.mark.parametrize("type", TEXTS, ids=str)
def test_blank_ids_become_nulls_and_others_are_kept(type: pa.DataType) -> None:
    ids = ["", " ", "\t\u00a0 ", None, "007", " a", "NA", "nan", "-"]
    encoded = [None if i is None else i.encode() for i in ids]
    array = pa.array(encoded if "binary" in str(type) else ids, type)
    assert parsed(ID, array) == [None] * 4 + ids[4:]
    if "view" not in str(type):
        assert parsed(ID, array.dictionary_encode()) == [None] * 4 + ids[4:]


def test_blank_ids_in_encoded_columns_become_nulls() -> None:
    assert parsed(ID, pc.run_end_encode(pa.array(["a", "a", ""]))) == ["a", "a", None]
    assert parsed(ID, pa.array(['"a"', None], pa.json_())) == ['"a"', None]


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
def test_whole_numbers_become_ids(
    values: list[Any], type: pa.DataType, expected: list[str | None]
) -> None:
    assert parsed(ID, values, type) == expected


def test_numbers_that_are_not_exact_integers_are_refused_as_ids() -> None:
    assert "found 7.5 as an id; expected whole numbers" in refusal(ID, [7.0, 7.5])
    assert "found 9007199254740992 as an id" in refusal(ID, [2.0**53])
    assert "found 16777216 as an id" in refusal(ID, [2.0**24], pa.float32())
    assert "found inf" in refusal(ID, [float("inf")])
    assert not ID.supports(pa.decimal128(38, 2))
    _, offsets, data = pa.array([b"\xff\xfe"]).buffers()
    for array in (pa.array([b"\xff\xfe"]), pa.StringArray.from_buffers(1, offsets, data)):
        assert "found an id that is not UTF-8" in refusal(ID, array)


def test_text_ids_that_pandas_made_from_integers_are_refused() -> None:
    text = [None, "17850.0", "", "2.0"]
    assert "found only ids such as '17850.0', which pandas makes" in refusal(ID, text)
    assert parsed(NAME, text) == [None, "17850.0", None, "2.0"]
    assert parsed(ID, ["2.0", "2.1"]) == ["2.0", "2.1"]
    assert "found only ids such as '7.0'" in refusal(ID, ["nan", "7.0", "nan"])  # astype(str)


def test_ids_of_which_a_spreadsheet_lost_digits_are_refused() -> None:
    for lost in ("4.5E+12", "4,5E+12", "4E+12", "1e+16"):
        assert f"found the id {lost!r}, as spreadsheets write long" in refusal(ID, ["u", lost])
    kept = ["1e3", "4E12", "A4.5E+12", "4.5E+12x"]
    assert parsed(ID, kept) == kept
    assert parsed(NAME, ["4.5E+12"]) == ["4.5E+12"]


def test_usual_ids_need_no_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pass over all ids")

    monkeypatch.setattr(pc, "is_in", refuse)
    monkeypatch.setattr(pc, "match_substring_regex", refuse)
    ids = [None, "", "nan", "u", "7.0"]
    assert parsed(ID, ids) == [None, None, *ids[2:]]


def test_uuids_become_ids_in_their_usual_form() -> None:
    ids = pa.array([A_UUID.bytes, None, bytes(16)], pa.uuid())
    assert parsed(ID, ids) == [str(A_UUID), None, str(uuid.UUID(int=0))]
    assert parsed(ID, ids.slice(1)) == [None, str(uuid.UUID(int=0))]


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
def test_flags_are_parsed(values: list[Any], type: pa.DataType, expected: list[Any]) -> None:
    assert parsed(FLAG, values, type) == expected


def test_other_values_are_refused_as_flags() -> None:
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
        (["4,5", "-12,25", "4.5", "0,125", "3,1415", ""], None,
         [4.5, -12.25, 4.5, 0.125, 3.1415, None]),
    ],
)  # fmt: skip
def test_numbers_are_parsed(values: list[Any], type: pa.DataType, expected: list[Any]) -> None:
    assert parsed(NUMBER, values, type) == expected


def test_other_values_are_refused_as_numbers() -> None:
    message = refusal(NUMBER, ["4,5", "1,500"])  # which may be 1500 and 1.5
    assert "found '1,500'; expected numbers such as 4.5 or 4,5, without sep" in message
    assert "found '1.234,5'" in refusal(NUMBER, ["1.234,5"])
    assert "found 'inf'" in refusal(NUMBER, ["inf"])
    assert "found '.'" in refusal(NUMBER, ["."])
    assert "found an infinite number" in refusal(NUMBER, [float("inf")])


SECONDS = [
    *(["1614600000", "1614600000.75", "1.6146e9", " 1614600000 "], ["2021-03-01 12:00:00"]),
    *(["2021-03-01T12:00:00.123"], ["2021-03-01 12:00:00.123456789"], ["2021-03-01T12:00"]),
    *(["2021-03-01T12:00:00Z"], ["2021-03-01T13:00:00+01:00"], ["2021-03-01T13:00:00.5+0100"]),
    *(["01.03.2021 12:00:00"], ["1.3.2021 12:00", "01.03.2021, 12:00:00"]),
    *(["2021-03-01 12:00:00 UTC"], ["2021-03-01 12:00:00.25 UTC"], ["2021-03-01 13:00:00.5+01"]),
    *(["2021-03-01T08:30:00-03:30", "2021-03-01 12:00:00", "1614600000"],),
]


@pytest.mark.parametrize("values", SECONDS, ids=str)
def test_text_timestamps_become_seconds(values: list[str]) -> None:
    assert parsed(TIMESTAMP, values) == [NOON] * len(values)
    assert parsed(TIMESTAMP, pa.array([*values, "", None, "NaT"]).dictionary_encode()) == [
        *[NOON] * len(values), None, None, None,
    ]  # fmt: skip


def test_dates_and_early_text_timestamps_are_rounded_down() -> None:
    assert parsed(TIMESTAMP, ["1970-01-02", "1969-12-31T23:59:59.5"]) == [86_400, -1]


@pytest.mark.parametrize("text", ["yesterday", "20210301T12", "2021-02-30", "2021-03-01 25:00"])
def test_other_text_is_refused_as_timestamp(text: str) -> None:
    assert f"found {text!r}; expected seconds, milliseconds" in refusal(
        TIMESTAMP, ["2021-03-01", text]
    )


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Santiago", "UTC", "+05:30"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_zoned_timestamps_are_instants(zone: str, unit: str) -> None:
    """Every quarter of an hour around clock changes, when local time repeats an hour."""
    starts = (datetime(2021, 10, 31, tzinfo=UTC), datetime(2021, 4, 4, tzinfo=UTC))
    seconds = [int(start.timestamp()) + 900 * n for start in starts for n in range(16)]
    instants = [datetime.fromtimestamp(second, UTC) for second in seconds]
    array = pa.array(instants, pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, zone))
    assert parsed(TIMESTAMP, array) == seconds


@pytest.mark.parametrize(
    "times",
    [
        pa.array([Decimal("1614600000.999"), None], pa.decimal128(20, 3)),
        pa.array([NOON + 0.5, float("nan")]),
        pa.array([datetime(2021, 3, 1, 12), None], pa.timestamp("us")),
    ],
    ids=lambda times: str(times.type),
)
def test_timestamps_of_other_types_become_seconds(times: pa.Array) -> None:
    assert parsed(TIMESTAMP, times) == [NOON, None]


def test_types_without_timestamps_are_not_supported() -> None:
    for type in (pa.float16(), pa.bool_(), pa.time64("us"), pa.duration("s"), pa.list_(pa.int64())):
        assert not TIMESTAMP.supports(type)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")],
)
def test_unit_of_timestamps_is_told_by_their_size(factor: int, unit: str) -> None:
    late = NOON * factor + factor - 1  # rounded down
    for times in ([late, None, 0], [str(late), "", "0"], [float(NOON * factor), None, 0.0]):
        assert parsed(TIMESTAMP, times) == [NOON, None, 0]
        described = describe_timestamps(pa.chunked_array([pa.array(times)]))
        assert described == f"{unit} since 1970"


NOT_A_DATE = st.integers(FIRST_TIME, LAST_TIME - 1).filter(lambda s: not 1.9e7 < s < 2.1e7)


@given(NOT_A_DATE, st.sampled_from(["s", "ms", "us", "ns"]))
def test_any_time_is_the_same_in_every_unit_and_format(second: int, unit: str) -> None:
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    moment = datetime.fromtimestamp(second, UTC)
    text = [f"{moment:%Y-%m-%d %H:%M:%S}", f"{moment:%Y/%m/%d %H:%M:%S}", f"{moment.isoformat()}"]
    assert parsed(TIMESTAMP, text) == [second] * 3
    if second * factor >= LAST_TIME * factor // 1000:  # else it looks like a smaller unit
        assert parsed(TIMESTAMP, [second * factor]) == [second]
        assert parsed(TIMESTAMP, [str(second * factor)]) == [second]


def test_timestamps_of_two_units_are_refused_with_both() -> None:
    message = refusal(TIMESTAMP, [0, 1_700_000_000, 1_700_000_000_000])
    assert (
        "found the timestamps 1700000000 and 1700000000000, which are seconds and milli" in message
    )
    assert "in seconds, the year 55840" in message
    assert "beyond the year 2100 even in nanoseconds" in refusal(TIMESTAMP, [2**63 - 1])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("03/04/2026", "which may have the day first or the month first"),
        ("3.4.26 10:00", "which may have the day first or the month first"),
        ("22.11.26 10:00", "a date with the day first"),
        ("22/11/2026 10:00", "a date with the day first"),
        ("11.22.2026", "a date with the month first"),
        ("11-22-2026", "a date with the month first"),
    ],
)
def test_dates_with_the_year_last_are_refused_with_what_to_do(text: str, found: str) -> None:
    message = refusal(TIMESTAMP, [text])
    assert f"found {text!r}, {found}" in message
    assert "expected the year first, as in 2026-11-22 03:00:00. Export the column again" in message


def test_placeholder_of_a_time_is_refused_with_the_unit_that_was_read() -> None:
    message = refusal(TIMESTAMP, [-2208988800000, 1_700_000_000_000])
    assert "the year 1900 (-2208988800 seconds since 1970, from values read as mill" in message
    message = refusal(TIMESTAMP, ["9999-12-31", "2026-11-22"])
    assert "from values read as ISO 8601 without a time zone, read as UTC)" in message


def test_formats_of_timestamps_are_described() -> None:
    for times, text in (
        (pa.array(["2026-11-22 03:00:00+02:00", None]), "ISO 8601 with a time zone"),
        (pa.array(["22.11.2026 03:00"]), "dates such as 31.12.2026, read as UTC"),
        (pa.array(["2026-11-22", ""]), "ISO 8601 without a time zone, read as UTC"),
        (pa.array([0, None]), "seconds since 1970"),
        (pa.array(["0"]), "seconds since 1970"),
        (pa.array([1.5e9, None]), "seconds since 1970"),
        (pa.array([None, "1.7e12", "1700000000123"]), "milliseconds since 1970"),
        (pa.array([0], pa.timestamp("us", "Europe/Berlin")), "timestamp[us, tz=Europe/Berlin]"),
        (pa.array([0], pa.timestamp("ms")), "timestamp[ms], read as UTC"),
    ):
        assert describe_timestamps(pa.chunked_array([times])) == text


@pytest.mark.parametrize("first", [2021_03_01, 2021_03_01_12_00_00])
def test_dates_written_as_numbers_are_refused(first: int) -> None:
    for times in ([first, None], [str(first)], [float(first), float("nan")], [f" {first}", ""]):
        assert (
            f"found only timestamps such as {first}, which are dates written as numbers"
            in refusal(TIMESTAMP, times)
        )


@pytest.mark.parametrize(
    "times",
    [[45293.42, None, 36526.0], ["45293.42", "54788"], [45293, 45300], ["45293", "45300"]],
)
def test_days_as_spreadsheets_store_dates_are_refused(times: list[Any]) -> None:
    assert "which are days since 1900, as spreadsheets store dates" in refusal(TIMESTAMP, times)


def test_small_numbers_are_accepted_among_others() -> None:
    for other in (0, 36_525, 54_789, NOON):
        assert parsed(TIMESTAMP, [45_293, other]) == [45_293, other]


def test_seconds_that_look_like_a_date_are_accepted_among_others() -> None:
    for other in (0, 2021_13_01, 2021_03_00, 2021_02_32, NOON):
        assert parsed(TIMESTAMP, [2021_03_01, other]) == [2021_03_01, other]
    assert parsed(TIMESTAMP, pa.nulls(2, pa.int64())) == [None, None]


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
def test_placeholder_dates_are_refused(times: pa.Array) -> None:
    assert "blanks for unknown times" in refusal(TIMESTAMP, times)


def test_far_date_is_refused() -> None:
    assert "in the year 9999 (253402214400" in refusal(
        TIMESTAMP, [datetime(9999, 12, 31)], pa.timestamp("us")
    )
    assert "found inf; expected seconds" in refusal(TIMESTAMP, [float("inf")])


def test_times_that_float32_rounds_are_refused() -> None:
    times = [1.7e9, None, 1_700_000_050.0]
    assert "found 1700000000 as float32, which rounds times" in refusal(
        TIMESTAMP, times, pa.float32()
    )
    assert parsed(TIMESTAMP, [0, 90_000, float("nan")], pa.float32()) == [0, 90_000, None]


def test_only_float32_is_searched_for_rounded_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a pass over all times")

    monkeypatch.setattr(pc, "greater_equal", refuse)
    assert parsed(TIMESTAMP, [1.7e9, None]) == [1_700_000_000, None]
    assert parsed(TIMESTAMP, [Decimal(1_700_000_000)], pa.decimal128(38, 0)) == [1_700_000_000]


def test_vectors_and_pictures_are_parsed() -> None:
    for type in (pa.list_view(pa.float32()), pa.large_list_view(pa.float16())):
        views = pa.array([[1.0, 2.0], [9.0, 9.0], None, [3.0]], type)
        assert parsed(VECTOR, views.take([0, 2, 3])) == [[1, 2], None, [3]]
    storage = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), storage)
    assert parsed(VECTOR, tensor) == [[1, 2]]
    pictures = pa.array([{"bytes": b"jpg", "path": "a"}, {"bytes": None, "path": "b"}, None])
    assert parsed(PICTURE, pictures) == [b"jpg", None, None]
    assert not PICTURE.supports(pa.struct({"path": pa.string()}))
