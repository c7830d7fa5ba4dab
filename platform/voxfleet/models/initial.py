"""Initial weights of linear layers."""

from torch import nn


def xavier(layer: nn.Linear) -> nn.Linear:
    """``layer`` with Xavier-uniform weights and a bias of zero, as DiT begins."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zeros(layer: nn.Linear) -> nn.Linear:
    """``layer`` with weights and bias of zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
