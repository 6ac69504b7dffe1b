"""A configuration's plain form and digest; which values each field of each one can have."""

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from visrec.cli.job import JobConfig
from visrec.config import check_fields, digest, plain
from visrec.errors import InputError
from visrec.features.clusters import ClusterConfig
from visrec.models import MODELS
from visrec.training.fit import TrainingRecipe
from visrec.tuning.spaces import Choice, Range, check_space


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    parts: dict[str, Inner] = field(default_factory=lambda: {"a": Inner()})
    path: str | None = None


class Layout(StrEnum):
    NESTED = "nested"


def test_plain_is_what_json_can_hold() -> None:
    inner = {"rate": 0.1, "sizes": [1, 2]}
    expected = {"name": "x", "inner": inner, "parts": {"a": inner}, "path": None}
    assert plain(Outer()) == expected
    assert json.loads(json.dumps(plain(Outer()))) == expected
    assert plain([Inner(), (Inner(),)]) == [inner, [inner]]


def test_plain_leaves_scalars_and_classes_alone() -> None:
    assert plain(Layout.NESTED) is Layout.NESTED
    assert plain(Inner) is Inner
    assert [plain(value) for value in (1, 2.5, "a", None, True)] == [1, 2.5, "a", None, True]


@pytest.mark.parametrize(
    "other",
    [
        replace(Outer(), name="y"),
        replace(Outer(), path="x"),
        replace(Outer(), inner=Inner(rate=0.2)),
        replace(Outer(), inner=Inner(sizes=(2, 1))),
        replace(Outer(), parts={"b": Inner()}),
        replace(Outer(), parts={"a": Inner(), "b": Inner()}),
    ],
)
def test_the_digest_changes_with_any_field(other: Outer) -> None:
    assert digest(other) != digest(Outer())


def test_the_digest_is_stable() -> None:
    # A known value: a run id or a resumed run from yesterday must still be found tomorrow.
    # `printf '[{"a": 1, "b": [2, null]}]' | sha256sum`
    assert digest({"b": (2, None), "a": 1}) == "9d10a9653b7f8d8d"
    assert digest(Outer()) == digest(Outer())


def test_the_digest_tells_its_values_apart() -> None:
    assert digest("a", "b") != digest("ab")
    assert digest("a", "b") != digest("b", "a")
    assert digest() != digest(None)
    infinite = float("inf")
    numbers = [None, infinite, -infinite, float("nan"), "Infinity", "NaN", 1.0, 1]
    assert len({digest({"min_stock": number}) for number in numbers}) == len(numbers)


# Which values each field of each configuration can have. The fields are found by reflection: one
# that is added without a check takes a NaN, and fails here.

JOBS = [path.stem for path in (Path(__file__).parents[1] / "jobs").glob("[a-z]*.py")]
REQUIRED = {
    "ImportFeaturesJob": {"backbone": "resnet50"},
    "ImportDataJob": {"format": "retail", "path": "orders.csv"},
    "ForgetJob": {"users": "leaving.txt"},
}
# Numbers that are never a value, whatever they mean.
NEVER = (float("nan"), float("inf"), -float("inf"), 10**30, True, "many")
# A rating or a stock may be any finite number.
ANY_FINITE = {"InteractionsConfig.min_rating", "RulesConfig.min_stock"}
# A learning rate may be any finite number above 0: training with it diverges, and says so.
LARGE = ANY_FINITE | {"TrainConfig.learning_rate"}
MINUS_ONE = ANY_FINITE | {"GatesConfig.min_gain", "SamplingConfig.popularity"}
ZERO = MINUS_ONE | {
    *(
        "CuratorNetConfig.feature_dropout",
        "HybridConfig.activity_dropout",
        "HybridConfig.ease_rank",
        "HybridConfig.feature_dropout",
        "HybridConfig.vector_dropout",
        "VbprConfig.width",
    ),
    *("ConvNcfConfig.product_weight", "EmbeddingMlpConfig.untaken", "MultiVaeConfig.dropout"),
    *("MultiVaeConfig.kl_weight", "TrainConfig.weight_decay", "TrainConfig.warmup_steps"),
    *("TrainConfig.ema_decay", "TrainConfig.lr_patience", "TrainResources.max_failures"),
    *("SamplingConfig.own_cluster", "NightlyJob.train_every"),
    *("ExtractJob.max_rejected", "ImportFeaturesJob.max_rejected", "EvaluateJob.examples"),
    *("DoctorJob.users", "DoctorJob.items", "DoctorJob.feature_dim"),
    "InteractionsConfig.max_incomplete",
}


def configurations() -> dict[str, Any]:
    """Every configuration by its name: those of jobs, all that these hold, and all models'."""
    for name in JOBS:
        importlib.import_module(f"visrec.pipelines.{name}")
    waiting: list[Any] = [JobConfig, ClusterConfig, *(model.Config for model in MODELS.values())]
    found: dict[str, Any] = {}
    while waiting:
        kind = waiting.pop()
        if kind.__module__.startswith("visrec.") and kind.__name__ not in found:
            found[kind.__name__] = kind
            waiting += kind.__subclasses__()
            waiting += [hint for hint in get_type_hints(kind).values() if is_dataclass(hint)]
    return found


