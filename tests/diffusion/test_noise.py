"""Keyed noise: the reference's known answers, independence of the batch, the normal law."""

import subprocess
import sys

import torch
from scipy import stats

from voxfleet.diffusion.noise import Draws, philox, sampling_noise
from voxfleet.diffusion.seeds import row_seed

# Random123's known answers for philox4x32-10: counter, key, result
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def test_philox_gives_the_known_answers():
    for counter, key, expected in KNOWN:
        assert philox(torch.tensor(key), torch.tensor(counter)).tolist() == expected


def test_a_sample_has_the_same_noise_alone_and_in_any_batch():
    seeds = torch.tensor([5, 2**62 + 3, 17])
    together = sampling_noise(seeds, 3, (4, 5, 3, 2))
    for i, seed in enumerate(seeds):
        assert torch.equal(sampling_noise(seed[None], 3, (4, 5, 3, 2))[0], together[i])


DRAW = """
import sys, torch
from voxfleet.diffusion.noise import sampling_noise
seeds = torch.arange(*map(int, sys.argv[1:])) * 2**52 + 11
sys.stdout.buffer.write(sampling_noise(seeds, 3, (4, 8, 14, 8)).numpy().tobytes())
"""


def test_four_processes_draw_the_noise_of_one():
    whole = sampling_noise(torch.arange(16) * 2**52 + 11, 3, (4, 8, 14, 8)).numpy().tobytes()
    quarters = [
        subprocess.Popen([sys.executable, "-c", DRAW, str(first), str(first + 4)], stdout=subprocess.PIPE)
        for first in range(0, 16, 4)
    ]
    assert b"".join(process.communicate()[0] for process in quarters) == whole


def test_noise_is_the_same_twice_and_on_any_number_of_threads():
    threads, seeds = torch.get_num_threads(), torch.arange(24)
    try:
        torch.set_num_threads(1)
        alone = sampling_noise(seeds, 1, (4, 8, 14, 8))
        torch.set_num_threads(4)
        assert torch.equal(sampling_noise(seeds, 1, (4, 8, 14, 8)), alone)
        assert torch.equal(sampling_noise(seeds, 1, (4, 8, 14, 8)), alone)
    finally:
        torch.set_num_threads(threads)


def test_seeds_and_steps_give_other_noise():
    noise = torch.stack([sampling_noise(torch.tensor([s]), step, (4000,))[0] for s in (1, 2) for step in (0, 1)])
    correlation = torch.corrcoef(noise) - torch.eye(4)
    assert correlation.abs().max() < 0.07  # four standard errors


def test_noise_is_standard_normal():
    noise = sampling_noise(torch.arange(50), 0, (4, 8, 14, 8)).flatten().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(noise)) < 0.05


def test_draws_depend_on_seed_epoch_stream_and_index_alone():
    whole = Draws(1, 2, torch.arange(6))
    part = Draws(1, 2, torch.arange(4, 6))
    assert torch.equal(whole.normal(0, (7,))[4:], part.normal(0, (7,)))
    assert torch.equal(whole.uniform(1)[4:], part.uniform(1))
    for other in (Draws(2, 2, torch.arange(6)), Draws(1, 3, torch.arange(6))):
        assert not torch.equal(whole.uniform(1), other.uniform(1))
    assert not torch.equal(whole.uniform(0), whole.uniform(1))


def test_row_seeds_are_pinned_and_distinct():
    # a changed value would change every sample of every campaign
    assert row_seed(0, 1, 123) == 3059646324508174789
    assert len({row_seed(0, label, i, a) for label in (0, 1) for i in range(100) for a in (0, 1)}) == 400
