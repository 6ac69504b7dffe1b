"""Gates on what is true of every correct run, whatever the data.

They have no threshold and no configuration key. If one list is wrong, or the run was made without
the items or users table that the last publication had, the run is held back, unless
`--force_publish` gives a reason to publish it.
"""

from visrec.publication.gate import Gate, exactly, skipped
from visrec.publication.gate_context import GateContext, share
from visrec.publication.verify import ListChecks


def integrity_gates(checks: ListChecks, context: GateContext) -> list[Gate]:
    """The gates that a run passes if all its lists are correct.

    Args:
        checks: counts over the lists of all shards.
        context: facts about the run.
    """
    note = f"{checks.queries:,} of {checks.queries_expected:,}"
    with_list = share(checks.queries, checks.queries_expected)
    return [
        exactly(f"share of the {context.query_noun} with a list", with_list, 1, note),
        *(exactly(name, found, 0) for name, found in _counts(checks, context).items()),
        *_rescoring_gates(checks, context),
        _missing_tables(context),
    ]


def _counts(checks: ListChecks, context: GateContext) -> dict[str, int]:
    """How many files, lists and entries are wrong, by the name of the gate."""
    is_of_users = context.kind == "user_to_item"
    one = "user" if is_of_users else "item"
    excluded = (
        "that the user has taken or that are blocked" if is_of_users else "with the item itself"
    )
    counts = {
        "files that were changed, are of another run or have other columns": (
            checks.altered_files + checks.wrong_schemas
        ),
        f"lists of an unknown {one}, and second lists of one": checks.extra_lists,
        f"lists with fewer than {context.k} items although there are more, or with too many": (
            checks.wrong_lengths
        ),
        "lists with an item twice": checks.with_duplicates,
        "lists against the rules": checks.against_rules,
        "entries with an item that is not in the catalogue": checks.unknown,
        "entries with an item that is not available": checks.unavailable,
        f"entries {excluded}": checks.excluded,
        "entries with a NaN or infinite score": checks.not_finite,
        "lists that are not sorted, best item first": checks.unsorted,
    }
    if is_of_users:
        counts["reasons with an item that the user never took, and wrong fallback flags"] = (
            checks.wrong_reasons + checks.wrong_fallback_flags
        )
    return counts


def _rescoring_gates(checks: ListChecks, context: GateContext) -> list[Gate]:
    """Gates on the sample of lists that was scored again."""
    wrong_of_rescored = {
        "lists that differ from rescoring": (checks.not_from_model, checks.rescored)
    }
    if context.kind == "user_to_item":
        wrong_of_rescored |= {
            "fallback lists that are not the most popular items": (
                checks.not_most_popular, checks.rescored_fallbacks,
            ),
            "lists with a reason that is missing or not the nearest item": (
                checks.not_nearest_reasons, checks.rescored,
            ),
        }  # fmt: skip
    return [
        exactly(name, wrong, 0, f"of {rescored:,} rescored lists")
        if rescored
        else skipped(name, 0, "there are no such lists")
        for name, (wrong, rescored) in wrong_of_rescored.items()
    ]


def _missing_tables(context: GateContext) -> Gate:
    """The gate on the input tables that the last publication was made with and this run without."""
    name = "input tables of the last publication that are missing now"
    if context.last is None:
        return skipped(name, 0, context.why_no_last)
    missing = [
        table
        for table in ("items", "users")
        if context.last.inputs.get(table) and table not in context.tables
    ]
    note = f"no table of {' and of '.join(missing)} now" if missing else ""
    return exactly(name, len(missing), 0, note)
