"""The tokenizer of AMPLIFY: 27 symbols, one residue a token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protloom.settings import Section
from protloom_plugins.tokenizers.letters import LetterTokenizer

# the position is the id; "|" separates the chains of a complex
VOCAB = ("<pad>", "<unk>", "<mask>", "<bos>", "<eos>", "|", *"LAGVSERTIDPKQNFYMHWC", "B")


class AmplifyTokenizerConfig(Section):
    """What becomes of letters beyond the 20 standard amino acids.

    Of the others only ``B`` and ``|`` (between chains) have ids. ``X``, ``U``, ``Z``, ``O``, ``J``, ``*``, ``-``, ``.``
    and every other byte become ``<unk>``: the vocabulary has no symbol that could stand for them.
    """

    lower_case: Literal["upper", "unknown"] = Field(
        default="upper", description="upper: a lower-case letter counts as its capital; unknown: <unk>, as released"
    )
    rare: Literal["own", "unknown"] = Field(
        default="own", description="own: B keeps its id; unknown: it is <unk>, like X, U, Z, O and J always"
    )


class AmplifyTokenizer(LetterTokenizer):
    """AMPLIFY's tokenizer: ``<bos>`` residues ``<eos>``; see :class:`protloom.contracts.Tokenizer`.

    Args:
        config: policies for unusual letters.
    """

    def __init__(self, config: AmplifyTokenizerConfig) -> None:
        self.config = config
        instead = {"B": "<unk>"} if config.rare == "unknown" else {}
        super().__init__(
            "amplify", VOCAB, begin="<bos>", end="<eos>", instead=instead, fold=config.lower_case == "upper"
        )
