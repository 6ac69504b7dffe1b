"""The split into training, validation and test rows.

No held-out row of a user is earlier than one of the user's training rows, unless an `evaluation`
column says which rows are held out. Other users' training rows may be later; with
`SplitConfig.at`, none is. However rows are held out, the profile that they are ranked for has no
later row.

Shapes: U users, N items, R rows of the log, E evaluated users, P pairs of a user and an item.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.config import check_fields
from visrec.errors import InputError
from visrec.ids import index_in
from visrec.interactions.log import InteractionLog
from visrec.jagged import Jagged
from visrec.sources.interactions import utc_seconds


class SplitPart(IntEnum):
    """The part that a row of the log belongs to, in the order of time."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is held out from training.

    Attributes:
        test: hold out the last basket of each user with at least two, for `visrec evaluate`.
        validation: hold out the last basket of each user with at least two, not counting the test
            basket, to choose the best epoch.
        by: the unit that is held out, and what it is ranked among. night and basket hold out all of
            a user's items with one timestamp; item holds out a single item, as in leave-one-out
            evaluation (among items with one timestamp, the last one by id). night ranks it among
            the items that somebody had taken by the end of its day, which are known to have existed
            then (in a catalogue of unique works, among all items: see
            `visrec.retrieval.moments`); basket and item rank it among all items, as papers do.
        at: ISO date or time in UTC from which everything is held out for test, instead of each
            user's last basket: a model is trained on what was before, and judged on all that came
            after, with what was known at this moment.
    """

    test: bool = True
    validation: bool = True
    by: Literal["night", "basket", "item"] = "night"
    at: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "split")
        if self.at_timestamp() is not None and not self.test:
            raise InputError(
                f"Found --split.at {self.at} and --split.test false; expected only one of them, "
                "because --split.at holds everything from that moment on out for test.",
                key="split.at",
            )

    def at_timestamp(self) -> int | None:
        """`at` in seconds since 1970; None if it is not given.

        Raises:
            InputError: it is not a date.
        """
        return None if self.at is None else utc_seconds(self.at, "split.at")


@dataclass(frozen=True)
class HeldOut:
    """Evaluated users with their profiles and held-out targets.

    Attributes:
        user_E: (E,) rows of the log's users.
        profiles: E lists of items that were taken no later than `time_E`.
        targets: E lists of held-out items.
        time_E: (E,) the time of each user's first target, in seconds; with `SplitConfig.at`, that
            moment.
        target_times: E lists of the times of the targets. Those of one basket are `time_E`; marked
            rows, and what is held out from a moment on, may have later ones.
    """

    user_E: npt.NDArray[np.int64]
    profiles: Jagged
    targets: Jagged
    time_E: npt.NDArray[np.int64]
    target_times: Jagged

    def __len__(self) -> int:
        return len(self.user_E)

    def take(self, rows: npt.NDArray[np.int64]) -> "HeldOut":
        return HeldOut(
            self.user_E[rows],
            self.profiles.take(rows),
            self.targets.take(rows),
            self.time_E[rows],
            self.target_times.take(rows),
        )

    @property
    def last_time_E(self) -> npt.NDArray[np.int64]:
        """(E,) the time of each user's last target."""
        times = self.target_times
        return np.asarray(np.maximum.reduceat(times.values, times.offsets[:-1]))


def split(log: InteractionLog, config: SplitConfig) -> npt.NDArray[np.int8]:
    """(R,) the `SplitPart` of each row.

    Test rows are those from `at` on, if it is given; otherwise the rows that an `evaluation` column
    marks, if there is one; otherwise each user's last basket. The last basket of the other rows is
    the validation basket. A last basket is held out only if the user has another one. With `by`
    item, every row counts as a basket.
    """
    part_R = np.full(len(log.item_R), SplitPart.TRAIN, np.int8)
    basket_R = np.arange(len(part_R)) if config.by == "item" else log.basket_numbers()
    split_time = config.at_timestamp()
    if split_time is not None:
        part_R[log.time_R >= split_time] = SplitPart.TEST
    elif config.test:
        flags_R = log.evaluation_flag_R
        test_R = _last_baskets(log, basket_R, part_R) if flags_R is None else flags_R
        part_R[test_R] = SplitPart.TEST
    if config.validation:
        part_R[_last_baskets(log, basket_R, part_R)] = SplitPart.VALIDATION
    return part_R


