"""AUC against published implementations, on the same split and the same features.

python -m benchmarks.peers --source ../shared/data/movies
python -m benchmarks.peers --source ../shared/data/movies --peers_python a/bin/python b/bin/python
python -m benchmarks.peers --source ../shared/data/movies --models vbpr bpr_mf --seeds 3 --json

Compared are VBPR and MultiVAE (there VAECF) of Cornac, BPR-MF of implicit, and MultiVAE and ConvNCF
of RecBole. Each side tries the same number of settings; the one with the highest validation AUC is
refitted on training and validation items and tested once per seed, with visrec's own ranking. Sizes
of vectors and layers are equal on both sides. visrec picks its epoch by validation, as always; a
peer's number of epochs is one of its settings. Intervals come from resampling users, values are
means over the seeds. `_s` is the mean time of the tested fits; a peer's includes its imports and
its scoring.

Cornac 3.0.1 needs numpy 2 or later. RecBole 1.2.1 does not start with it (np.float_), nor with
pandas 3 or setuptools 81 and later (its Ray imports pkg_resources). So each peer runs as a process
of its own, in the first interpreter of `--peers_python` in which it works; a peer that works in
none is left out, with the reason. Two environments cover all peers:

    pip install torch==2.13.0 cornac implicit
    pip install torch==2.13.0 recbole 'numpy<2' 'pandas<3' 'setuptools<81'

Cornac 3.0.1's VBPR adds visual biases of shape (B, 1) to scores of shape (B,), so that every
example's bias reaches every other example. `cornac` is the package as released; `cornac_mended`
adds biases of shape (B,).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

if "--peer" not in sys.argv:  # the interpreter of a peer has no visrec
    import torch

    from benchmarks.machine import machine
    from benchmarks.quality import movies
    from visrec.cli.parse import parse
    from visrec.config import plain
    from visrec.evaluation.bootstrap import resample
    from visrec.interactions.read import build_log
    from visrec.interactions.split import HeldOut, SplitPart, select_held_out, split
    from visrec.models.feature_scale import FeatureScale
    from visrec.models.scorers import DotScorer
    from visrec.pipelines.job_tables import interactions_uri
    from visrec.pipelines.train import TrainJob, training_inputs, training_recipe
    from visrec.retrieval.metrics import per_user
    from visrec.retrieval.ranks import rank_targets
    from visrec.sources.interactions import read_interactions
    from visrec.storage.store import Store
    from visrec.training.data import TrainingData, load_training_data
    from visrec.training.fit import build_trainer, train_to_end
    from visrec.training.loop import Trainer
    from visrec.training.validation import held_out_aucs

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
Given = Mapping[str, npt.NDArray[Any]]  # user_R, item_R, shape, feature_ND, user_E

# The convolutions' sizes on both sides: the paper's 64 would take hours on a core.
CONV_WIDTH, CONV_CHANNELS = 32, 32

# Flags of jobs/train.py: what all of a model's settings share, and the settings.
SHARED: dict[str, list[str]] = {
    "convncf": [f"--model.width={CONV_WIDTH}", "--train.validation_users=100", "--train.epochs=6"],
}
SETTINGS: dict[str, list[list[str]]] = {
    "vbpr": [
        [],
        ["--train.weight_decay=10"],
        ["--train.learning_rate=2e-3"],
        ["--model.temperature=1", "--train.learning_rate=2e-3", "--train.weight_decay=0.01"],
    ],
    "multivae": [
        [],
        ["--train.triples_per_epoch=10240"],
        ["--train.triples_per_epoch=10240", "--model.kl_weight=1"],
        ["--train.triples_per_epoch=10240", "--train.learning_rate=5e-4"],
    ],
    "bpr_mf": [
        [],
        ["--train.weight_decay=10"],
        ["--train.weight_decay=30"],
        ["--train.weight_decay=30", "--train.learning_rate=2e-3"],
    ],
    "convncf": [
        [],
        ["--train.learning_rate=5e-3"],
        ["--train.weight_decay=1"],
        ["--train.learning_rate=5e-3", "--train.weight_decay=10"],
    ],
}

# What runs in a peer's interpreter: each gives (E, N) scores.


def cornac_vbpr(given: Given, seed: int, mended: bool = False, **settings: Any) -> Scores:
    from cornac.data import ImageModality
    from cornac.models import VBPR

    kind = VBPR
    if mended:
        wrong, right = "feat_diff.mm(Bp)\n", "feat_diff.mm(Bp).squeeze(1)\n"
        source = textwrap.dedent(inspect.getsource(VBPR._fit_torch))
        if wrong not in source:
            raise NotImplementedError("this Cornac's VBPR does not read as that of 3.0.1")
        made = dict(vars(sys.modules[VBPR.__module__]))
        exec(source.replace(wrong, right), made)
        kind = type("Mended", (VBPR,), {"_fit_torch": made["_fit_torch"]})
    data, ids = _cornac_data(given, seed)
    images = ImageModality(features=given["feature_ND"], ids=list(ids), normalized=False)
    data.add_modalities(item_image=images.build(id_map=ids))
    model = kind(k=64, k2=64, batch_size=256, verbose=False, seed=seed, **settings).fit(data)
    return np.stack([model.score(user) for user in given["user_E"]])


def cornac_multivae(given: Given, seed: int, **settings: Any) -> Scores:
    from cornac.models import VAECF

    data, _ = _cornac_data(given, seed)
    model = VAECF(k=200, autoencoder_structure=[600], seed=seed, **settings).fit(data)
    return np.stack([model.score(user) for user in given["user_E"]])


def _cornac_data(given: Given, seed: int) -> tuple[Any, dict[int, int]]:
    """Their data set of all users and items, and the items' numbers, which are their rows."""
    from cornac.data import Dataset

    users, items = (OrderedDict((n, n) for n in range(count)) for count in given["shape"])
    pairs = zip(given["user_R"].tolist(), given["item_R"].tolist(), strict=True)
    rows = [(user, item, 1.0) for user, item in pairs]
    return Dataset.build(rows, global_uid_map=users, global_iid_map=items, seed=seed), items


