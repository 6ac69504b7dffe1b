"""The fake backbone of the tests: two untrained convolutions, loaded in milliseconds."""

import torch
from torch import Tensor, nn

from visrec.features.backbones.network import LoadedNetwork, digest_weights
from visrec.features.decode import Preprocessing


def load_random_conv() -> LoadedNetwork:
    """The same weights in every process."""
    generator = torch.Generator().manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 5, 4, 2), nn.Conv2d(16, 32, 3, 2, 1)]
    with torch.no_grad():
        for convolution in convolutions:
            fan_in = convolution.weight[0].numel()
            shape = convolution.weight.shape
            convolution.weight.copy_(torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    network = nn.Sequential(
        convolutions[0], nn.ReLU(True), convolutions[1], nn.ReLU(True), _MeanAndDeviation()
    )
    return LoadedNetwork(
        network=network,
        preprocessing=Preprocessing(
            resize=64, crop=(64, 64), interpolation="bilinear", mean=(127.5,) * 3, std=(127.5,) * 3
        ),
        weights_digest=digest_weights(network.state_dict()),
    )


class _MeanAndDeviation(nn.Module):
    """(B, C, H, W) to (B, 2C): mean and standard deviation of each channel."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        std_BC, mean_BC = torch.std_mean(x_BCHW.float(), (2, 3))
        return torch.cat([mean_BC, std_BC], dim=1)
