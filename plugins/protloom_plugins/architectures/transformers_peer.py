"""Hugging Face transformers as the other program of ``protloom bench --against transformers``."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

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

    WITHOUT_CUDNN = "sdpa without cuDNN"
    """PyTorch prefers cuDNN's attention on Hopper and Blackwell, which plans anew for every shape of a padded batch."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        self._without_cudnn: WeakSet[nn.Module] = WeakSet()

    @property
    def attentions(self) -> tuple[str, ...]:
        """SDPA as it comes first; where there is CUDA, also without cuDNN's form of it."""
        import torch

        return ("sdpa", *((self.WITHOUT_CUDNN,) if torch.cuda.is_available() else ()), "eager")

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
        implementation = "sdpa" if attention == self.WITHOUT_CUDNN else attention
        model = network.from_pretrained(folder, attn_implementation=implementation, **self._options)
        if attention == self.WITHOUT_CUDNN:
            self._without_cudnn.add(model)
        return cast("nn.Module", model.train())

    def loss(self, model: nn.Module, inputs: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Returns what transformers itself computes as the loss."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(others) if model in self._without_cudnn else nullcontext():  # the backward pass follows
            return cast("Tensor", model(input_ids=inputs, attention_mask=mask, labels=labels).loss)


def esm2() -> TransformersPeer:
    """Returns the peer of ESM-2; the folder's config turns dropout off."""
    return TransformersPeer("EsmForMaskedLM", {})


def ankh() -> TransformersPeer:
    """Returns the peer of Ankh, a T5."""
    return TransformersPeer("T5ForConditionalGeneration", {"dropout_rate": 0.0})
