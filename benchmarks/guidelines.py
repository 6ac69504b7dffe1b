"""The sampling guidelines of the CuratorNet paper against random sampling, as in its figure 4.

python -m benchmarks.guidelines ugallery
python -m benchmarks.guidelines ugallery --only curatornet --settings visrec --json

Both ways of sampling train the same model with the same number of triples. With `--settings paper`
(the default), models are trained as in the paper, as far as this machine allows: BPR with a
negative for each triple, nothing dropped, and the positive stays in the profile. With `visrec`,
they have their defaults: a softmax over the catalogue. Neither is refitted. VBPR has no vector for
the profile of a single item, which is nobody's, so it takes the four guidelines that have users.

Messina et al. 2020 (arXiv 2009.04426) report an AUC of about 0.72 against 0.66 for CuratorNet, and
of 0.66 against 0.59 for VBPR, on the shop whose size the scenario ugallery has.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError

from benchmarks.machine import machine
from benchmarks.quality import asked, data_parser, measure, table
from visrec.config import plain
from visrec.errors import VisrecError
from visrec.sampling.guidelines import ANONYMOUS_GUIDELINES, GUIDELINES

PUBLISHED = {
    "curatornet": {"guidelines": 0.72, "random": 0.66},
    "vbpr": {"guidelines": 0.66, "random": 0.59},
}
SHOWN = ("auc", "recall@20", "ndcg@20", "recall@100")
# Flags of jobs/train.py for each of --settings, and for each model under them.
SETTINGS: dict[str, dict[str, list[str]]] = {
    "paper": {
        "all": [
            *("--sampling.negatives=drawn", "--sampling.keep_positive_in_profile=true"),
            *("--sampling.sub_profiles=false", "--model.temperature=1"),
            *("--train.epochs=12", "--train.refit=false"),
        ],
        "curatornet": ["--model.feature_dropout=0"],
        "vbpr": [],
    },
    "visrec": {"all": ["--train.refit=false"], "curatornet": [], "vbpr": []},
}


def variants(model: str, settings: str) -> dict[str, list[str]]:
    """Flags of jobs/train.py for the two ways of sampling."""
    names = [name for name in GUIDELINES if name != "random"]
    if model == "vbpr":
        names = [name for name in names if name not in ANONYMOUS_GUIDELINES]
    guidelines = ", ".join(f"{name}: 1" for name in names)
    flags = [*SETTINGS[settings]["all"], *SETTINGS[settings][model], "--model.name", model]
    flags.append("--split.by=basket")  # ranked among all items, as in the paper
    return {
        f"{model}_random": flags,
        f"{model}_guidelines": [*flags, f"--sampling.guidelines={{{guidelines}}}"],
    }


def figures(model: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure` found as flat keys: means, their differences and intervals of these."""
    flat: dict[str, Any] = {}
    for name in (f"{model}_guidelines", f"{model}_random"):
        row = found["models"][name]
        flat |= {f"{name}_{metric}": row[metric]["mean"] for metric in SHOWN}
        flat[f"{name}_auc_spread"] = row["auc"]["spread"]
    for metric, figure in found["paired"][f"{model}_guidelines - {model}_random"].items():
        name = f"{model}_guidelines_minus_random_{metric}"
        flat[name] = figure["mean"]
        flat[f"{name}_interval"] = [figure["low"], figure["high"]]
    return flat


def main() -> None:
    parser = data_parser(__doc__ or "")
    parser.add_argument("--only", choices=PUBLISHED, help="one of the models (both)")
    parser.add_argument("--settings", choices=SETTINGS, default="paper", help="(paper)")
    args, base, flags = asked(parser)
    told: dict[str, Any] = {"asked": {**vars(args), "flags": flags}, **machine()}
    told["published"] = PUBLISHED
    for model in [args.only] if args.only else PUBLISHED:
        try:
            found = measure([*base, *flags], variants(model, args.settings), range(args.seeds))
        except (VisrecError, ArgumentError) as error:
            sys.exit(f"guidelines: {error}")
        print(f"\n{args.data}: {found['users']:,} users held out, {found['items']:,} items\n")
        print(table(found), flush=True)
        of_paper = " against ".join(f"{auc:.2f}" for auc in PUBLISHED[model].values())
        print(f"published AUC of {model}, guidelines against random: {of_paper}", flush=True)
        told |= {**figures(model, found), f"{model}_fits": found["fits"]}
        told |= {f"{name}_auc": row["auc"]["mean"] for name, row in found["models"].items()}
    if args.json:
        print(json.dumps(plain(told)))


if __name__ == "__main__":
    main()
