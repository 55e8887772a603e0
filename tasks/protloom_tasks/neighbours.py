"""The probe that learns nothing: the mean label of the nearest training rows, nearer ones counting more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Distance = Literal["cosine", "euclid"]


class Neighbours:
    """Training rows that are searched; features are taken as they are, without a StandardScaler.

    Args:
        features: ``[n, D]`` of the training rows.
        targets: ``[n, T]`` labels as numbers, classes one-hot.
        k: how many rows count; all where there are fewer.
        distance: ``cosine`` (1 − cosine similarity) or ``euclid``.

    Attributes:
        details: what it is.

    Raises:
        UserError: if scikit-learn is missing or there is no training row.
    """

    def __init__(
        self, features: NDArray[np.floating[Any]], targets: NDArray[Any], *, k: int = 5, distance: Distance = "cosine"
    ) -> None:
        try:
            from sklearn.neighbors import NearestNeighbors
        except ImportError as error:
            raise UserError("probes need scikit-learn and scipy: pip install 'protloom[tasks]'") from error
        if not len(features):
            raise UserError("no training row has features: there are no neighbours to look for")
        self._k = min(k, len(features))
        self._targets = np.asarray(targets, dtype=np.float64)
        metric = "cosine" if distance == "cosine" else "euclidean"
        self._search = NearestNeighbors(n_neighbors=self._k, metric=metric, algorithm="brute").fit(features)
        self.details: dict[str, Any] = {
            "probe": f"{self._k} nearest neighbours, {distance}, weighted by 1 / distance",
            "rows": len(features),
            "features": int(features.shape[1]),
        }

    def means(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Returns ``[m, T]``: the weighted mean of the neighbours' targets.

        Weights are 1 / distance; where a neighbour is at no distance, those at none count alike and the others not.
        """
        if not len(features):
            return np.zeros((0, self._targets.shape[1]))
        distance, index = self._search.kneighbors(features)  # [m, k]
        distance = np.maximum(np.asarray(distance, dtype=np.float64), 0.0)
        same = distance == 0
        with np.errstate(divide="ignore"):
            weights = np.where(same.any(axis=1, keepdims=True), same, 1 / distance)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("mk,mkt->mt", weights, self._targets[index]))


class NeighbourLabels:
    """:class:`Neighbours` of rows with a class or a number each.

    Args:
        features: ``[n, D]``.
        labels: ``[n]`` classes from 0, or numbers.
        k: how many count.
        distance: see :class:`Neighbours`.

    Attributes:
        details: what it is.
    """

    def __init__(
        self, features: NDArray[np.floating[Any]], labels: NDArray[Any], *, k: int, distance: Distance
    ) -> None:
        self._classes = np.issubdtype(labels.dtype, np.integer)
        targets = one_hot(labels) if self._classes else labels[:, None]
        self._neighbours = Neighbours(features, targets, k=k, distance=distance)
        self.details = self._neighbours.details

    def predict(self, features: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Returns the class with most weight of every row, the first of equals, or the weighted mean number."""
        means = self._neighbours.means(features)
        return means.argmax(axis=1) if self._classes else means[:, 0]


def one_hot(labels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Returns ``[n, C]`` of 0 and 1, C one more than the largest label."""
    return np.eye(int(labels.max()) + 1)[labels]
