"""What inference shares: batches of so many tokens, letters as ids, where a network lies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from protloom import config
from protloom.inference import batch_tokens, batches, device_of, letter_ids
from protloom.plugins import Registry


def test_batches_take_as_much_as_fits() -> None:
    sizes = [3, 3, 4, 11, 1, 10, 2]
    found = list(batches(range(len(sizes)), lambda number: sizes[number], 10))
    assert found == [[0, 1, 2], [3], [4], [5], [6]]
    assert list(batches("abc", lambda _: 1, 0)) == [["a"], ["b"], ["c"]]
    assert list(batches([], len, 10)) == []


def test_batches_read_no_further_than_they_must() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    found = batches(items(), lambda _: 2, 7)
    assert read == []
    assert next(found) == [0, 1, 2]
    assert read == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["esm", "ankh3"])
def test_letters_are_looked_up_as_the_tokenizer_does(name: str, registry: Registry) -> None:
    chosen = config.choose("tokenizer", name, {}, registry)
    tokenizer = chosen.component.load_factory()(chosen.config)
    sequence = "MKTAYIAKQRQISFVKSHFSRQXUB"
    found = letter_ids(tokenizer, sequence)
    assert found.dtype == np.int64
    assert [*tokenizer.prefix, *found.tolist(), *tokenizer.suffix] == tokenizer.encode(sequence).tolist()
    with pytest.raises(UnicodeEncodeError):
        letter_ids(tokenizer, "MKÄ")


def test_where_a_network_lies() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.Identity()) == torch.device("cpu")


def test_tokens_of_a_batch() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert (batch_tokens(cpu), batch_tokens(cuda)) == (4096, 8192)
    assert {batch_tokens(device, 7) for device in (cpu, cuda)} == {7}
