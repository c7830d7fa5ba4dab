"""Networks that compare slices: what is taken, what is refused, and that it is computed."""

import io

import pytest
import torch

from voxfleet.models.slice_distance import slice_distance


class MeanSquares(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().mean(dim=(1, 2, 3), keepdim=True)


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


class OfOne(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Maps(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - y


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().sum()


class Cosine(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -(x * y).mean(dim=(1, 2, 3))


class Deep(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x - y, 16).square().mean(dim=(1, 2, 3))


def script(network):
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(network), data)
    return data.getvalue()


@pytest.mark.parametrize(("network", "power"), [(MeanSquares(), 2), (Flat(), 1)])
def test_a_network_gives_a_distance_of_each_pair(network, power):
    x, y = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    found = slice_distance(script(network), [(9, 7)])(x, y)
    torch.testing.assert_close(found, (x - y).abs().pow(power).mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OfOne(), "does not take two batches of slices"),
        (Maps(), r"for 2 pairs of slices it gives \(2, 1, 9, 7\); it must give \(2,\)"),
        (Sum(), r"for 2 pairs of slices it gives \(\)"),
        (Cosine(), "negative or not finite"),
        (Deep(), r"does not take two batches of slices \(2, 1, 9, 7\)"),
    ],
)
def test_another_network_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        slice_distance(script(network), [(9, 7)])


def test_another_file_is_refused():
    with pytest.raises(ValueError, match="no TorchScript file"):
        slice_distance(b"text", [(9, 7)])
