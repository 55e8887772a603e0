"""The conformance kit: what the contract of each kind of component promises, as checks that run on any of them.

In the tests of a plugin::

    import pytest
    from protloom.testing import conformance

    @pytest.mark.parametrize("check", conformance("objective", "my-objective"), ids=str)
    def test_keeps_the_contract(check):
        check()

On the command line: ``protloom check-plugin my-plugin``. A check that fails raises :class:`Violation`, which says what
was promised, what was found, and where.
"""

from protloom.testing.checks import Check, Violation, conformance

__all__ = ["Check", "Violation", "conformance"]
