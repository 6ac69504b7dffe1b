"""Users are removed from an evaluation that is kept: their metrics, their part of the report."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import escape

from visrec.evaluation.examples import hash_user_id
from visrec.evaluation.record import RECORD
from visrec.evaluation.results import METRICS, PER_USER, REPORT
from visrec.ids import is_in
from visrec.storage.store import Store, to_json
from visrec.text import show_controls

# An id in the report, and a user's part of it, as its template writes them.
_SHOWN_ID = re.compile(r"<bdi>(.*?)</bdi>", re.DOTALL)
_USER_SECTION = re.compile(r'<(section|article) class="user".*?</\1>\s*', re.DOTALL)


def forget_users(evaluation: Store, user_ids: pa.Array, model_digests: Mapping[str, str]) -> int:
    """Removes users from an evaluation, whose figures stay: they are of no single user.

    Args:
        evaluation: its directory.
        user_ids: the users.
        model_digests: the present digest of each model that was rewritten, by its earlier ones.

    Returns:
        How many rows of metrics the evaluation had of them.
    """
    removed = 0
    if evaluation.exists(PER_USER):
        users = evaluation.read_table(PER_USER)
        is_gone = is_in(users["user_id"], user_ids)
        removed = pc.sum(is_gone).as_py() or 0
        if removed:
            evaluation.write_table(PER_USER, users.filter(pc.invert(is_gone)), store_schema=False)
    if evaluation.exists(REPORT):
        _forget_in_report(evaluation, user_ids.to_pylist(), _hash_keys(evaluation, model_digests))
    for name in (RECORD, METRICS):
        if evaluation.exists(name):
            found = evaluation.read_json(name)
            renamed = with_present_digests(found, model_digests)
            if renamed != found:
                evaluation.write(name, to_json(renamed))
    return removed


def _hash_keys(evaluation: Store, model_digests: Mapping[str, str]) -> set[str]:
    """The keys with which a report may have hashed ids: all digests that its models ever had."""
    keys = {*model_digests.keys(), *model_digests.values()}
    if evaluation.exists(METRICS):
        keys |= set(evaluation.read_json(METRICS).get("digests", {}).values())
    return keys


def _forget_in_report(evaluation: Store, user_ids: Sequence[str], keys: Iterable[str]) -> None:
    """Cuts the users' sections out of the report; removes a report that names them elsewhere."""
    page = evaluation.read(REPORT).decode(errors="surrogateescape")  # damaged bytes stay
    hashed = [hash_user_id(user_id, key) for key in keys for user_id in user_ids]
    gone = {str(escape(show_controls(name))) for name in (*user_ids, *hashed)}

    def names_one(text: str) -> bool:
        return not gone.isdisjoint(_SHOWN_ID.findall(text))

    if not names_one(page):
        return
    page = _USER_SECTION.sub(lambda section: "" if names_one(section[0]) else section[0], page)
    if names_one(page):
        evaluation.delete([REPORT])
    else:
        evaluation.write(REPORT, page.encode(errors="surrogateescape"))


def with_present_digests(value: Any, model_digests: Mapping[str, str]) -> Any:
    """A JSON value in which models have their present digests."""
    if isinstance(value, dict):
        return {key: with_present_digests(each, model_digests) for key, each in value.items()}
    if isinstance(value, list):
        return [with_present_digests(each, model_digests) for each in value]
    return model_digests.get(value, value) if isinstance(value, str) else value
