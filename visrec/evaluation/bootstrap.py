"""Confidence intervals of means over users, and of differences between two models.

The bootstrap resamples the users with replacement, as many as there are, 1,000 times; the spread of
the means estimates what other users would give. All metrics of all models are averaged over the
same samples, so the difference between two models is paired (Sakai 2006): what makes a user hard
for both models cancels, and the interval of the difference is narrower than those of the means.

Shapes: B users, S samples, M pairs of a model and a metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Figures = dict[str, dict[str, float]]  # by metric

RESAMPLES = 1000
_CHUNK = 64  # samples at a time: 51 MB of counts for 100 k users


@dataclass(frozen=True)
class Resampled:
    """The means of each model's metrics, over the users and over every bootstrap sample.

    Attributes:
        users: how many users there are.
        mean: `{model: {metric: mean}}`.
        samples: `{model: {metric: (S,) means}}`, one per sample.
    """

    users: int
    mean: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Mapping[str, Floats]]

    def summary(self, model: str) -> Figures:
        """`{metric: {"mean", "low", "high", "n"}}`: low and high bound the 95 % interval."""
        return {
            metric: {"mean": mean, **_interval(self.samples[model][metric]), "n": self.users}
            for metric, mean in self.mean[model].items()
        }

    def difference(self, model: str, other: str) -> Figures:
        """By how much the first model exceeds the second, in every metric that both have.

        Returns:
            `{metric: {"mean", "low", "high", "above", "n"}}`: the mean difference, its 95 %
            interval, and the share of samples with a difference above 0; a difference of exactly 0
            counts half.
        """
        figures = {}
        for metric, mean in self.mean[model].items():
            if metric in self.mean[other]:
                sample_S = self.samples[model][metric] - self.samples[other][metric]
                above = float(np.mean(sample_S > 0) + np.mean(sample_S == 0) / 2)
                figures[metric] = {
                    "mean": mean - self.mean[other][metric],
                    **_interval(sample_S),
                    "above": above,
                    "n": self.users,
                }
        return figures


def _interval(sample_S: Floats) -> dict[str, float]:
    low, high = np.percentile(sample_S, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def resample(values: Mapping[str, Mapping[str, Floats]], seed: int = 0) -> Resampled:
    """Resamples the users, once for all models and metrics.

    Args:
        values: `{model: {metric: (B,) values}}`: one value per user, with the users in the same
            order everywhere.
        seed: the seed of the samples.
    """
    keys = [(model, metric) for model, metrics in values.items() for metric in metrics]
    value_MB = np.stack([values[model][metric] for model, metric in keys])
    users = value_MB.shape[1]
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, _CHUNK):
        chosen = random.integers(0, users, (min(_CHUNK, RESAMPLES - start), users))
        counts_SB = np.stack([np.bincount(row, minlength=users) for row in chosen])
        means.append(value_MB @ counts_SB.T / users)
    mean_MS = np.concatenate(means, axis=1)
    mean: dict[str, dict[str, float]] = {model: {} for model in values}
    samples: dict[str, dict[str, Floats]] = {model: {} for model in values}
    for m, (model, metric) in enumerate(keys):
        mean[model][metric] = float(value_MB[m].mean())
        samples[model][metric] = mean_MS[m]
    return Resampled(users, mean, samples)
