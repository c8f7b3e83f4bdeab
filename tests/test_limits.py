"""Limits that must fit each other."""

from django.conf import settings

from compute.engines.libvirt import agent, engine
from compute.engines.store import HELPER_CPU_SECONDS


def test_the_longest_call_of_an_engine_ends_before_its_caller_counts_as_silent():
    """Else a region that does not answer would cost its operations strikes instead of being waited for (R24)."""
    spans = (engine.BEGIN_SECONDS, 3 * engine.POWER_SECONDS, engine.INVENTORY_SECONDS, 3 * agent.FREEZE_SECONDS)
    assert max(spans) < settings.LIMIT_SILENCE


def test_a_check_of_a_file_may_take_as_long_as_it_is_allowed_to():
    assert settings.LIMIT_STALL > HELPER_CPU_SECONDS