def has_marked_test_rows(log: InteractionLog, config: SplitConfig) -> bool:
    """Whether the test rows are those that an `evaluation` column marks."""
    return config.test and config.at is None and log.evaluation_flag_R is not None


def explain_empty_part(log: InteractionLog, config: SplitConfig, part: SplitPart) -> str:
    """Explains why the split holds out nobody for `part`, and what would help."""
    if not len(log.item_R):
        return "There are no interactions, so nobody is held out."
    name = "test" if part == SplitPart.TEST else "validation"
    if config.at is not None and part == SplitPart.TEST:
        first, last = (datetime.fromtimestamp(t, UTC) for t in (log.time_R.min(), log.time_R.max()))
        return (
            f"No user has items both before and from {config.at} on, so nobody is held out for "
            f"test (--split.at). The interactions are from {first:%Y-%m-%d} to {last:%Y-%m-%d}."
        )
    if log.evaluation_flag_R is not None and part == SplitPart.TEST:
        return (
            "The evaluation column marks no row of a user who also has other rows that are not "
            "later, so nobody is held out for test."
        )
    needed, which, is_counted_R = _requirement(log, config, part)
    unit = "items" if config.by == "item" else "baskets"
    text = f"No user has {needed} {unit}{which}, so nobody is held out for {name} (--split.{name})."
    if config.by != "item" and (log.items_where(is_counted_R).lengths >= needed).any():
        text += f" A basket is all that a user took in one second; {_same_timestamp(log)}"
        text += "--split.by item holds out single items instead."
    return text


def _requirement(
    log: InteractionLog, config: SplitConfig, part: SplitPart
) -> tuple[int, str, npt.NDArray[np.bool_]]:
    """What a user needs for a held-out basket of a part, and one to train on.

    Returns:
        The number of baskets, which baskets count (in words), and (R,) which rows count.
    """
    every_R = np.ones(len(log.item_R), bool)
    if part == SplitPart.TEST:
        return 2, "", every_R
    split_time, flags_R = config.at_timestamp(), log.evaluation_flag_R
    if split_time is not None:
        return 2, f" before {config.at} (--split.at)", log.time_R < split_time
    if config.test and flags_R is not None:
        return 2, " without a row that the evaluation column marks", ~flags_R
    return (3 if config.test else 2), "", every_R


def _same_timestamp(log: InteractionLog) -> str:
    first, last = int(log.time_R.min()), int(log.time_R.max())
    return f"all timestamps are {first}. " if first == last else ""


def _last_baskets(
    log: InteractionLog, basket_R: npt.NDArray[np.int64], part_R: npt.NDArray[np.int8]
) -> npt.NDArray[np.bool_]:
    """(R,) whether a row is in the last training basket of a user who has at least two.

    Args:
        log: the rows.
        basket_R: (R,) numbers that rise with each basket of a user.
        part_R: (R,) the parts so far; only training rows are considered.
    """
    training_R = part_R == SplitPart.TRAIN
    last_U = np.full(len(log.user_ids), -1)
    first_U = np.full(len(log.user_ids), len(basket_R))
    user_S, basket_S = log.user_R[training_R], basket_R[training_R]
    np.maximum.at(last_U, user_S, basket_S)
    np.minimum.at(first_U, user_S, basket_S)
    is_last_R = (basket_R == last_U[log.user_R]) & (last_U > first_U)[log.user_R]
    return np.asarray(training_R & is_last_R)


def select_held_out(
    log: InteractionLog, part_R: npt.NDArray[np.int8], part: SplitPart, config: SplitConfig
) -> HeldOut:
    """Selects the users with rows in `part` and a profile: rows of the parts before it that are
    not later than the first row in `part`.

    Args:
        log: the rows.
        part_R: (R,) what `split` returned.
        part: which part.
        config: what `split` was called with.
    """
    split_time = config.at_timestamp() if part == SplitPart.TEST else None
    may_cut = config.by == "item" or has_marked_test_rows(log, config)
    return _targets_and_profiles(log, part_R == part, part_R < part, split_time, may_cut)


