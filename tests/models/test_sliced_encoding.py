"""Sliced encoding of candidates: vectors and gradients equal those of encoding all of them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from visrec.models.inputs import Candidates, JaggedTensor, TripleBatch
from visrec.models.sliced_encoding import encode_sliced

CANDIDATES, OTHERS = 7, 4  # 7 are not divisible into two or three equal slices


def _batch(rank: int) -> TripleBatch:
    """A worker's batch: the candidates, followed by items that no other worker has."""
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
    """A sum in which every vector has its own weight, different on each worker."""
    weight_Md = torch.arange(vector_Md.numel()).reshape(vector_Md.shape).double()
    return (torch.tanh(vector_Md) * torch.cos(weight_Md + rank)).sum()


def _work(rank: int, folder: str, workers: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    network, rows = _network(), []

    def encode(part: TripleBatch) -> Tensor:
        rows.append(part.item_M.tolist())
        vectors: Tensor = network(part.feature_MD)
        return vectors

    vector_Md = encode_sliced(_batch(rank), encode)
    _loss(vector_Md, rank).backward()
    gradients = [weight.grad.tolist() for weight in network.parameters() if weight.grad is not None]
    found = {"vectors": vector_Md.tolist(), "gradients": gradients, "rows": rows}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def _float64(numbers: list[list[float]]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("workers", [2, 3])
def test_sliced_vectors_and_gradients_equal_those_of_one_worker(
    workers: int, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(_work, (str(tmp_path), workers), nprocs=workers)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(workers)]
    network = _network()
    for rank in range(workers):
        vector_Md = encode_sliced(_batch(rank), lambda part: network(part.feature_MD))
        torch.testing.assert_close(_float64(found[rank]["vectors"]), vector_Md)
        _loss(vector_Md, rank).backward()
        slice_size = -(-CANDIDATES // workers)
        assert [len(rows) for rows in found[rank]["rows"]] == [slice_size + OTHERS]
    for index, weight in enumerate(network.parameters()):
        summed = sum(_float64(one["gradients"][index]) for one in found)
        torch.testing.assert_close(summed, weight.grad)
