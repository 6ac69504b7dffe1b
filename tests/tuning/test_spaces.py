"""Search spaces: sampled values lie in them, and what cannot be searched is refused by name."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CHECKOUT
from visrec.cli.parse import parse
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.models.curatornet import CuratorNetConfig
from visrec.pipelines.train import TrainJob, training_recipe
from visrec.sampling.triples import SamplingConfig
from visrec.training.fit import TrainingRecipe
from visrec.training.loop import TrainConfig
from visrec.tuning.spaces import (
    Choice,
    Range,
    check_space,
    load_space,
    sample_values,
    values_in,
    with_values,
)

RECIPE = TrainingRecipe("curatornet", CuratorNetConfig(), TrainConfig(), SamplingConfig())
RATE = Range(1e-4, 1e-2, log=True)


def load(folder: Path, text: str) -> Any:
    (folder / "space.yaml").write_text(text)
    return load_space(str(folder / "space.yaml"))


def test_space_is_read_as_written(tmp_path: Path) -> None:
    text = (
        "train.weight_decay: {uniform: [0, 0.5]}\n"
        "train.learning_rate: {log_uniform: [1.0e-4, 0.01]}\n"
        "train.precision: {choice: [float32, bfloat16]}\n"
    )
    space = load(tmp_path, text)
    assert space == {
        "train.learning_rate": RATE,
        "train.precision": Choice(("float32", "bfloat16")),
        "train.weight_decay": Range(0.0, 0.5, log=False),
    }
    check_space(space, RECIPE)


SPACES = sorted(path.stem for path in (CHECKOUT / "tune_spaces").glob("*.yaml"))


def test_every_model_that_trains_has_a_space() -> None:
    trains = {name for name, model in MODELS.items() if model.trains_on != "nothing"}
    assert {name.removesuffix("-wide") for name in SPACES} == trains


@pytest.mark.parametrize("name", SPACES)
def test_shipped_space_fits_its_model(name: str) -> None:
    recipe = training_recipe(parse(TrainJob, ["--model.name", name.removesuffix("-wide")]))
    space = load_space(str(CHECKOUT / "tune_spaces" / f"{name}.yaml"))
    assert {"train.learning_rate", "train.weight_decay"} <= set(space)
    check_space(space, recipe)
    for key, value in values_in(space, recipe).items():
        assert space[key].contains(value), f"the default of {key} is outside the space"
    # From a decay that is next to nothing to one that leaves nothing of the initial weights.
    decay = space["train.weight_decay"]
    assert isinstance(decay, Range)
    rate, steps = recipe.train.learning_rate, 1600
    assert (1 - rate * decay.low) ** steps > 0.8
    assert (1 - rate * decay.high) ** steps < 1e-6


BAD_FILES = {
    "empty file": ("", ["no search space", "--space"]),
    "a list": ("- train.learning_rate", ["no search space"]),
    "not YAML": ("train: [", ["not YAML", "--space"]),
    "no domain": ("train.learning_rate: 0.1", ["train.learning_rate: 0.1", "log_uniform"]),
    "unknown kind": ("train.learning_rate: {normal: [0, 1]}", ["normal", "choice"]),
    "two kinds": ("train.learning_rate: {uniform: [0, 1], choice: [1]}", ["expected one of"]),
    "no list": ("train.learning_rate: {choice: 3}", ["choice: 3", "a list"]),
    "a number as key": ("1: {choice: 3}\ntrain.seed: {choice: [1]}", ["1: choice: 3", "a list"]),
    "empty choice": ("train.precision: {choice: []}", ["train.precision", "at least one"]),
    "one bound": ("train.learning_rate: {uniform: [1]}", ["two numbers"]),
    "words": ("train.learning_rate: {log_uniform: [1e-4, 1e-2]}", ["'1e-4'", "write 1.0e-4"]),
    "a flag as bound": ("train.learning_rate: {uniform: [false, true]}", ["two numbers"]),
    "no width": ("train.learning_rate: {uniform: [1, 1]}", ["lower bound below"]),
    "wrong way": ("train.learning_rate: {uniform: [2, 1]}", ["lower bound below"]),
    "infinite": ("train.learning_rate: {uniform: [1, .inf]}", ["finite"]),
    "logarithm of 0": ("train.learning_rate: {log_uniform: [0, 1]}", ["above 0"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused(tmp_path: Path, case: str) -> None:
    text, words = BAD_FILES[case]
    with pytest.raises(InputError) as refusal:
        load(tmp_path, text)
    assert refusal.value.key == "space"
    for word in words:
        assert word in str(refusal.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml.*--space"):
        load_space(str(tmp_path / "nowhere.yaml"))


def test_yaml_tag_that_would_run_code_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(InputError, match="not YAML"):
        load(tmp_path, f"train.seed: !!python/object/apply:os.mkdir ['{made}']")
    assert not made.exists()


BAD_KEYS = {
    "unknown key": ("train.learning_rat", RATE, ["'train.learning_rat'", "train.learning_rate"]),
    "unknown section": ("split.test", Choice((True,)), ["'split.test'"]),
    "no section": ("learning_rate", RATE, ["'learning_rate'"]),
    "another model's": ("model.mode", Choice(("max",)), ["'model.mode'", "curatornet"]),
    "the budget": ("train.epochs", Choice((3, 9)), ["'train.epochs'"]),
    "range of a whole number": ("train.batch_size", Range(64.0, 512.0, log=True), ["64.0", "int"]),
    "a word for a number": ("train.learning_rate", Choice((0.1, "1e-3")), ["'1e-3'", "float"]),
    "a flag for a number": ("train.batch_size", Choice((True,)), ["True", "int"]),
    "unknown word": ("train.precision", Choice(("float64",)), ["'float64'"]),
    "refused low end": ("model.temperature", Range(0.0, 2.0, log=False), ["--model.temperature"]),
    "refused high end": (
        "model.feature_dropout",
        Range(0.1, 1.0, log=False),
        ["model.feature_dropout 1.0", "expected a number in [0, 1)"],
    ),
    "refused choice": (
        "train.batch_size",
        Choice((64, 0)),
        ["train.batch_size 0", "expected a whole"],
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_space_that_the_configuration_refuses_is_refused(case: str) -> None:
    key, domain, words = BAD_KEYS[case]
    with pytest.raises(InputError) as refusal:
        check_space({key: domain}, RECIPE)
    assert refusal.value.key == "space"
    for word in words:
        assert word in str(refusal.value)


def test_whole_number_is_accepted_for_a_float() -> None:
    check_space({"train.learning_rate": Choice((1, 0.5))}, RECIPE)


@given(
    bounds=st.tuples(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12)).filter(lambda b: b[0] < b[1]),
    log=st.booleans(),
    seed=st.integers(0, 2**32),
    number=st.integers(0, 10_000),
)
def test_sampled_values_lie_in_the_space_and_are_reproducible(
    bounds: tuple[float, float], log: bool, seed: int, number: int
) -> None:
    space = {"a": Range(*bounds, log=log), "b": Choice((3, "x"))}
    values = sample_values(space, seed, number)
    assert bounds[0] <= values["a"] <= bounds[1]
    assert values["b"] in (3, "x")
    assert all(space[key].contains(value) for key, value in values.items())
    assert sample_values(space, seed, number) == values


def test_rounding_does_not_leave_the_range() -> None:
    assert math.exp(math.log(0.1)) > 0.1
    at_the_end = SimpleNamespace(uniform=lambda _, high: high)
    assert Range(1e-3, 0.1, log=True).sample(at_the_end) == 0.1  # type: ignore[arg-type]


def test_values_are_uniform_on_the_scale_of_the_space() -> None:
    space = {
        "log": Range(1e-4, 1.0, log=True),
        "flat": Range(1.0, 3.0, log=False),
        "one": Choice((1, 2)),
    }
    sampled = [sample_values(space, 0, number) for number in range(2000)]
    # Medians: 1e-2 on a logarithmic scale, 2 on a flat one. The standard error is about 0.011 of
    # the range.
    assert math.log10(np.median([v["log"] for v in sampled])) == pytest.approx(-2, abs=0.2)
    assert np.median([v["flat"] for v in sampled]) == pytest.approx(2, abs=0.1)
    assert sum(v["one"] == 1 for v in sampled) == pytest.approx(1000, abs=100)


def test_each_seed_and_number_gives_other_values() -> None:
    sampled = {
        sample_values({"a": RATE}, seed, number)["a"]
        for seed, number in [(0, 1), (0, 2), (1, 1), (1, 2), (2, 0), (0, 0)]
    }
    assert len(sampled) == 6


def test_values_replace_those_of_the_recipe() -> None:
    values = {"train.learning_rate": 0.5, "train.seed": 4, "model.item_width": 7}
    changed = with_values(RECIPE, values)
    assert values_in(dict.fromkeys(values, RATE), changed) == values
    assert changed.train == dataclasses.replace(RECIPE.train, learning_rate=0.5, seed=4)
    assert changed.model_config == dataclasses.replace(RECIPE.model_config, item_width=7)
    assert changed.sampling == RECIPE.sampling
    assert with_values(RECIPE, {}) == RECIPE


def test_sampled_values_survive_yaml() -> None:
    for number in range(100):
        values = sample_values({"train.learning_rate": Range(1e-9, 1e9, log=True)}, 0, number)
        assert yaml.safe_load(yaml.safe_dump(dict(values))) == values
