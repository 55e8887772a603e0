"""Probes of one output a sequence: frozen features behind a StandardScaler, then ridge or logistic regression."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protloom.errors import UserError
from protloom_tasks.neighbours import Neighbours, one_hot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom_tasks.definition_kinds import SequenceKind
    from protloom_tasks.neighbours import Distance

Probe = Literal["lbfgs", "paper", "knn", "convbert", "lora"]
"""Logistic regression: ``lbfgs`` fits several classes at once, ``paper`` each against the rest, by liblinear; ``knn``:
nearest neighbours; for ``convbert`` and ``lora`` see :mod:`protloom_tasks.sequence_heads`."""

ALPHA = 1.0
"""Penalty of the ridge regression, as in the ProteinJEPA benchmark."""
C = 1.0
"""Inverse penalty of the logistic regression, as there."""
ITERATIONS = {"lbfgs": 100, "liblinear": 1000}
"""Most iterations of a solver; results say where it stopped short of convergence. lbfgs: as in today's version of the
ProteinJEPA benchmark; with the 1,195 classes of remote homology, ten times as many cost minutes."""


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
    kind: SequenceKind,
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
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError as error:
        raise UserError("probes need scikit-learn and scipy: pip install 'protloom[tasks]'") from error
    scaler = StandardScaler()
    scaled = scaler.fit_transform(features)
    # only with several classes at once are there products that are worth sharing: else threads wait for each other, and
    # the 2-mer floor of a task with hundreds of labels takes eleven times as long
    limits = threadpool_limits(None if kind == "multiclass" and probe == "lbfgs" else 1)
    with limits, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimators = _fitted(scaled, labels, kind, probe, seed)
    values = {split: _apply(estimators, scaler.transform(rows), kind) for split, rows in asked.items()}
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    name = (
        f"ridge(alpha={ALPHA:g})" if kind == "regression" else f"logistic regression(C={C:g}, {_solver(kind, probe)})"
    )
    details = {"probe": f"StandardScaler + {name}", "features": features.shape[1], "converged": converged}
    return Output(values, details)


def nearest(
    features: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    asked: dict[str, NDArray[np.floating[Any]]],
    *,
    kind: SequenceKind,
    k: int,
    distance: Distance,
) -> Output:
    """Gives outputs by the nearest training rows; takes what :func:`fit` does.

    The output is the weighted mean of the neighbours' numbers, or of how often each class or label stands among them;
    where 0 divides two decisions (``binary``, ``multilabel``), less one half.
    """
    targets = one_hot(labels) if kind == "multiclass" else labels.reshape(len(labels), -1)
    probe = Neighbours(features, targets, k=k, distance=distance)
    values = {}
    for split, rows in asked.items():
        means = probe.means(rows)
        means = means - 0.5 if kind in ("binary", "multilabel") else means
        values[split] = means[:, 0] if kind in ("regression", "binary") else means
    return Output(values, probe.details)


def _solver(kind: SequenceKind, probe: Probe) -> str:
    if probe == "lbfgs":
        return "lbfgs, a regression a label" if kind == "multilabel" else "lbfgs"
    return "liblinear" if kind == "binary" else "liblinear, one against the rest"


def _fitted(scaled: NDArray[Any], labels: NDArray[Any], kind: SequenceKind, probe: Probe, seed: int) -> list[Any]:
    """Returns the fitted estimators: one, or one for every class."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "regression":
        return [Ridge(alpha=ALPHA).fit(scaled, labels)]
    solver = "lbfgs" if probe == "lbfgs" else "liblinear"

    def logistic() -> Any:
        return LogisticRegression(C=C, solver=solver, max_iter=ITERATIONS[solver], random_state=seed)

    if kind == "multilabel":
        columns = [labels[:, i] for i in range(labels.shape[1])]
    elif kind == "binary" or probe == "lbfgs":
        if len(np.unique(labels)) < 2:
            raise UserError("the training rows that have features hold one class: there is nothing to tell apart")
        return [logistic().fit(scaled, labels)]
    else:
        columns = [(labels == label).astype(np.int64) for label in range(int(labels.max()) + 1)]
    return [logistic().fit(scaled, of) if 0 < of.sum() < len(of) else _Always(of[:1]) for of in columns]


def _apply(estimators: list[Any], scaled: NDArray[Any], kind: SequenceKind) -> NDArray[np.float64]:
    if kind == "regression":
        return np.asarray(estimators[0].predict(scaled), dtype=np.float64)
    scores = [np.asarray(estimator.decision_function(scaled), dtype=np.float64) for estimator in estimators]
    if kind == "binary":
        return scores[0]
    if kind == "multiclass" and len(estimators) == 1:
        return _by_class(scores[0], estimators[0].classes_)
    return np.stack(scores, axis=1)


def _by_class(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns a column of scores for each class number, the lowest of all for a class that was not fitted.

    Of two classes, scikit-learn gives one score, that of the second.
    """
    columns = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
    found = np.full((len(columns), int(classes.max()) + 1), columns.min() - 1)
    found[:, classes] = columns
    return found


class _Always:
    """Stands for a label that all or none of the training rows have."""

    def __init__(self, label: NDArray[Any]) -> None:
        self._score = 20.0 if label[0] else -20.0

    def decision_function(self, scaled: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the same score for all."""
        return np.full(len(scaled), self._score)
