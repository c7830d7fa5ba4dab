"""How a network is run."""

import pytest
import torch
from torch._inductor import config

from voxfleet.models.execution import reproducible


@pytest.mark.parametrize(("mode", "is_compiled"), [("eager", False), ("compiled", True), ("graphs", True)])
def test_no_kernel_is_chosen_by_timing_it(monkeypatch, mode, is_compiled):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with config.patch(deterministic=False):
        reproducible(mode)
        assert torch.backends.cudnn.deterministic
        assert config.deterministic == is_compiled
