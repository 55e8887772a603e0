"""Hugging Face transformers as the other program of ``protloom bench --against transformers``."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


class TransformersPeer:
    """Trains a network as one of transformers' classes.

    Args:
        model: name of the class; its ``forward`` takes ids, mask and labels.
        options: that it is loaded with.
    """

    attentions = ("sdpa", "eager")

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)

    def unavailable(self) -> str | None:
        """Returns how to install transformers if it is not there."""
        if find_spec("transformers") is None:
            return "transformers is not installed: pip install 'transformers>=4.57,<6'"
        return None

    def version(self) -> str:
        """Returns the installed version."""
        return metadata.version("transformers")

    def load(self, folder: Path, attention: str) -> nn.Module:
        """Loads a folder that was written for transformers; see :meth:`protloom.contracts.Peer.load`."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        network = getattr(transformers, self._model)
        model = network.from_pretrained(folder, attn_implementation=attention, **self._options)
        return cast("nn.Module", model.train())

    def loss(self, model: nn.Module, inputs: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Returns what transformers itself computes as the loss."""
        return cast("Tensor", model(input_ids=inputs, attention_mask=mask, labels=labels).loss)


def esm2() -> TransformersPeer:
    """Returns the peer of ESM-2; the folder's config turns dropout off."""
    return TransformersPeer("EsmForMaskedLM", {})


def ankh() -> TransformersPeer:
    """Returns the peer of Ankh, a T5."""
    return TransformersPeer("T5ForConditionalGeneration", {"dropout_rate": 0.0})
