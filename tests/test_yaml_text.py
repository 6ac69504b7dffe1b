"""YAML in and out: no key stands twice, and text stays text."""

import json

import numpy as np
import pytest
import yaml

from visrec.yaml_text import dump_yaml, flow_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "key", "first", "second"),
    [
        ("rules:\n  cap: 1\nitems: x\nrules:\n  min_stock: 1\n", "rules", 1, 4),
        ("rules:\n  cap: 1\n  cap: 2\n", "rules.cap", 2, 3),
        ("rules: {cap: 1}\nrules.cap: 2\n", "rules.cap", 1, 2),
        ("a: [{b: 1}, {c: 1,\n c: 2}]\n", "a.1.c", 1, 2),
        ("'me:s3cr3t@x': 1\n'me:s3cr3t@x': 2\n", "a key", 1, 2),
    ],
)
def test_key_that_stands_twice_is_refused_with_both_lines(
    text: str, key: str, first: int, second: int
) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        load_yaml(text.encode())
    error = caught.value
    assert f"found {key} for the second time, after line {first};" in str(error.problem)
    assert error.problem_mark is not None
    assert error.problem_mark.line + 1 == second


def test_keys_that_differ_are_read() -> None:
    text = b"rules: {cap: 1}\nrules.min_stock: 2\na: [{b: 1}, {b: 2}]\n"
    expected = {"rules": {"cap": 1}, "rules.min_stock": 2, "a": [{"b": 1}, {"b": 2}]}
    assert load_yaml(text) == expected
    assert load_yaml(b"# nothing\n") is None


@pytest.mark.parametrize("text", ["1e5", "-1E-5", "1234e56", ".5e3", "1_0e3", "5.e1"])
def test_text_that_looks_like_a_number_is_quoted(text: str) -> None:
    assert dump_yaml({"key": text}) == f"key: '{text}'\n"
    assert flow_yaml([text]) == f"['{text}']"


def test_numbers_stay_numbers_and_those_of_numpy_are_written_as_such() -> None:
    values = [1e-5, 1e20, 3, "mail", None, True]
    of_numpy = [np.float64(1e-5), np.float64(1e20), np.int64(3), np.str_("mail"), None, np.True_]
    assert flow_yaml(of_numpy) == flow_yaml(values)
    assert json.dumps(yaml.safe_load(flow_yaml(values))) == json.dumps(values)
