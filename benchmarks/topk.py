"""Users per second for the top 100 of 100,000 items: visrec's kernel against its peers.

python -m benchmarks.topk
python -m benchmarks.topk --vectors trained --json
python -m benchmarks.topk --isa avx2 --users 8192

All search the same vectors with the same number of threads in one run: random normal ones, which is
the worst case, or those of a trained CuratorNet (`benchmarks/trained_vectors.py`). visrec also
excludes 20 items per user (of trained vectors: the user's profile), within the measured time, and
its lists are exact; the others exclude nothing. `--isa` names the kernel's instruction set; `none`
is the search without the kernel.

A peer is measured at its best: in a process of its own, on the first `--threads` cores, with the
fastest of the kernels that its OpenBLAS has for this processor (it is printed), at the best of
several batch sizes, both chosen beforehand. The kernel is not left to OpenBLAS, which takes that of
SSE on a processor that is newer than itself, and that of AVX2 on AMD's that have AVX-512. With
`--isa avx2` peers have AVX2, too. Repeats take turns, so that other load disturbs all alike;
results are medians with the lowest and the highest.

faiss      IndexFlatIP.search
implicit   implicit.cpu.topk, the C++ selection behind its recommend()
torch      torch.topk of the tiles of a float32 product, then of the tiles' winners
gemm       the float32 product alone, tile by tile, without selection: the limit of the three above
"""

import json
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.arguments import asked
from benchmarks.machine import machine
from benchmarks.trained_vectors import trained_vectors
from visrec.isas import ISAS
from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer
from visrec.native import ISA_VARIABLE
from visrec.retrieval.kernel import kernel_label
from visrec.retrieval.topk import TopK, TopKResult

Floats = npt.NDArray[np.float32]
Search = Callable[[Floats], object]
TILE = 8192
BATCHES = (64, 256, 1024)
OUR_BATCH = 1024
TUNED_WITH = 1024  # users
CHOSEN_AFTER = 8192  # users: then the kernel has chosen whether to rotate (`rotation.py`)
TIE = 1e-6  # of the best score: what is nearer may change places
# OpenBLAS's kernels, by the flag of the processors that can run them; first the one it chooses.
CORE_TYPES = {"": "", "Haswell": "avx2", "SkylakeX": "avx512f"}


def visrec(item_Nd: Floats, excluded: Jagged, k: int) -> Callable[[Floats], TopKResult]:
    """The search as the jobs call it, 1,024 users at a time."""
    tensor = torch.from_numpy(item_Nd)
    users: list[Floats] = []
    scorer = DotScorer(tensor, lambda _, user_B: torch.from_numpy(users[0])[user_B.clamp(min=0)])
    search = TopK(scorer, None, k)

    def run(user_Bd: Floats) -> TopKResult:
        users[:] = [user_Bd]
        found = []
        for start in range(0, len(user_Bd), OUR_BATCH):
            rows = np.arange(start, min(start + OUR_BATCH, len(user_Bd)))
            not_these = excluded.slice(rows[0], rows[-1] + 1)
            found.append(search(Jagged.empty(len(rows)), rows, not_these))
        return TopKResult.concatenate(found)

    return run


def in_batches(search: Search, size: int) -> Search:
    def run(user_Bd: Floats) -> None:
        for start in range(0, len(user_Bd), size):
            search(user_Bd[start : start + size])

    return run


# Each makes a peer's search of one batch, and imports no other peer.


def by_faiss(item_Nd: Floats, k: int, threads: int) -> Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(item_Nd.shape[1])
    index.add(item_Nd)
    return lambda user_Bd: index.search(user_Bd, k)


def by_implicit(item_Nd: Floats, k: int, threads: int) -> Search:
    import implicit.cpu.topk

    def search(user_Bd: Floats) -> None:
        # Its threads each call BLAS, which is to stay in the thread.
        with threadpool_limits(1, "blas"):
            implicit.cpu.topk.topk(item_Nd, user_Bd, k, num_threads=threads)

    return search


def by_torch(item_Nd: Floats, k: int, threads: int) -> Search:
    torch.set_num_threads(threads)
    item_tensor = torch.from_numpy(item_Nd)

    def search(user_Bd: Floats) -> None:
        user = torch.from_numpy(user_Bd)
        winners = []
        for start in range(0, len(item_tensor), TILE):
            score, context = (user @ item_tensor[start : start + TILE].T).topk(k, dim=1)
            winners.append((score, context + start))
        score, context = torch.cat([s for s, _ in winners], dim=1).topk(k, dim=1)
        torch.cat([p for _, p in winners], dim=1).gather(1, context)

    return search


