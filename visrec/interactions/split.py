"""The honest split: what training sees, what it is chosen by, what it is judged by."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.config import check_fields
from visrec.ids import rows_of
from visrec.interactions.log import InteractionLog
from visrec.jagged import Jagged


class Part(IntEnum):
    """Where a row of the log belongs."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is held out from training.

    Attributes:
        test: hold out the last basket of each user with at least two, for jobs/evaluate.py.
        validation: hold out the basket before it (where there are three), to choose the epoch by.
        by: what is held out whole: basket is all of a user's items of one moment; item is one item,
            as leave-one-out in the literature has it (of items of one moment, the last by id).
    """

    test: bool = True
    validation: bool = True
    by: Literal["basket", "item"] = "basket"

    def __post_init__(self) -> None:
        check_fields(self, "split")


@dataclass(frozen=True)
class HeldOut:
    """Users to rank for, what is known of them, and what they went on to take.

    Args:
        user_E: (E,) rows of the log's users.
        profiles: E lists of items known before.
        targets: E lists of held-out items.
    """

    user_E: npt.NDArray[np.int64]
    profiles: Jagged
    targets: Jagged

    def __len__(self) -> int:
        return len(self.user_E)

    def take(self, rows: npt.NDArray[np.int64]) -> "HeldOut":
        return HeldOut(self.user_E[rows], self.profiles.take(rows), self.targets.take(rows))


def split(log: InteractionLog, config: SplitConfig) -> npt.NDArray[np.int8]:
    """(R,) the `Part` of each row, per user in time order.

    An `evaluation` column decides the test rows where there is one; validation then is the last
    basket of the rest. Users with one basket train only. By item, every row is a basket.
    """
    part_R = np.full(len(log.item_R), Part.TRAIN, np.int8)
    basket_R = log.basket_R() if config.by == "basket" else np.arange(len(part_R))
    marked = log.evaluation_R is not None
    if config.test:
        part_R[log.evaluation_R if marked else _last_baskets(log, basket_R, part_R)] = Part.TEST
    if config.validation:
        part_R[_last_baskets(log, basket_R, part_R)] = Part.VALIDATION
    return part_R


def why_nobody(log: InteractionLog, config: SplitConfig, part: Part) -> str:
    """Why the split has nobody in `part`, in words."""
    if not len(log.item_R):
        return "There are no interactions, so nobody is held out."
    name = "test" if part == Part.TEST else "validation"
    needed = 2 + (part == Part.VALIDATION and config.test)
    unit = "baskets" if config.by == "basket" else "items"
    text = f"No user has {needed} {unit}, so nobody is held out for {name} (--split.{name})."
    if log.evaluation_R is not None and part == Part.TEST:
        text = (
            "The evaluation column marks no row of a user who has other rows before it, so nobody "
            "is held out for test."
        )
    elif config.by == "basket" and (log.items.lengths >= needed).any():
        text += f" A basket is all that a user took at one second; {_times(log)}"
        text += "--split.by item holds out single items instead."
    return text


def _times(log: InteractionLog) -> str:
    first, last = int(log.time_R.min()), int(log.time_R.max())
    return f"all timestamps are {first}. " if first == last else ""


def _last_baskets(
    log: InteractionLog, basket_R: npt.NDArray[np.int64], part_R: npt.NDArray[np.int8]
) -> npt.NDArray[np.bool_]:
    """(R,) rows of the last training basket of each user who has at least two.

    Args:
        log: the rows.
        basket_R: numbers that rise with a user's baskets, from any start.
        part_R: which rows are training rows as yet.
    """
    training_R = part_R == Part.TRAIN
    last_U = np.full(len(log.user_ids), -1)
    first_U = np.full(len(log.user_ids), len(basket_R))
    users = log.user_R[training_R]
    np.maximum.at(last_U, users, basket_R[training_R])
    np.minimum.at(first_U, users, basket_R[training_R])
    last_R = (basket_R == last_U[log.user_R]) & (last_U > first_U)[log.user_R]
    return np.asarray(training_R & last_R)


def held_out(log: InteractionLog, part_R: npt.NDArray[np.int8], part: Part) -> HeldOut:
    """The users with rows in `part` and with a profile from the parts before it."""
    return _with_profiles(log, part_R == part, part_R < part)


def _with_profiles(
    log: InteractionLog, target_R: npt.NDArray[np.bool_], profile_R: npt.NDArray[np.bool_]
) -> HeldOut:
    targets, profiles = log.where(target_R), log.where(profile_R)
    user_E = np.flatnonzero((targets.lengths > 0) & (profiles.lengths > 0))
    return HeldOut(user_E, profiles.take(user_E), targets.take(user_E))


# What a model keeps of its split, so that nothing else is ever held against it.


def held_out_pairs(held: HeldOut, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    """The held-out rows by their ids: `user_id` and `item_id`."""
    return pa.table(
        {
            "user_id": user_ids.take(pa.array(held.user_E[held.targets.owners])),
            "item_id": item_ids.take(pa.array(held.targets.values)),
        }
    )


@dataclass(frozen=True)
class RecordedSplit:
    """The rows that a model's training held out, found again in interactions of any later moment.

    Args:
        held: users with held-out rows and a profile.
        known: U lists of what was known when the model was trained, the held-out rows apart.
        missing: held-out rows that are not in the interactions now, or whose user has no profile.
    """

    held: HeldOut
    known: Jagged
    missing: int


def recorded_split(
    log: InteractionLog, item_ids: pa.Array, pairs: pa.Table, last_timestamp: int
) -> RecordedSplit:
    """Splits interactions as a model's training did, whatever was added or removed since.

    Only rows that the training held out become targets: of a log that ends earlier now, the last
    baskets are rows that the model was trained on. Rows after the training's last one are ignored.

    Args:
        log: the interactions now.
        item_ids: (N,) the catalogue that the log is coded against.
        pairs: what `held_out_pairs` recorded.
        last_timestamp: of the training's interactions, in seconds.
    """
    user_P, item_P = rows_of(pairs["user_id"], log.user_ids), rows_of(pairs["item_id"], item_ids)
    found_P = (user_P >= 0) & (item_P >= 0)
    pair_P = user_P[found_P] * len(item_ids) + item_P[found_P]
    target_R = np.isin(log.user_R * len(item_ids) + log.item_R, pair_P)
    known_R = ~target_R & (log.time_R <= last_timestamp)
    held = _with_profiles(log, target_R, known_R)
    return RecordedSplit(held, log.where(known_R), len(pairs) - len(held.targets.values))
