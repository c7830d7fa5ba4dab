"""What all tests share: one private Ray session, a small cohort, and the jobs run as a user runs them."""

import os

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def ray_session():
    """One private Ray cluster for the whole test run."""
    from voxfleet.config.resources import ResourcesConfig
    from voxfleet.engine.cluster import session

    with session(ResourcesConfig()):
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """No test depends on chance: what draws without a generator draws the same in every run."""
    import torch

    torch.manual_seed(0)