def implicit_bpr_mf(given: Given, seed: int, **settings: Any) -> Scores:
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    ones_R = np.ones(len(given["user_R"]), np.float32)
    taken = csr_matrix((ones_R, (given["user_R"], given["item_R"])), shape=given["shape"])
    fixed = {"factors": 64, "num_threads": 1, "random_state": seed}
    model = BayesianPersonalizedRanking(**fixed, **settings)
    model.fit(taken, show_progress=False)
    return model.user_factors[given["user_E"]] @ model.item_factors.T


def recbole_multivae(given: Given, seed: int, **settings: Any) -> Scores:
    sizes = {"mlp_hidden_size": [600], "latent_dimension": 400, "total_anneal_steps": 1000}
    return _recbole("MultiVAE", given, seed, {**sizes, "train_batch_size": 128, **settings})


def recbole_convncf(given: Given, seed: int, reg: float, **settings: Any) -> Scores:
    layers = CONV_WIDTH.bit_length() - 1
    sizes = {
        "embedding_size": CONV_WIDTH,
        "cnn_channels": [1] + [CONV_CHANNELS] * layers,
        "cnn_kernels": [2] * layers,
        "cnn_strides": [2] * layers,
        "train_batch_size": 512,
        "reg_weights": [reg, reg],
    }
    return _recbole("ConvNCF", given, seed, {**sizes, **settings})


