"""The tokenizer of ESM-2: 33 symbols, one residue a token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protloom.settings import Section
from protloom_plugins.tokenizers.letters import LetterTokenizer

# order of fair-esm's alphabet "ESM-1b" (Lin et al. 2023 keep it): the position is the id
VOCAB = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWC",
    *"XBUZO",
    *(".", "-", "<null_1>", "<mask>"),
)


class EsmTokenizerConfig(Section):
    """What becomes of letters beyond the 20 standard amino acids.

    By default, as in ESM-2: ``X``, ``B``, ``U``, ``Z``, ``O``, ``.`` and ``-`` have ids of their own; ``J`` and ``*``
    are unknown to the vocabulary and become ``<unk>``, as does every other byte.
    """

    lower_case: Literal["upper", "unknown"] = Field(
        default="upper", description="upper: a lower-case letter counts as its capital; unknown: <unk>, as in fair-esm"
    )
    rare: Literal["own", "x"] = Field(
        default="own", description="own: B, U, Z, O keep their ids and J is <unk>; x: all five become X"
    )
    gap: Literal["own", "unknown"] = Field(default="own", description="own: '-' and '.' keep their ids; unknown: <unk>")


class EsmTokenizer(LetterTokenizer):
    """ESM-2's tokenizer: ``<cls>`` residues ``<eos>``; see :class:`protloom.contracts.Tokenizer` for the attributes.

    Args:
        config: policies for unusual letters.
    """

    def __init__(self, config: EsmTokenizerConfig) -> None:
        self.config = config
        instead = dict.fromkeys("BUZOJ", "X") if config.rare == "x" else {}
        instead |= dict.fromkeys("-.", "<unk>") if config.gap == "unknown" else {}
        super().__init__("esm", VOCAB, begin="<cls>", end="<eos>", instead=instead, fold=config.lower_case == "upper")
