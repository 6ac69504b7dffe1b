"""What each part of the hybrid gives: it is trained again and again, without one part each time.

python -m benchmarks.ablation movies --source ../shared/data/movies --json
python -m benchmarks.ablation trends --seeds 1 --json -- --train.epochs 5 --train.refit false

Rows, paired differences and groups are those of `benchmarks.quality`; the first row is the whole
model. A part that no key turns off is turned off by weights that stay 0, as they begin: those of
some features of the activity, or those of the means in which recent items of a profile weigh more.
"""

import json
import sys
from collections.abc import Callable, Iterator

import torch
from jsonargparse import ArgumentError
from torch import nn

from benchmarks.machine import machine
from benchmarks.quality import asked, data_parser, group_table, measure, table
from visrec.config import plain
from visrec.errors import VisrecError
from visrec.interactions.activity import ACTIVITY_FEATURES, WINDOW_DAYS
from visrec.models import MODELS
from visrec.models.base import Sizes
from visrec.models.hybrid import Hybrid, HybridConfig

# Gives weights of a hybrid, and which of their rows or columns stay 0.
Frozen = Callable[[Hybrid], Iterator[tuple[nn.Parameter, tuple[slice, ...]]]]

BY_KEY = {
    "without own vectors": "--model.vector_dropout=1",
    "own vectors never dropped": "--model.vector_dropout=0",
    "without activity": "--model.activity_dropout=1",
    "activity never dropped": "--model.activity_dropout=0",
    "features never dropped": "--model.feature_dropout=0",
    "without EASE": "--model.ease_rank=0",
}


def activity_features(first: int, end: int) -> Frozen:
    """The weights of some features of the activity, for `hybrid_without`."""

    def weights(model: Hybrid) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
        for parameter in model.activity_weights.parameters():
            yield parameter, (slice(first, end),)

    return weights


def recency_means(model: Hybrid) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
    """The weights of the means in which recent items weigh more, for `hybrid_without`."""
    first_HF = next(model.user_tower.parameters())
    # The input of the user tower is the maximum, the mean and two recency means, d numbers each.
    yield first_HF, (slice(None), slice(first_HF.shape[1] // 2, None))


SHORT = sum(days <= 7 for days in WINDOW_DAYS)
BY_WEIGHTS: dict[str, Frozen] = {
    "without counts": activity_features(0, len(WINDOW_DAYS)),
    "without counts of up to 7 days": activity_features(0, SHORT),
    "without counts of more than 7 days": activity_features(SHORT, len(WINDOW_DAYS)),
    "without age": activity_features(len(WINDOW_DAYS), ACTIVITY_FEATURES - 1),
    "without times of the profile": recency_means,
}


def hybrid_without(frozen: Frozen) -> type[Hybrid]:
    """A hybrid of which some weights stay 0."""

    class Without(Hybrid):
        def __init__(self, config: HybridConfig, sizes: Sizes) -> None:
            super().__init__(config, sizes)
            for parameter, index in frozen(self):
                if not parameter.is_meta and parameter[index].any():
                    raise ValueError("expected weights that begin as 0")
                mask = torch.ones_like(parameter)
                mask[index] = 0
                parameter.register_hook(mask.mul)

    return Without


def variants() -> dict[str, list[str]]:
    """The flags of jobs/train.py for each row; adds the models that they name to `MODELS`."""
    rows = {"hybrid": ["--model.name=hybrid"]}
    rows |= {name: ["--model.name=hybrid", flag] for name, flag in BY_KEY.items()}
    for name, frozen in BY_WEIGHTS.items():
        model = f"hybrid_{name.replace(' ', '_')}"
        MODELS[model] = hybrid_without(frozen)
        rows[name] = [f"--model.name={model}"]
    return rows


def main() -> None:
    args, base, flags = asked(data_parser(__doc__ or ""))
    try:
        found = measure([*base, *flags], variants(), range(args.seeds))
    except (VisrecError, ArgumentError) as error:
        sys.exit(f"ablation: {error}")
    print(f"\n{args.data}: {found['users']:,} users held out, {found['items']:,} items\n")
    print(f"{table(found)}\n{group_table(found['groups'])}")
    if args.json:
        print(json.dumps(plain({"asked": {**vars(args), "flags": flags}, **machine(), **found})))


if __name__ == "__main__":
    main()
