"""How much each key decides."""

import contextlib
import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

from voxfleet.search.trials import Trial

_FEWEST = 4  # trials, of which anything can be said


def importance(trials: Sequence[Trial], keys: Sequence[str], at: int) -> dict[str, float]:
    """Share of the variance of the scores ``at`` these epochs that each key explains (they add up to 1).

    Functional ANOVA on a forest (Hutter et al., 2014), by Optuna. Nothing where the trials are few or equal. Values are
    taken as categories, but for numbers; a key that a trial leaves as configured has a category of its own.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import create_trial

    scored = [trial for trial in trials if at in trial.scores and not trial.reason]
    values: dict[str, list[Any]] = {key: [trial.keys.get(key) for trial in scored] for key in keys}
    varied = {key: column for key, column in values.items() if len({json.dumps(value) for value in column}) > 1}
    if len(scored) < _FEWEST or not varied or len({trial.scores[at] for trial in scored}) < 2:
        return {}
    optuna.logging.set_verbosity(logging.WARNING)
    distributions: dict[str, BaseDistribution] = {}
    for key, column in list(varied.items()):
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
            distributions[key] = FloatDistribution(min(column), max(column))
        else:
            varied[key] = [json.dumps(value) for value in column]
            distributions[key] = CategoricalDistribution(sorted(set(varied[key])))
    study = optuna.create_study()
    for number, trial in enumerate(scored):
        params = {key: column[number] for key, column in varied.items()}
        study.add_trial(create_trial(value=trial.scores[at], params=params, distributions=distributions))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):  # where the forest finds nothing to explain
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {}
