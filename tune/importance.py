"""Importance of the searched settings, by Optuna's PED-ANOVA (arXiv:2304.10255)."""

from collections.abc import Mapping, Sequence

from tune.campaign import Trial, list_measured
from tune.domain import Domain, Equals

_MIN_GOOD = 5
"""Number of best trials that PED-ANOVA needs for a stable result (Optuna's documentation)."""


def compute_importances(trials: Sequence[Trial], space: Mapping[str, Domain]) -> dict[str, float]:
    """Return the share (0 to 1) of each setting in the difference between good and other trials.

    The shares add up to 1. Return an empty dict for fewer than two measured trials or two settings,
    and if all losses are equal. Raises ImportError if Optuna is not installed.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    from tune.tpe import to_distribution

    measured = list_measured(trials)
    if len(measured) < 2 or len(space) < 2 or len({trial.loss for trial in measured}) < 2:
        return {}

    # a study of the measured trials
    distributions = {
        path: to_distribution(domain)
        for path, domain in space.items()
        if not isinstance(domain, Equals)
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for trial in measured:
        own = {path: value for path, value in trial.params.items() if path in distributions}
        study.add_trial(
            optuna.create_trial(
                params=own,
                distributions={path: distributions[path] for path in own},
                value=trial.loss,
            )
        )

    quantile = min(0.5, max(0.1, _MIN_GOOD / len(measured)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    shares = get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in shares.items()}