def by_gemm(item_Nd: Floats, k: int, threads: int) -> Search:
    del k
    torch.set_num_threads(threads)
    item_tensor = torch.from_numpy(item_Nd)

    def search(user_Bd: Floats) -> None:
        user = torch.from_numpy(user_Bd)
        for start in range(0, len(item_tensor), TILE):
            user @ item_tensor[start : start + TILE].T

    return search


PEERS = {"faiss": by_faiss, "implicit": by_implicit, "torch": by_torch, "gemm": by_gemm}
ON_OPENBLAS = ("faiss", "implicit")


class Contestant:
    """One side, in the process that `apart` starts for it and that does nothing else.

    Args:
        name: `visrec`, or one of `PEERS`.
        folder: the folder of the vectors and of what is excluded.
        k: list length.
        threads: the number of threads of the search.
    """

    here: ClassVar["Contestant"]

    def __init__(self, name: str, folder: Path, k: int, threads: int) -> None:
        self._item_Nd, self._user_Bd = (np.load(folder / f"{n}.npy") for n in ("items", "users"))
        self._excluded = Jagged(*(np.load(folder / f"{n}.npy") for n in ("taken", "offsets")))
        start = time.perf_counter()
        self.batch = OUR_BATCH
        if name == "visrec":
            torch.set_num_threads(threads)
            self._ours = visrec(self._item_Nd, self._excluded, k)
            self._search: Search = self._ours
            self._ours(self._user_Bd[:OUR_BATCH])  # packs the items
        else:
            self._search = self._at_best_batch(PEERS[name](self._item_Nd, k, threads))
        self.begin_s = time.perf_counter() - start
        if name == "visrec":
            for _ in range(-(-CHOSEN_AFTER // len(self._user_Bd))):
                self._ours(self._user_Bd)
        self.kernel = kernel_label() if name == "visrec" else product_kernel(name)
        Contestant.here = self

    def _at_best_batch(self, search: Search) -> Search:
        sizes = [size for size in BATCHES if size <= max(len(self._user_Bd), BATCHES[0])]
        tuned_with = self._user_Bd[:TUNED_WITH]
        search(tuned_with[: BATCHES[0]])  # what is set up once
        tried = {size: rate(in_batches(search, size), tuned_with) for size in sizes}
        self.batch = max(tried, key=lambda size: tried[size])
        return in_batches(search, self.batch)

    def rate(self) -> float:
        return rate(self._search, self._user_Bd)

    def identical(self, users: int) -> bool:
        user_Bd = self._user_Bd[:users]
        return identical(self._ours(user_Bd), self._item_Nd, user_Bd, self._excluded)


def product_kernel(name: str) -> str:
    """What computes a peer's products in this process."""
    if name in ("torch", "gemm"):
        return f"{'MKL' if torch.backends.mkl.is_available() else 'torch'}, " + (
            torch.backends.cpu.get_cpu_capability()
        )
    owned = {
        Path(b["filepath"]).parent.name: b for b in threadpool_info() if b["user_api"] == "blas"
    }
    library = next((b for folder, b in owned.items() if folder.startswith(name)), None)
    library = library or owned.get("scipy.libs") or next(iter(owned.values()))
    return f"{library['internal_api']} {library['version']} {library.get('architecture', '')}"


def rate(search: Search, user_Bd: Floats) -> float:
    start = time.perf_counter()
    search(user_Bd)
    return len(user_Bd) / (time.perf_counter() - start)


def identical(best: TopKResult, item_Nd: Floats, user_Bd: Floats, excluded: Jagged) -> bool:
    """Whether the lists are those of a full sort in float64, up to ties."""
    items = item_Nd.astype(np.float64)
    for b, user in enumerate(user_Bd.astype(np.float64)):
        exact = items @ user
        exact[excluded[b]] = -np.inf
        rows = np.argsort(-exact, kind="stable")[: best.row_BK.shape[1]]
        apart = best.row_BK[b] != rows
        off = np.abs(exact[best.row_BK[b][apart]] - exact[rows[apart]])
        if len(set(best.row_BK[b])) < len(rows) or (off > TIE * abs(exact[rows[0]])).any():
            return False
    return True


def apart(name: str, folder: Path, args: Namespace) -> ProcessPoolExecutor:
    """A process of its own, in which only this side computes."""
    context = get_context("spawn")
    return ProcessPoolExecutor(1, context, Contestant, (name, folder, args.k, args.threads))


def at_best_core_type(name: str, folder: Path, args: Namespace) -> ProcessPoolExecutor:
    """The process of a side; of a peer on OpenBLAS, that with the fastest kernel."""
    sides, rates = [], []
    for core_type in core_types(args.isa) if name in ON_OPENBLAS else ("",):
        if core_type:
            os.environ["OPENBLAS_CORETYPE"] = core_type
        sides.append(apart(name, folder, args))
        rates.append(ask(sides[-1], "rate") if name in ON_OPENBLAS else 0.0)  # it starts here
        os.environ.pop("OPENBLAS_CORETYPE", None)
    best = sides.pop(rates.index(max(rates)))
    for side in sides:
        side.shutdown()
    return best


def core_types(isa: str) -> list[str]:
    """The values of OPENBLAS_CORETYPE to try on this processor."""
    if isa == "avx2":
        return ["Haswell"]
    flags = Path("/proc/cpuinfo").read_text().split()
    return [name for name, flag in CORE_TYPES.items() if not flag or flag in flags]


def ask(side: ProcessPoolExecutor, what: str, *args: int) -> Any:
    """A value of the side, or what its method returns."""
    return side.submit(_answer, what, *args).result()


def _answer(what: str, *args: int) -> Any:
    found = getattr(Contestant.here, what)
    return found(*args) if callable(found) else found


def inputs(args: Namespace) -> tuple[Floats, Floats, Jagged]:
    """The items, the users, and what each user may not get."""
    if args.vectors == "trained":
        item_Nd, user_Bd, profiles = trained_vectors(args.items)
        return item_Nd, user_Bd[: args.users], profiles.slice(0, min(args.users, len(user_Bd)))
    random = np.random.default_rng(0)
    item_Nd, user_Bd = (
        random.normal(size=(n, args.dimensions)).astype(np.float32)
        for n in (args.items, args.users)
    )
    taken = random.integers(0, args.items, args.users * args.excluded)
    return item_Nd, user_Bd, Jagged(taken, np.arange(args.users + 1) * args.excluded)


def prepare_environment(args: Namespace) -> None:
    """What the sides' processes inherit."""
    for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # libgomp's default, for the peers: visrec lets threads that are loaded after it wait asleep.
    os.environ["GOMP_SPINCOUNT"] = "300000"
    if args.isa != "native":
        os.environ[ISA_VARIABLE] = args.isa
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])


