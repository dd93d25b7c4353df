import pytest

from benchmarks.pairs import Ratio


def test_the_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds():
    ratio = Ratio.of([2.0, 4.0, 30.0], [1.0, 4.0, 10.0])

    assert ratio.value == 1.0  # 4 / 4, though the rounds say 2, 1 and 3
    assert 1.0 <= ratio.low < ratio.high <= 3.0
    assert ratio.rounds == 3


def test_a_disturbance_that_meets_both_sides_of_a_round_leaves_no_spread():
    load = [1.0, 5.0, 1.0, 2.0]
    ratio = Ratio.of([3 * x for x in load], load)

    assert (ratio.value, ratio.low, ratio.high) == (3.0, 3.0, 3.0)
    assert str(ratio) == "3.00 (3.00 - 3.00)"


@pytest.mark.parametrize(("above", "below"), [([1.0], [1.0, 2.0]), ([], [])])
def test_unpaired_rounds_are_refused(above, below):
    with pytest.raises(ValueError, match="rounds do not match"):
        Ratio.of(above, below)
