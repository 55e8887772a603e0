"""What protloom asks of every objective."""

import pytest

from protloom.testing import conformance


@pytest.mark.parametrize("check", conformance("objective", "protloom-masked-diffusion/masked-diffusion"), ids=str)
def test_keeps_the_contract(check):
    check()