def numeric_fields() -> Iterator[tuple[Any, str]]:
    for kind in configurations().values():
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is not Literal and {int, float} & {hint, *get_args(hint)}:
                yield kind, name


def literal_fields() -> Iterator[tuple[Any, str]]:
    for kind in configurations().values():
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal:
                yield kind, name


def made(kind: Any, name: str, value: Any) -> Any:
    if get_origin(get_type_hints(kind)[name]) is dict:
        value = {"random": value}
    return kind(**{**REQUIRED.get(kind.__name__, {}), name: value})


def takes(kind: Any, name: str, value: Any) -> bool:
    """Whether a field can have the value; a refusal names the key and what was expected."""
    try:
        made(kind, name, value)
    except InputError as refusal:
        said = str(refusal)
    else:
        return True
    assert re.match(rf"Found --([a-z]+\.)?{name}[ .].*; expected ", said)
    return False


def taking(value: Any) -> set[str]:
    """The numeric fields that can have a value."""
    found = ((kind, name) for kind, name in numeric_fields() if takes(kind, name, value))
    return {f"{kind.__name__}.{name}" for kind, name in found}


def test_all_configurations_are_found() -> None:
    found = configurations()
    assert {"TrainJob", "TuneJob", "SamplingConfig", "GatesConfig", "PictureLimits"} <= found.keys()
    assert len(list(numeric_fields())) > 90
    assert {f.name for f in fields(found["TrainConfig"])} >= {"weight_decay", "lr_factor"}


@pytest.mark.parametrize("value", NEVER, ids=str)
def test_numeric_fields_refuse_what_is_never_a_value(value: Any) -> None:
    taken = {
        f"{kind.__name__}.{name}" for kind, name in numeric_fields() if takes(kind, name, value)
    }
    assert taken == (LARGE if value == 10**30 else set())


@pytest.mark.parametrize(("value", "fine"), [(-1, MINUS_ONE), (0, ZERO)])
def test_numeric_fields_take_minus_one_and_zero_where_they_mean_something(
    value: int, fine: set[str]
) -> None:
    taken = {
        f"{kind.__name__}.{name}" for kind, name in numeric_fields() if takes(kind, name, value)
    }
    # A share or a count of 0 is a gate at its strictest, or its laxest.
    always = {name for name in taken if name.endswith((".seed", ".score_penalty"))}
    always |= {name for name in taken if name.startswith("GatesConfig.")}
    assert taken - always == fine - always


def test_whole_numbers_have_no_fraction() -> None:
    for kind, name in numeric_fields():
        hint = get_type_hints(kind)[name]
        assert takes(kind, name, 8.5) <= (float in {hint, *get_args(hint)}), (kind, name)


def test_literal_fields_refuse_other_words() -> None:
    assert not [(kind, name) for kind, name in literal_fields() if takes(kind, name, "??")]


def test_defaults_are_values() -> None:
    for kind in configurations().values():
        kind(**REQUIRED.get(kind.__name__, {}))


@dataclass(frozen=True, kw_only=True)
class Checked:
    share: float = 0.5
    count: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "x", share="[0, 1)", count="[1, 9]")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.0}, "Found --x.share 1.0; expected a number in [0, 1)."),
        ({"share": -1e-9}, "Found --x.share -1e-09; expected a number in [0, 1)."),
        ({"count": 0}, "Found --x.count 0; expected a whole number in [1, 9]."),
        ({"count": 10}, "Found --x.count 10; expected a whole number in [1, 9]."),
    ],
)
def test_refused_value_names_key_value_and_interval(values: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Checked(**values)
    assert str(raised.value) == message


@pytest.mark.parametrize("values", [{"share": 0}, {"share": 0.999}, {"count": 1}, {"count": 9}, {}])
def test_ends_of_an_interval_are_in_it_where_the_bracket_says_so(values: Any) -> None:
    Checked(**values)


@pytest.mark.parametrize(
    ("name", "key", "domain"),
    [
        ("vbpr", "train.weight_decay", Range(-1.0, 1e-2, log=False)),
        ("vbpr", "train.lr_factor", Range(0.5, 1.5, log=False)),
        ("vbpr", "model.width", Choice((64, -1))),
        ("curatornet", "model.item_width", Choice((0, 128))),
        ("multivae", "model.kl_weight", Range(-5.0, 1.0, log=False)),
        ("curatornet", "train.warmup_steps", Choice((0, -5))),
        ("curatornet", "sampling.own_cluster", Range(0.5, 1.5, log=False)),
    ],
)
def test_space_with_a_value_that_can_never_be_is_refused(name: str, key: str, domain: Any) -> None:
    hold = configurations()
    recipe = TrainingRecipe(
        name, MODELS[name].Config(), hold["TrainConfig"](), hold["SamplingConfig"]()
    )
    with pytest.raises(InputError, match=rf"The search space gives {key} .*: Found --{key} "):
        check_space({key: domain}, recipe)
