"""Memory is counted on tensors without data, as autograd would keep it of real ones."""

import subprocess
import sys

import pytest
import torch

from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.train.memory import Need

CONFIG = DiT3DConfig(in_channels=2, input_size=(4, 6, 4), patch_size=(2, 2, 2), hidden_size=24, depth=3, num_heads=2)
_WEIGHTS = 6 * 4  # copies of float32


def parameters(config):
    return sum(parameter.numel() for parameter in DiT3D(config).parameters())


@pytest.mark.parametrize("window", [(2, 2, 2), None])
def test_what_is_counted_is_what_autograd_keeps(window):
    config = DiT3DConfig(**{**vars(CONFIG), "window_size": window})
    model, kept = DiT3D(config), {}
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 2, 4, 6, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64)).square().mean()
    real = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
    assert Need(config, 1, checkpointing=False).bytes() - _WEIGHTS * parameters(config) == real > 10_000


def test_more_samples_and_blocks_need_more_and_checkpointing_less():
    need = Need(CONFIG, 4, checkpointing=False).bytes()
    weights = _WEIGHTS * parameters(CONFIG)
    assert Need(CONFIG, 8, checkpointing=False).bytes() - weights == 2 * (need - weights)
    deeper = DiT3DConfig(**{**vars(CONFIG), "depth": 6})
    assert Need(deeper, 4, checkpointing=False).bytes() > 1.6 * need
    kept, again = (Need(deeper, 4, checkpointing=on).bytes() - _WEIGHTS * parameters(deeper) for on in (False, True))
    assert again < kept / 2


@pytest.mark.matrix
def test_a_real_step_takes_about_what_is_counted():
    """In a process of its own: what others took before would count."""
    config = DiT3DConfig(patch_size=(2, 2, 2), depth=4)
    need = Need(config, 64, checkpointing=False)
    code = (
        "import torch; from voxfleet.models import DiT3DConfig; from voxfleet.train.memory import *; "
        "print(measured_bytes(Need(DiT3DConfig(patch_size=(2, 2, 2), depth=4), 64, False), 'float32', "
        "torch.device('cpu')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.7 < int(found.stdout) / need.bytes() < 1.8
