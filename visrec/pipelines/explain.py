"""Explains a user's published list: profile, entries with reasons, what rules kept out.

visrec explain --user user-00398
visrec explain --user user-00398 --html user.html
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.summary import Summary, terminal_width
from visrec.errors import InputError, MissingFileError
from visrec.evaluation.cards import make_cards, picture_source
from visrec.evaluation.explanation_page import Explanation, render_explanation
from visrec.evaluation.page import format_moment, format_score
from visrec.evaluation.report_content import ItemCard
from visrec.ids import TEXT
from visrec.pipelines.input_checks import require_interactions, require_table
from visrec.pipelines.job_tables import interactions_uri, items_table, users_table
from visrec.publication.manifest import RunManifest, read_run_manifest
from visrec.publication.pointer import Pointer, open_published
from visrec.publication.run_spec import run_store
from visrec.recommend.explanation import (
    KeptOut,
    ListedItem,
    find_kept_out,
    read_list,
    read_profile,
    unknown_user,
    with_ranks_before,
)
from visrec.recommend.inputs import ScoringInputs
from visrec.retrieval.rules import RulesConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store, file_at
from visrec.text import format_table, printable

_SHOWN = 20  # entries and profile items in the terminal; the page has all entries
_SHOWN_KEPT_OUT = 5
_CARDS = 30  # profile items, and items that were kept out, on the page


@dataclass(frozen=True, kw_only=True)
class ExplainJob(JobConfig):
    """Why a user has this list.

    Attributes:
        user: id of the user.
        html: file for an HTML page with the same content and pictures, local or on S3.
        recommendations: directory of the runs; by default recommendations of the workspace.
        features: features directory of the pictures; by default features of the workspace.
        text_features: features directory of the texts, for a model that takes them; by default
            text_features of the workspace.
        interactions: what users took; the cutoff and min_rating are those of the run.
        items: items table with titles; by default items.* of the workspace, if it exists.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        users: users table; by default users.* of the workspace, if it exists.
        users_columns: its columns that have other names in the files.
        images: where the page's pictures come from; by default images of the workspace.
    """

    user: str = ""
    html: str | None = None
    recommendations: str | None = None
    features: str | None = None
    text_features: str | None = None
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    users: str | None = None
    users_columns: dict[str, str] = field(default_factory=dict)
    images: str | None = None


def check(config: ExplainJob) -> None:
    """Raises an InputError where no user is named, or an input is missing or not as declared."""
    if not config.user:
        raise InputError("Found no --user; expected the id of a user, as in --user u1.", key="user")
    if config.html is not None:
        file_at(config.html)
    require_interactions(config.interactions, interactions_uri(config, config.interactions))
    require_table(items_table(config, config.items, config.items_columns), schemas.ITEMS)
    require_table(users_table(config, config.users, config.users_columns), schemas.USERS)


def main(config: ExplainJob, summary: Summary) -> None:
    """Reads the published list and the profile, scores the user again, and shows all of it."""
    recommendations = Store.at(config.resolve(config.recommendations, "recommendations"))
    with summary.phase("read"):
        pointer, manifest = _read_published(recommendations)
        listed, before = _read_list(recommendations, pointer, manifest, config.user)
        inputs = _scoring_inputs(config, manifest)
        taken, disliked = read_profile(
            inputs.interactions, interactions_uri(config, config.interactions), config.user
        )
    with summary.phase("score"):
        kept_out = _find_kept_out(inputs, manifest, config.user, listed)
    with summary.phase("pictures"):
        others = {item.item_id for item in taken[:_CARDS]}
        others |= {item.item_id for item in kept_out.items[:_CARDS]}
        cards = _cards(config, inputs.items_table, listed, others)
    explanation = Explanation(
        user_id=config.user,
        manifest=manifest,
        published_at=format_moment(str(pointer.published_at)),
        listed=listed,
        taken=taken,
        kept_out=kept_out,
        before=before,
        cards=cards,
    )
    if config.html is not None:
        store, name = file_at(config.html)
        summary.has_written = True
        store.write(name, render_explanation(explanation, _CARDS).encode())
    _print(explanation)
    summary.rows = {
        "user": config.user,
        "run": manifest.run_id,
        "model": manifest.model_id,
        "published": explanation.published_at,
        "profile items": len(taken),
        "rated too low": len(disliked),
        "list entries": len(listed),
        "kept out": dict(kept_out.by_reason) or kept_out.note,
        "page at": "" if config.html is None else config.html,
    }


def _read_published(recommendations: Store) -> tuple[Pointer, RunManifest]:
    pointer, manifest = open_published(recommendations)
    if manifest is None:
        raise InputError(
            f"Found no published run at {recommendations.root}; expected one that "
            "`visrec recommend` or `visrec nightly` published. Change --workspace or "
            "--recommendations.",
            path=recommendations.root,
            key="recommendations",
        )
    return pointer, manifest


def _read_list(
    recommendations: Store, pointer: Pointer, manifest: RunManifest, user: str
) -> tuple[list[ListedItem], str | None]:
    """The user's list, with the ranks in the run that was published before, and that run's id.

    The id is None if there was no such run, or the user had no list in it.
    """
    listed = read_list(recommendations, manifest, user)
    run_id = pointer.previous_run_id
    if listed is None:
        raise unknown_user(recommendations, manifest, user)
    try:
        before = None if run_id is None else read_run_manifest(run_store(recommendations, run_id))
        list_before = None if before is None else read_list(recommendations, before, user)
    except InputError:  # damaged, or files that retention is removing
        list_before = None
    if list_before is None:
        return listed, None
    return with_ranks_before(listed, list_before), run_id


def _find_kept_out(
    inputs: ScoringInputs, manifest: RunManifest, user: str, listed: Sequence[ListedItem]
) -> KeptOut:
    """What rules kept out; unknown where the user cannot be scored again with the inputs of now."""
    try:
        return find_kept_out(inputs, manifest, user, listed)
    except (InputError, MissingFileError) as error:
        return KeptOut(note=f"the user cannot be scored again: {error}")


def _scoring_inputs(config: ExplainJob, manifest: RunManifest) -> ScoringInputs:
    """What the run was scored from, as far as its manifest says: the block list is not in it."""
    made_from: dict[str, Any] = dict(manifest.inputs)
    interactions = dataclasses.replace(
        config.interactions, min_rating=made_from["min_rating"], as_of=made_from["as_of"]
    )
    return ScoringInputs(
        model=Store.at(config.resolve(None, f"models/{manifest.model_id}")),
        features=Store.at(config.resolve(config.features, "features")),
        interactions=interactions,
        interactions_uri=interactions_uri(config, config.interactions),
        items_table=items_table(config, config.items, config.items_columns),
        users_table=users_table(config, config.users, config.users_columns),
        rules=RulesConfig(**made_from["rules"]),
        text_features=Store.at(config.resolve(config.text_features, "text_features")),
    )


def _cards(
    config: ExplainJob, items: InputTable | None, listed: Sequence[ListedItem], others: set[str]
) -> dict[str, ItemCard]:
    """Titles of all items, the reasons included; pictures for the page alone."""
    ids = others | {item.item_id for item in listed}
    ids |= {item.because_item_id for item in listed if item.because_item_id is not None}
    images = None
    if config.html is not None:
        features = Store.at(config.resolve(config.features, "features"))
        images = picture_source(config.resolve(config.images, "images"), features)
    return make_cards(pa.array(sorted(ids), TEXT), images, items)


def _print(explanation: Explanation) -> None:
    manifest = explanation.manifest
    width = terminal_width()
    say(
        f"The list of {printable(explanation.user_id)} in the run {manifest.run_id}, by the model "
        f"{manifest.model_id}, published at {explanation.published_at}",
    )
    say(f"\nprofile: {len(explanation.taken):,} items, latest first")
    rows = [["item", "id", "taken"], *_profile_rows(explanation)]
    _print_rows(rows, len(explanation.taken), width)
    say(f"\nlist: {len(explanation.listed):,} items, best first")
    rows = [["item", "id", "score", "because of", *_if_before(explanation, "change")]]
    rows += list(_list_rows(explanation))
    _print_rows(rows, len(explanation.listed), width)
    _print_kept_out(explanation, width)


def _profile_rows(explanation: Explanation) -> Iterator[list[str]]:
    for item in explanation.taken[:_SHOWN]:
        taken = datetime.fromtimestamp(item.timestamp, UTC)
        name = explanation.card(item.item_id).name
        yield [printable(name), printable(item.item_id), f"{taken:%Y-%m-%d %H:%M}"]


def _list_rows(explanation: Explanation) -> Iterator[list[str]]:
    for item in explanation.listed[:_SHOWN]:
        reason = "–"
        if item.because_item_id is not None:
            reason = explanation.card(item.because_item_id).name
        yield [
            printable(f"{item.rank}. {explanation.card(item.item_id).name}"),
            printable(item.item_id),
            format_score(item.score),
            printable(reason),
            *_if_before(explanation, explanation.change(item)),
        ]


def _if_before(explanation: Explanation, text: str) -> list[str]:
    """A cell of the column that exists only if there is a run before."""
    return [] if explanation.before is None else [text]


def _print_rows(rows: Sequence[Sequence[str]], total: int, width: int | None) -> None:
    if len(rows) > 1:
        say(format_table(rows, width))
    if total > len(rows) - 1:
        say(f"and {total - len(rows) + 1:,} more")


def _print_kept_out(explanation: Explanation, width: int | None) -> None:
    kept_out = explanation.kept_out
    if kept_out.note:
        say(f"\nkept out: not known, because {kept_out.note}")
        return
    say(f"\nkept out, though they score at least as well: {len(kept_out.items):,} items")
    for why, count in kept_out.by_reason.most_common():
        say(f"  {count:,} {why}")
    rows = [["item", "id", "score", "why"]]
    for item in kept_out.items[:_SHOWN_KEPT_OUT]:
        name = explanation.card(item.item_id).name
        score = format_score(item.score)
        rows.append([printable(name), printable(item.item_id), score, item.why])
    if kept_out.items:
        _print_rows(rows, len(kept_out.items), width)