def _targets_and_profiles(
    log: InteractionLog,
    target_R: npt.NDArray[np.bool_],
    profile_R: npt.NDArray[np.bool_],
    at: int | None,
    may_cut_baskets: bool,
) -> HeldOut:
    """Selects the users with targets and a profile.

    Args:
        log: the rows.
        target_R: (R,) which rows are targets.
        profile_R: (R,) which rows may be in profiles, if they are not later than the targets.
        at: the moment from which everything is a target, in seconds; None without one.
        may_cut_baskets: a row may be a target without the rest of its basket, because it is marked
            or a single item is held out.
    """
    user_R = log.user_R
    time_U = np.full(len(log.user_ids), np.iinfo(np.int64).max if at is None else at)
    if at is None:
        np.minimum.at(time_U, user_R[target_R], log.time_R[target_R])
    last_U = time_U if at is None and may_cut_baskets else time_U - 1
    targets = log.items_where(target_R)
    profiles = log.items_where(profile_R & (log.time_R <= last_U[user_R]))
    times = Jagged.from_row_ids(user_R[target_R], log.time_R[target_R], len(log.user_ids))
    user_E = np.flatnonzero((targets.lengths > 0) & (profiles.lengths > 0))
    return HeldOut(
        user_E,
        profiles.take(user_E),
        targets.take(user_E),
        time_U[user_E],
        times.take(user_E),
    )


# A model stores the pairs that its training held out, so that it is never evaluated on others.


def held_out_pairs(held_out: HeldOut, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    """The held-out rows as a table of `user_id` and `item_id`."""
    users = held_out.user_E[held_out.targets.row_ids]
    return pa.table(
        {
            "user_id": user_ids.take(pa.array(users)),
            "item_id": item_ids.take(pa.array(held_out.targets.values)),
        }
    )


@dataclass(frozen=True)
class RestoredSplit:
    """The split of a model's training, reconstructed from today's interactions.

    Attributes:
        log: the interactions up to the end of the training data.
        held_out: users with held-out rows and a profile.
        known_items: U lists of items of `log` that were not held out, which baselines are fitted
            to. As in training, they may be later than the user's targets.
        num_missing: held-out rows that are no longer in the interactions, or whose user has no
            profile.
    """

    log: InteractionLog
    held_out: HeldOut
    known_items: Jagged
    num_missing: int


def restore_split(
    log: InteractionLog,
    item_ids: pa.Array,
    pairs: pa.Table,
    last_timestamp: int,
    config: SplitConfig,
    *,
    is_marked: bool = False,
) -> RestoredSplit:
    """Splits interactions as a model's training did, whatever was added or removed since.

    Only rows that the training held out become targets. (A new split could hold out a basket that
    the model was trained on, if later rows have been removed.) Rows after the end of the training
    data are ignored.

    Args:
        log: the interactions now.
        item_ids: (N,) the catalogue that the log is coded against.
        pairs: what `held_out_pairs` returned in training.
        last_timestamp: the last timestamp of the training's interactions, in seconds.
        config: the configuration of the training's split.
        is_marked: whether an `evaluation` column marked the test rows of the training. Otherwise
            the column that the log has now changes nothing.
    """
    log = log.before(last_timestamp + 1)
    user_P, item_P = index_in(pairs["user_id"], log.user_ids), index_in(pairs["item_id"], item_ids)
    is_found_P = (user_P >= 0) & (item_P >= 0)
    pair_S = user_P[is_found_P] * len(item_ids) + item_P[is_found_P]
    target_R = np.isin(log.user_R * len(item_ids) + log.item_R, pair_S)
    split_time = config.at_timestamp()
    known_R = ~target_R
    # What users without a profile took then is no target, and was not known to training either.
    if split_time is not None:
        known_R &= log.time_R < split_time
    elif is_marked and log.evaluation_flag_R is not None:
        known_R &= ~log.evaluation_flag_R
    may_cut = config.by == "item" or is_marked
    held_out = _targets_and_profiles(log, target_R, known_R, split_time, may_cut)
    num_missing = len(pairs) - len(held_out.targets.values)
    return RestoredSplit(log, held_out, log.items_where(known_R), num_missing)
