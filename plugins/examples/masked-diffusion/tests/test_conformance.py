"""What protloom asks of every objective, and of every way to write."""

import pytest

from protloom.testing import conformance

NAME = "protloom-masked-diffusion/masked-diffusion"


@pytest.mark.parametrize("check", [*conformance("objective", NAME), *conformance("generator", NAME)], ids=str)
def test_keeps_the_contract(check):
    check()