def main() -> None:
    args = asked(
        __doc__,
        vectors=("random", "trained"),
        isa=("native", "none", *(isa.name for isa in ISAS)),
        users=4096,
        items=100_000,
        dimensions=200,
        k=100,
        excluded=20,
        threads=2,
        repeats=3,
        checked=200,
    )
    prepare_environment(args)
    runs: dict[str, list[float]] = {name: [] for name in ("visrec", *PEERS)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        item_Nd, user_Bd, excluded = inputs(args)
        arrays = {"items": item_Nd, "users": user_Bd, "taken": excluded.values}
        for name, array in {**arrays, "offsets": excluded.offsets}.items():
            np.save(Path(folder) / f"{name}.npy", array)
        sides: dict[str, ProcessPoolExecutor] = {}
        about: dict[str, dict[str, Any]] = {}
        for name in runs:  # one after the other: each starts here
            side = at_best_core_type(name, Path(folder), args)
            sides[name] = stack.enter_context(side)
            about[name] = {what: ask(side, what) for what in ("batch", "begin_s", "kernel")}
            # For the peers, which come next. Ours are no threads of OpenMP's: they would inherit
            # the one core to which it binds the thread that starts them.
            os.environ["OMP_PROC_BIND"] = "close"
        for _ in range(args.repeats):
            for name, side in sides.items():
                runs[name].append(ask(side, "rate"))
        is_identical = ask(sides["visrec"], "identical", args.checked)
    median = {name: statistics.median(rates) for name, rates in runs.items()}
    found: dict[str, object] = {f"{n}_users_per_s": round(rate, 1) for n, rate in median.items()}
    for name in PEERS:
        found[f"ratio_{name}"] = round(median["visrec"] / median[name], 3)
    found["identical"] = is_identical
    for name, rates in runs.items():
        print(
            f"{name:10}{median[name]:>10,.0f} users/s  [{min(rates):,.0f} to {max(rates):,.0f}]  "
            f"batches of {about[name]['batch']:,}, {about[name]['kernel']}"
        )
    print(f"identical to float64: {is_identical}; packed in {about['visrec']['begin_s']:.2f} s")
    if args.json:
        more = {
            "runs": runs,
            "best_batch": {name: about[name]["batch"] for name in PEERS},
            "pack_s": about["visrec"]["begin_s"],
            "kernel": {name: of["kernel"] for name, of in about.items()},
        }
        print(json.dumps({"asked": vars(args), **machine(), **found, **more}))


if __name__ == "__main__":
    main()