def _recbole(name: str, given: Given, seed: int, settings: Mapping[str, Any]) -> Scores:
    """Their trainer without validation, on a data set written as they read them, in this folder."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.data.interaction import Interaction
    from recbole.data.utils import create_samplers, get_dataloader
    from recbole.utils import get_model, get_trainer, init_seed

    items = int(given["shape"][1])
    pairs = zip(given["user_R"], given["item_R"], strict=True)
    Path("peer").mkdir(exist_ok=True)
    lines = ["user_id:token\titem_id:token", *(f"{user}\t{item}" for user, item in pairs)]
    Path("peer/peer.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token", *map(str, range(items))]  # those that nobody took, too
    Path("peer/peer.item").write_text("\n".join(lines) + "\n")
    fixed = {
        **dict.fromkeys(("data_path", "checkpoint_dir"), "."),
        "use_gpu": False,
        "load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]},
        "eval_args": {"split": {"RS": [1, 0, 0]}, "group_by": "user", "order": "RO"},
        "seed": seed,
    }
    sys.argv = sys.argv[:1]  # of which it reads settings
    config = Config(model=name, dataset="peer", config_dict={**fixed, **settings})
    init_seed(seed, True)
    data = create_dataset(config)
    built = data.build()
    sampler = create_samplers(config, data, built)[0]
    batches = get_dataloader(config, "train")(config, built[0], sampler, shuffle=True)
    model = get_model(name)(config, built[0])
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    trainer.fit(batches, None, verbose=False, saved=False, show_progress=False)
    model.eval()
    # Their rows are in another order, and there is one for padding.
    user_E = data.token2id("user_id", [str(user) for user in given["user_E"]])
    item_N = torch.from_numpy(data.token2id("item_id", [str(n) for n in range(items)]))
    scores = []
    with torch.inference_mode():
        for user in user_E.tolist():
            if name == "ConvNCF":
                every = {"user_id": torch.full_like(item_N, user), "item_id": item_N}
                scores.append(model.predict(Interaction(every)))
            else:
                alone = Interaction({"user_id": torch.tensor([user])})
                scores.append(model.full_sort_predict(alone)[item_N])
    return torch.stack(scores).numpy()


# By library and model of visrec: the fit, and the names and values of its settings.
PEERS: dict[tuple[str, str], tuple[Callable[..., Scores], str, list[tuple[float, ...]]]] = {
    ("cornac", "vbpr"): (
        cornac_vbpr,
        "learning_rate lambda_w lambda_e n_epochs",
        [(1e-3, 0.01, 0, 10), (1e-3, 8, 2560, 10), (5e-4, 2.5, 25600, 20), (5e-4, 2.5, 25600, 40)],
    ),
    ("cornac_mended", "vbpr"): (
        partial(cornac_vbpr, mended=True),
        "learning_rate lambda_w lambda_e n_epochs",
        [(1e-3, 0.01, 0, 10), (1e-3, 0.03, 10, 10), (5e-4, 0.01, 100, 20), (5e-4, 0.01, 100, 40)],
    ),
    ("cornac", "multivae"): (
        cornac_multivae,
        "learning_rate n_epochs beta",
        [(1e-3, 50, 0.2), (1e-3, 50, 1), (5e-4, 50, 0.2), (5e-4, 100, 1)],
    ),
    ("implicit", "bpr_mf"): (
        implicit_bpr_mf,
        "learning_rate regularization iterations",
        [(0.05, 0.03, 200), (0.05, 0.05, 200), (0.05, 0.05, 400), (0.05, 0.05, 800)],
    ),
    ("recbole", "multivae"): (
        recbole_multivae,
        "learning_rate epochs anneal_cap",
        [(1e-3, 30, 0.2), (1e-3, 60, 0.2), (1e-3, 60, 1), (5e-4, 60, 0.2)],
    ),
    ("recbole", "convncf"): (
        recbole_convncf,
        "learning_rate epochs reg",
        [(1e-3, 6, 0.1), (2e-3, 6, 0.1), (5e-3, 6, 0.1), (5e-3, 3, 1)],
    ),
}


def run_peer(library: str, model: str) -> None:
    """What the process of a peer does, in a folder with given.npz and asked.json."""
    asked = json.loads(Path("asked.json").read_text())
    given = dict(np.load("given.npz"))
    start = time.perf_counter()
    scores = PEERS[library, model][0](given, **asked)
    seconds = time.perf_counter() - start
    np.save("scores.npy", np.asarray(scores, np.float32))
    told = {"seconds": seconds, "version": version(library.partition("_")[0])}
    Path("told.json").write_text(json.dumps(told))


# What runs here.


class PeerError(Exception):
    """A peer ran in none of the interpreters."""


@dataclass
class Peer:
    """A library's model, fitted in the first interpreter that can.

    Args:
        library: the library of the peer.
        model: visrec's name of its model.
        pythons: interpreters to try; after a fit, the one that did it.
        version: the version of the library, after a fit.
        seconds: the seconds of the last fit.
    """

    library: str
    model: str
    pythons: Sequence[str]
    version: str = ""
    seconds: float = 0.0

    def scores(
        self, data: TrainingData, user_E: npt.NDArray[np.int64], asked: Mapping[str, Any]
    ) -> Scores:
        """(E, N) of some users, fitted to all training items.

        Raises:
            PeerError: no interpreter can.
        """
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        how: Any = {"env": {**os.environ, **threads}, "capture_output": True, "text": True}
        # Isolated, so that the scripts beside this one are no modules to it.
        code = ["-I", "-W", "ignore", __file__, "--peer", self.library, self.model]
        with tempfile.TemporaryDirectory() as name:
            folder, failed = Path(name), []
            how["cwd"] = folder
            np.savez(
                folder / "given.npz",
                user_R=data.train.row_ids,
                item_R=data.train.values,
                shape=np.array([len(data.user_ids), len(data.item_ids)]),
                feature_ND=z_scored(data.feature_ND),
                user_E=user_E,
            )
            (folder / "asked.json").write_text(json.dumps(asked))
            for python in self.pythons:
                try:
                    done = subprocess.run([python, *code], **how)
                except OSError as error:
                    failed.append(str(error))
                    continue
                if not done.returncode:
                    told = json.loads((folder / "told.json").read_text())
                    self.version, self.seconds = told["version"], told["seconds"]
                    self.pythons = [python]
                    return np.asarray(np.load(folder / "scores.npy"))
                why = done.stderr.strip() or f"exit code {done.returncode}"
                failed.append(f"{python}: {why.splitlines()[-1]}")
        raise PeerError("; ".join(failed))


def auc_of(score_EN: Scores, held: HeldOut) -> Floats:
    """(E,) the AUC of each held-out user; products with ones and zeros leave scores as they are."""
    one_EE = torch.eye(len(held))
    scorer = DotScorer(torch.from_numpy(score_EN.T.copy()), lambda _, user_B: one_EE[user_B])
    return per_user(rank_targets(scorer, held.profiles, np.arange(len(held)), held.targets), ())[
        "auc"
    ]


def z_scored(feature_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """(N, D) what visrec's VBPR sees."""
    scale = FeatureScale(feature_ND.shape[1])
    scale.fit(feature_ND)
    return np.asarray(scale(torch.from_numpy(feature_ND.astype(np.float32))).numpy())


