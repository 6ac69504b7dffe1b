"""The page that explains one user's published list, with the cards of the evaluation report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visrec.evaluation.page import render_page
from visrec.evaluation.report_content import ItemCard, ListEntry
from visrec.publication.manifest import RunManifest
from visrec.recommend.explanation import KeptOut, ListedItem, TakenItem


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything about one user's list.

    Attributes:
        user_id: the user's id.
        manifest: the manifest of the published run.
        published_at: when, in words.
        listed: the list.
        before: the run before, if the user had a list in it; None otherwise.
        taken: the profile, latest first.
        kept_out: what rules kept out.
        cards: titles and pictures of the items that are shown, by id.
    """

    user_id: str
    manifest: RunManifest
    published_at: str
    listed: Sequence[ListedItem]
    before: str | None
    taken: Sequence[TakenItem]
    kept_out: KeptOut
    cards: Mapping[str, ItemCard]

    def card(self, item_id: str) -> ItemCard:
        """The card of an item."""
        return self.cards.get(item_id, ItemCard(item_id=item_id))

    def change(self, item: ListedItem) -> str:
        """What has become of an entry since the run before; empty if nothing has."""
        if self.before is None or item.rank_before == item.rank:
            return ""
        return "new" if item.rank_before is None else f"was #{item.rank_before}"


def render_explanation(explanation: Explanation, shown: int) -> str:
    """The page as one HTML text, which can be encoded as UTF-8.

    Args:
        explanation: what it shows.
        shown: at most so many profile items, and items that were kept out.
    """
    taken = {item.item_id for item in explanation.taken}
    entries = [
        ListEntry(
            item=explanation.card(item.item_id),
            rank=item.rank,
            score=item.score,
            because=explanation.card(reason) if (reason := item.because_item_id) else None,
            badges=[
                text
                for text in (explanation.change(item), "taken" if item.item_id in taken else "")
                if text
            ],
        )
        for item in explanation.listed
    ]
    kept_out = [
        ListEntry(item=explanation.card(item.item_id), score=item.score, badges=[item.why])
        for item in explanation.kept_out.items[:shown]
    ]
    return render_page(
        "explanation.html",
        explanation.cards.values(),
        explanation=explanation,
        profile_items=[explanation.card(item.item_id) for item in explanation.taken[:shown]],
        entries=entries,
        kept_out=kept_out,
        reasons=explanation.kept_out.by_reason.most_common(),
    )
