"""Messages about keys show what was found, and no password or token."""

from pathlib import Path
from typing import Any

import pytest

from visrec.cli.keys import parse_yaml, without_secrets
from visrec.cli.parse import parse, parse_in_workspace
from visrec.cli.workspace_keys import WORKSPACE_FILE
from visrec.errors import InputError
from visrec.pipelines.export import ExportJob
from visrec.pipelines.nightly import NightlyJob

SECRET = "s3cr3t"
MAIL = f"mailto://me:{SECRET}@example.com"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("vbpr", "vbpr"),
        (3, "3"),
        ("s3://shop/orders.csv", "s3://shop/orders.csv"),
        (f"postgresql://me:{SECRET}@db/shop", "postgresql://***@db/shop"),
        (f"s3://me:{SECRET}@shop/x?X-Amz-Signature={SECRET}", "s3://***@shop/x?..."),
        (f"slack://{SECRET}/{SECRET}", "slack://..."),
        (f"https://hooks.example.com/services/{SECRET}", "https://hooks.example.com/..."),
        (f"http://localhost:8080/x?key={SECRET}", "http://localhost:8080/..."),
        (f"https://me:{SECRET}@example.com/x", "https://..."),
        (f"https://me:1/{SECRET}@example.com/x", "https://..."),
        (f"slack:/T1/{SECRET}", "slack:/..."),
        (f"me:{SECRET}@host s3://shop/x", "me:***@host s3://shop/x"),
        (f"s3://shop/x slack:/T1/{SECRET}", "s3://..."),
        ("of 3 kinds: s3:// or /tmp", "of 3 kinds: s3:// or /tmp"),
        (f"a redis://:{SECRET}@cache slack://{SECRET}", "a redis://..."),
        ([MAIL], "['mailto://..."),
        (f"postgresql:/me:{SECRET}@db/shop", "postgresql:/***@db/shop"),
    ],
)
def test_value_is_shown_without_its_secrets(value: object, shown: str) -> None:
    assert without_secrets(value) == shown


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        (ExportJob, [f"postgresql://me:{SECRET}@db/shop"]),  # without --to
        (ExportJob, [f"--postgresql://me:{SECRET}@db/shop"]),
        (ExportJob, ["--only_changed", f"postgresql://me:{SECRET}@db/shop"]),
        (NightlyJob, ["--notify", MAIL]),
        (NightlyJob, [MAIL]),
        (NightlyJob, ["--config", MAIL]),
        (NightlyJob, ["--export_to", f"slack://{SECRET}"]),
    ],
)
def test_message_about_a_flag_has_no_secret(job: Any, flags: list[str]) -> None:
    with pytest.raises(InputError, match="Found") as caught:
        parse(job, flags)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"notify: {MAIL}",
        f"{MAIL}: x",
        MAIL,
        f"- {MAIL}",
        f"notify:\n  url: [{MAIL}\nkeep: 3",
    ],
)
@pytest.mark.parametrize("name", ["night.yaml", WORKSPACE_FILE])
def test_message_about_a_yaml_file_has_no_secret(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    flags = ["--workspace", str(tmp_path)]
    if name != WORKSPACE_FILE:
        flags += ["--config", str(tmp_path / name)]
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        parse_in_workspace(NightlyJob, flags)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)


def test_line_of_a_yaml_file_with_an_error_is_named() -> None:
    with pytest.raises(InputError, match=r"x\.yaml is not valid YAML: .*\(line 3, column 5\)\."):
        parse_yaml(b"notify:\n  url: [a\nkeep: 3", "x.yaml")


def test_date_that_does_not_exist_in_yaml_is_refused() -> None:
    with pytest.raises(InputError, match=r"x\.yaml is not valid YAML: month must be in 1\.\.12"):
        parse_yaml(b"as_of: 2026-13-45", "x.yaml")
