"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import math

import pytest

from protloom.errors import UserError
from protloom.schedules import check, factor
from protloom.settings import ScheduleConfig

TOTAL = 101


def rates(**options: object) -> list[float]:
    config = ScheduleConfig.model_validate(options)
    return [factor(config, step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "inverse_sqrt", "wsd"])
def test_every_form_warms_up_linearly_to_one(name: str) -> None:
    values = rates(name=name, warmup_steps=10)
    assert values[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert max(values) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_decaying_forms_end_at_the_final_fraction(name: str) -> None:
    assert rates(name=name, warmup_steps=10, final_fraction=0.1)[-1] == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates(name="cosine", final_fraction=0.0)[50] == pytest.approx(0.5)
    assert rates(name="cosine", final_fraction=0.0)[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_inverse_square_root_halves_at_four_times_the_warmup() -> None:
    assert rates(name="inverse_sqrt", warmup_steps=10, final_fraction=0.0)[40] == pytest.approx(0.5)


def test_wsd_is_flat_until_its_decay() -> None:
    values = rates(name="wsd", warmup_steps=10, decay_steps=20, final_fraction=0.0)
    assert values[10:82] == pytest.approx([1.0] * 72)
    assert values[91] == pytest.approx(0.5, abs=0.03)


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warm-up"):
        check(ScheduleConfig(warmup_steps=100), 100)
    check(ScheduleConfig(warmup_steps=99), 100)


def test_a_warmup_that_runs_into_the_default_decay_is_refused() -> None:
    # wsd decays over the last tenth unless told otherwise
    with pytest.raises(UserError, match=r"warm-up and decay take 105 of trainer\.steps=100"):
        check(ScheduleConfig(name="wsd", warmup_steps=95), 100)
    check(ScheduleConfig(name="wsd", warmup_steps=90), 100)