def choose(name: str, settings: Sequence[Any], tried: Callable[[int], float]) -> tuple[int, Any]:
    """The number of the setting with the highest validation AUC, and what is to be told."""
    aucs = []
    for number, setting in enumerate(settings):
        aucs.append(tried(number))
        print(f"  {name} {setting}: validation AUC {aucs[-1]:.4f}", flush=True)
    best = int(np.argmax(aucs))
    return best, {"validation_auc": aucs, "settings": list(settings), "chosen": best}


def train(config: TrainJob, data: TrainingData, seed: int) -> Trainer:
    """Trains as jobs/train.py does, in this process; its model is the one that was kept."""
    recipe = training_recipe(replace(config, train=replace(config.train, seed=seed)))
    trainer = train_to_end(build_trainer(recipe, data), recipe, data, lambda _: None)
    trainer.model.load_state_dict(trainer.best_weights)
    return trainer


def test_users(config: TrainJob, data: TrainingData) -> HeldOut:
    """Those that jobs/evaluate.py ranks for."""
    uri = interactions_uri(config, config.interactions)
    log = build_log(read_interactions(config.interactions, uri), data.item_ids)
    return select_held_out(log, split(log, config.split), SplitPart.TEST, config.split)


def compare(
    model: str, base: Sequence[str], pythons: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """One model of visrec against its peers; keys as --json has them."""
    print(f"{model}:", flush=True)
    configs = [
        parse(TrainJob, [*base, "--model.name", model, *SHARED.get(model, []), *flags])
        for flags in SETTINGS[model]
    ]
    features = Store.at(configs[0].resolve(configs[0].features, "features"))
    data = load_training_data(training_inputs(configs[0], features))
    found: dict[str, Any] = {"settings": {}, "skipped": {}, "versions": {}}

    def tried(number: int) -> float:
        once = replace(configs[number].train, refit=False)
        return float(train(replace(configs[number], train=once), data, 0).progress.best_auc)

    best, found["settings"][model] = choose(model, SETTINGS[model], tried)
    test, start = test_users(configs[0], data), time.perf_counter()
    trained = [train(configs[best], data, seed).model for seed in seeds]
    found[f"{model}_s"] = (time.perf_counter() - start) / len(seeds)
    aucs = [held_out_aucs(one, data, test) for one in trained]
    counts_N = np.bincount(data.for_refit.train.values, minlength=len(data.item_ids))
    by_counts = auc_of(np.tile(counts_N.astype(np.float32), (len(test), 1)), test)
    values = {model: np.mean(aucs, axis=0), "popularity": by_counts}
    validation = build_trainer(training_recipe(configs[0]), data).validation
    for (library, peers_model), (_, names, values_of) in PEERS.items():
        if peers_model != model:
            continue
        settings = [dict(zip(names.split(), one, strict=True)) for one in values_of]
        peer, name = Peer(library, model, pythons), f"{library}_{model}"
        try:
            values[name], found["settings"][name], found[f"{name}_s"] = test_peer(
                peer, settings, data, validation, test, seeds
            )
        except PeerError as error:
            found["skipped"][name] = str(error)
            print(f"  {name} is left out: {error}", flush=True)
            continue
        found["versions"][library.partition("_")[0]] = peer.version
    resampled = resample({name: {"auc": auc} for name, auc in values.items()})
    for name, auc in values.items():
        found[f"{name}_auc"] = float(auc.mean())
        if name not in (model, "popularity"):
            paired = f"{model}_minus_{name.removesuffix('_' + model)}"
            difference = resampled.difference(model, name)["auc"]
            found[paired] = difference["mean"]
            found[f"{paired}_interval"] = [difference["low"], difference["high"]]
    return found


def test_peer(
    peer: Peer,
    settings: Sequence[Mapping[str, float]],
    data: TrainingData,
    validation: HeldOut,
    test: HeldOut,
    seeds: Sequence[int],
) -> tuple[Floats, Any, float]:
    """(E,) mean AUC of each test user over the seeds, how settings were chosen, seconds of a fit.

    Raises:
        PeerError: it does not run here.
    """

    def tried(number: int) -> float:
        asked = {**settings[number], "seed": 0}
        return float(auc_of(peer.scores(data, validation.user_E, asked), validation).mean())

    best, told = choose(f"{peer.library}_{peer.model}", settings, tried)
    aucs, seconds = [], []
    for seed in seeds:
        asked = {**settings[best], "seed": seed}
        aucs.append(auc_of(peer.scores(data.for_refit, test.user_E, asked), test))
        seconds.append(peer.seconds)
    return np.mean(aucs, axis=0), told, float(np.mean(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="folder of the movies data")
    parser.add_argument("--workspace", default="runs/quality/movies", help="made where not there")
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=1, help="of the tested fits, from 0 (1)")
    parser.add_argument(
        "--peers_python", nargs="+", default=[sys.executable], help="interpreters with the peers"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {**machine(), "asked": vars(args)}
    workspace, source = os.path.abspath(args.workspace), os.path.abspath(args.source)
    base = ["--workspace", workspace, *movies(workspace, source, None)]
    for model in args.models:
        figures = compare(model, base, args.peers_python, range(args.seeds))
        for name, value in figures.items():
            if isinstance(value, dict):
                found.setdefault(name, {}).update(value)
            else:
                found[name] = value
                print(f"{name:40} {value}", flush=True)
    if args.json:
        print(json.dumps(plain(found)))


if __name__ == "__main__":
    if "--peer" in sys.argv:
        run_peer(*sys.argv[2:])
    else:
        main()
