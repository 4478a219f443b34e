from types import SimpleNamespace

import pytest

from hf_evidenceflow.recipes.command_line.number_checks import check_least, check_positive, check_share


ARGUMENTS = SimpleNamespace(rows=1, steps=None, top_p=0.5, temperature=0.0)


def test_numbers_in_their_ranges_and_those_not_given_pass():
    check_least(ARGUMENTS, rows=1, steps=2)
    check_positive(ARGUMENTS, "rows", "steps")
    check_share(ARGUMENTS, "top_p", "steps")


def test_a_number_outside_its_range_is_named_with_its_value():
    with pytest.raises(ValueError, match="`rows` must be at least 2, got 1"):
        check_least(ARGUMENTS, top_p=0, rows=2)
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got 0\.0"):
        check_positive(ARGUMENTS, "rows", "temperature")
    with pytest.raises(ValueError, match=r"`temperature` must be in \(0, 1\], got 0\.0"):
        check_share(ARGUMENTS, "temperature")
