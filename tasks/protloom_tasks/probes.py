"""Simple classifiers on frozen features: scikit-learn's, with everything that changes a result stated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject

Kind = Literal["multinomial", "ovr", "l1"]

ALPHA = 1.0
"""Penalty of the ridge regression."""

ITERATIONS = 1000
"""Most iterations of a solver; the result says where it stopped short of convergence."""


@dataclass(frozen=True)
class Fitted:
    """A fitted probe.

    Attributes:
        model: StandardScaler and what follows it, a scikit-learn pipeline.
        details: what it is and what it was fitted on.
    """

    model: Any
    details: dict[str, Any]

    def predict(self, features: NDArray[np.floating]) -> NDArray[Any]:
        """Returns the class of every row, or its number."""
        labels: NDArray[Any] = self.model.predict(features)
        return labels

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Returns the decision value of every row of a two-class probe; higher means the second class."""
        values: NDArray[np.floating] = self.model.decision_function(features)
        return values


def fit_classifier(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    kind: Kind = "multinomial",
    c: float = 1.0,
    seed: int = 0,
) -> Fitted:
    """Fits a logistic regression behind a StandardScaler.

    Args:
        features: ``[R, D]``.
        labels: ``[R]``, at least two classes.
        kind: ``multinomial`` (softmax, L-BFGS, L2), ``ovr`` (one-vs-rest, liblinear, L2) or ``l1`` (two classes,
            liblinear, L1).
        c: inverse strength of the penalty.
        seed: of the solver.

    Raises:
        UserError: if scikit-learn is missing, or there is one class only.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError as error:
        raise UserError("probes need scikit-learn and scipy: pip install 'protloom[tasks]'") from error
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError(f"a probe needs two classes at least, the {len(labels)} training labels hold {len(classes)}")
    if kind == "multinomial":
        estimator: Any = LogisticRegression(C=c, max_iter=ITERATIONS, random_state=seed)
    elif kind == "ovr":
        one = LogisticRegression(C=c, solver="liblinear", max_iter=ITERATIONS, random_state=seed)
        estimator = OneVsRestClassifier(one)
    else:
        estimator = LogisticRegression(C=c, l1_ratio=1.0, solver="liblinear", max_iter=ITERATIONS, random_state=seed)
    model = make_pipeline(StandardScaler(), estimator)
    # a second thread brings nothing with these few columns, and where cores are busy threads wait for each other: ten
    # times as long
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features, labels)
    stopped = any(issubclass(w.category, ConvergenceWarning) for w in caught)
    details = {
        "probe": f"StandardScaler + {kind} logistic regression, C={c:g}",
        "rows": len(labels),
        "features": int(features.shape[1]),
        "converged": not stopped,
    }
    return Fitted(model, details)


def fit_regressor(features: NDArray[np.floating], labels: NDArray[np.floating]) -> Fitted:
    """Fits a ridge regression behind a StandardScaler; ``[R, D]`` features, ``[R]`` numbers.

    Raises:
        UserError: if scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise UserError("probes need scikit-learn and scipy: pip install 'protloom[tasks]'") from error
    model = make_pipeline(StandardScaler(), Ridge(alpha=ALPHA)).fit(features, labels)
    details = {
        "probe": f"StandardScaler + ridge(alpha={ALPHA:g})",
        "rows": len(labels),
        "features": int(features.shape[1]),
        "converged": True,
    }
    return Fitted(model, details)


@dataclass(frozen=True)
class Rows:
    """Residues chosen for a probe.

    Attributes:
        features: ``[R, D]``.
        labels: ``[R]``.
        protein: ``[R]`` number of the protein.
        missing: labelled residues that got no features, because the subject left out part of a long sequence.
    """

    features: NDArray[np.float32]
    labels: NDArray[Any]
    protein: NDArray[np.int64]
    missing: int


def known(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Returns which residues have a label: a class that is not negative, or a number that is not NaN."""
    there = labels >= 0 if np.issubdtype(labels.dtype, np.integer) else np.isfinite(labels)
    return np.flatnonzero(there)


def choose_residues(labels: Sequence[NDArray[Any]], most: int | None, seed: int) -> list[NDArray[np.int64]]:
    """Returns for each protein which residues to use: all labelled ones, or ``most`` of them drawn by seed."""
    chosen = [known(of) for of in labels]
    total = sum(map(len, chosen))
    if most is None or total <= most:
        return chosen
    keep = np.zeros(total, dtype=np.bool_)
    keep[np.random.default_rng(seed).choice(total, size=most, replace=False)] = True
    ends = np.cumsum([len(of) for of in chosen])[:-1]
    return [of[kept] for of, kept in zip(chosen, np.split(keep, ends), strict=True)]


def gather(
    subject: Subject,
    sequences: Sequence[str],
    labels: Sequence[NDArray[Any]],
    chosen: Sequence[NDArray[np.int64]],
) -> Rows:
    """Returns the features of chosen residues; only those are kept in memory.

    Args:
        subject: gives features.
        sequences: residues of each protein.
        labels: ``[L]`` of each protein.
        chosen: residues of each protein to keep.
    """
    kept: list[NDArray[np.float32]] = []
    targets: list[NDArray[Any]] = []
    owners: list[NDArray[np.int64]] = []
    missing = 0
    for i, states in enumerate(subject.residues(sequences)):
        index = chosen[i][chosen[i] < len(states)]
        missing += len(chosen[i]) - len(index)
        kept.append(states[index])
        targets.append(labels[i][index])
        owners.append(np.full(len(index), i, dtype=np.int64))
    return Rows(np.concatenate(kept), np.concatenate(targets), np.concatenate(owners), missing)
