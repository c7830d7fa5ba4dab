"""What to try next: pure functions of the space, the seed, the number of the proposal, and the trials so far."""

import itertools
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from voxfleet.search.space import Domain, Keys, Space, combinations
from voxfleet.search.trials import Trial

_STARTUP = 10  # scored trials before TPE believes what it sees

Searcher = Callable[[Space, int, int, Sequence[Trial]], Keys | None]


def grid(space: Space, seed: int, proposal: int, trials: Sequence[Trial]) -> Keys | None:
    """Every combination, in order; None after the last."""
    return next(itertools.islice(combinations(space), proposal, None), None)


def random(space: Space, seed: int, proposal: int, trials: Sequence[Trial]) -> Keys:
    """Each key drawn by itself; those of kind grid take their combinations in turn."""
    uniform = np.random.Generator(np.random.Philox([seed, proposal])).random(len(space))
    fixed = _turn(space, proposal)
    keys: Keys = {}
    for domain, number in zip(space, uniform, strict=True):
        if domain.is_active(keys):
            keys[domain.key] = fixed[domain.key] if domain.key in fixed else domain.at(float(number))
    return keys


def tpe(space: Space, seed: int, proposal: int, trials: Sequence[Trial]) -> Keys:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), told of all trials, anew for each proposal.

    So it has no state of its own that a restart could lose. A trial that was stopped early counts by its last score
    among those that came as far, after those that came farther; one that runs keeps others away from its place.
    """
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    fixed = {key: json.dumps(value) for key, value in _turn(space, proposal).items()}
    sampler: Any = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([seed, proposal]).generate_state(1)[0]),
        n_startup_trials=_STARTUP,
        multivariate=True,
        group=True,  # keys that a condition switches on are a group of their own
        constant_liar=True,
    )
    if fixed:
        sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([_told(trial, space) for trial in trials])
    asked = study.ask()
    keys: Keys = {}
    for domain in space:
        if domain.is_active(keys):
            keys[domain.key] = _suggested(asked, domain)
    return keys


SEARCHERS: dict[str, Searcher] = {"random": random, "grid": grid, "tpe": tpe}


def _turn(space: Space, proposal: int) -> Keys:
    """The combination of the keys of kind grid whose turn it is."""
    every = list(combinations(space, ("grid",)))
    return every[proposal % len(every)]


def _texts(domain: Domain) -> list[str]:
    return [json.dumps(value) for value in domain.values]  # a study takes no lists


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.kind in ("choice", "grid"):
        return CategoricalDistribution(_texts(domain))
    low, high = domain.values
    if domain.kind == "integer":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "loguniform")


def _suggested(asked: Any, domain: Domain) -> Any:
    if domain.kind in ("choice", "grid"):
        return json.loads(asked.suggest_categorical(domain.key, _texts(domain)))
    low, high = domain.values
    if domain.kind == "integer":
        return asked.suggest_int(domain.key, low, high)
    return asked.suggest_float(domain.key, low, high, log=domain.kind == "loguniform")


def _told(trial: Trial, space: Space) -> Any:
    from optuna.trial import TrialState, create_trial

    searched = [domain for domain in space if domain.key in trial.keys]
    params = {
        domain.key: json.dumps(trial.keys[domain.key]) if domain.kind in ("choice", "grid") else trial.keys[domain.key]
        for domain in searched
    }
    state = TrialState.FAIL if trial.reason else TrialState.PRUNED if trial.scores else TrialState.RUNNING
    return create_trial(
        state=state,
        params=params,
        distributions={domain.key: _distribution(domain) for domain in searched},
        intermediate_values=trial.scores,
    )
