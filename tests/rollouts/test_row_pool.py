import random

import pytest

from hf_evidenceflow.rollouts.row_pool import packing


def test_the_last_items_move_into_the_gaps():
    assert packing([True, False, True, False, True]) == ([1], [4], [0, 4, 2])


@pytest.mark.parametrize("seed", range(20))
def test_packing_keeps_each_item_once(seed):
    kept = [random.Random(seed + place).random() < 0.6 for place in range(13)]
    targets, sources, order = packing(kept)
    assert sorted(order) == [place for place, keep in enumerate(kept) if keep]
    assert len(targets) == len(sources) and not set(targets) & set(sources)
    places = list(range(13))
    for target, source in zip(targets, sources):
        places[target] = source
    assert places[: len(order)] == order
