"""Candidates of which each worker encodes a share: vectors and gradients as of all of them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from visrec.models.inputs import Candidates, JaggedTensor, TripleBatch
from visrec.models.sharded_encoding import encode_sharded

CANDIDATES, OTHERS = 7, 4  # 7 do not go into two or three equal shares


def _batch(rank: int) -> TripleBatch:
    """A worker's batch: the candidates, and behind them items that no other worker has."""
    item_M = torch.cat([torch.arange(CANDIDATES), 10 * (rank + 1) + torch.arange(OTHERS)])
    nothing = torch.zeros(0, dtype=torch.int64)
    return TripleBatch(
        item_M=item_M,
        feature_MD=torch.stack([torch.sin(item_M.double() * (d + 1)) for d in range(5)], dim=1),
        category_M=torch.full_like(item_M, -1),
        user_B=nothing,
        profiles=JaggedTensor(nothing, torch.zeros(1, dtype=torch.int64)),
        positive_B=nothing,
        negative_BK=nothing[:, None],
        candidates=Candidates(
            torch.zeros(0, CANDIDATES, dtype=torch.bool), torch.zeros(CANDIDATES)
        ),
    )


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.SELU(), nn.Linear(6, 3)).double()


def _loss(vector_Md: Tensor, rank: int) -> Tensor:
    """A sum in which every vector weighs another amount, and each worker's are its own."""
    weight_Md = torch.arange(vector_Md.numel()).reshape(vector_Md.shape).double()
    return (torch.tanh(vector_Md) * torch.cos(weight_Md + rank)).sum()


def _work(rank: int, folder: str, workers: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    network, rows = _network(), []

    def encode(some: TripleBatch) -> Tensor:
        rows.append(some.item_M.tolist())
        vectors: Tensor = network(some.feature_MD)
        return vectors

    vector_Md = encode_sharded(_batch(rank), encode)
    _loss(vector_Md, rank).backward()
    gradients = [weight.grad.tolist() for weight in network.parameters() if weight.grad is not None]
    found = {"vectors": vector_Md.tolist(), "gradients": gradients, "rows": rows}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def _float64(numbers: list[list[float]]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_what_one_does_alone(workers: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_work, (str(tmp_path), workers), nprocs=workers)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(workers)]
    network = _network()
    for rank in range(workers):
        vector_Md = encode_sharded(_batch(rank), lambda some: network(some.feature_MD))
        torch.testing.assert_close(_float64(found[rank]["vectors"]), vector_Md)
        _loss(vector_Md, rank).backward()
        share = -(-CANDIDATES // workers)
        assert [len(rows) for rows in found[rank]["rows"]] == [share + OTHERS]
    for place, weight in enumerate(network.parameters()):
        count_same_code = sum(_float64(one["gradients"][place]) for one in found)
        torch.testing.assert_close(count_same_code, weight.grad)
