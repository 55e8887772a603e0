"""Probes of one output a sequence: frozen features behind a StandardScaler, then ridge or logistic regression."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom_tasks.definition import Kind

Probe = Literal["lbfgs", "paper"]
"""Logistic regression: ``lbfgs`` fits several classes at once, ``paper`` each against the rest, by liblinear."""

ALPHA = 1.0
"""Penalty of the ridge regression, as in the ProteinJEPA benchmark."""
C = 1.0
"""Inverse penalty of the logistic regression, as there."""
ITERATIONS = 1000
"""Most iterations of a solver; results say where it stopped short of convergence."""


@dataclass(frozen=True)
class Output:
    """What a probe gives for each split that it was asked about.

    Attributes:
        values: split -> ``[n]`` predicted numbers or scores of class 1, or ``[n, C]`` scores of classes.
        details: what the probe is, and whether its solver converged.
    """

    values: dict[str, NDArray[np.float64]]
    details: dict[str, Any]


def fit(
    features: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    asked: dict[str, NDArray[np.floating[Any]]],
    *,
    kind: Kind,
    probe: Probe = "lbfgs",
    seed: int = 0,
) -> Output:
    """Fits the probe of a kind of task and applies it.

    Args:
        features: ``[n, D]`` of the training rows.
        labels: ``[n]`` numbers or classes, ``[n, C]`` of 0 and 1 for multilabel.
        asked: features ``[m, D]`` to give outputs for, by split.
        kind: of the task.
        probe: which solver of the logistic regression.
        seed: of the solver.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise UserError("probes need scikit-learn and scipy: pip install 'protloom[tasks]'") from error
    scaler = StandardScaler()
    scaled = scaler.fit_transform(features)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimators = _fitted(scaled, labels, kind, probe, seed)
    values = {split: _apply(estimators, scaler.transform(rows), kind) for split, rows in asked.items()}
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    name = (
        f"ridge(alpha={ALPHA:g})" if kind == "regression" else f"logistic regression(C={C:g}, {_solver(kind, probe)})"
    )
    details = {"probe": f"StandardScaler + {name}", "features": features.shape[1], "converged": converged}
    return Output(values, details)


def _solver(kind: Kind, probe: Probe) -> str:
    if probe == "lbfgs":
        return "lbfgs, a regression a label" if kind == "multilabel" else "lbfgs"
    return "liblinear" if kind == "binary" else "liblinear, one against the rest"


def _fitted(scaled: NDArray[Any], labels: NDArray[Any], kind: Kind, probe: Probe, seed: int) -> list[Any]:
    """Returns the fitted estimators: one, or one for every class."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "regression":
        return [Ridge(alpha=ALPHA).fit(scaled, labels)]
    solver = "lbfgs" if probe == "lbfgs" else "liblinear"

    def logistic() -> Any:
        return LogisticRegression(C=C, solver=solver, max_iter=ITERATIONS, random_state=seed)

    if kind == "multilabel":
        columns = [labels[:, i] for i in range(labels.shape[1])]
        return [logistic().fit(scaled, of) if 0 < of.sum() < len(of) else _Always(of[:1]) for of in columns]
    if kind == "binary" or probe == "lbfgs":
        return [logistic().fit(scaled, labels)]
    return [logistic().fit(scaled, (labels == label).astype(np.int64)) for label in range(int(labels.max()) + 1)]


def _apply(estimators: list[Any], scaled: NDArray[Any], kind: Kind) -> NDArray[np.float64]:
    if kind == "regression":
        return np.asarray(estimators[0].predict(scaled), dtype=np.float64)
    scores = [np.asarray(estimator.decision_function(scaled), dtype=np.float64) for estimator in estimators]
    if kind == "binary" or len(scores) == 1:
        # two classes of a multiclass task: one score, that of the second
        return scores[0] if kind == "binary" or scores[0].ndim == 2 else np.stack([-scores[0], scores[0]], axis=1)
    return np.stack(scores, axis=1)


class _Always:
    """Stands for a label that all or none of the training rows have."""

    def __init__(self, label: NDArray[Any]) -> None:
        self._score = 20.0 if label[0] else -20.0

    def decision_function(self, scaled: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the same score for all."""
        return np.full(len(scaled), self._score)
