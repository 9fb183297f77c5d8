import pytest

from service.inference.dense_clock import LARGEST_SHARE, SAMPLES, DenseClock


@pytest.fixture
def clock() -> DenseClock:
    return DenseClock([1, 2, 4], [1.0, 1.5, 2.5])


def test_before_any_sample_the_warm_up_counts(clock: DenseClock) -> None:
    assert [clock.seconds(images) for images in (1, 2, 3, 4)] == [1.0, 1.5, 2.0, 2.5]


def test_samples_correct_the_sizes_near_them_and_no_others(clock: DenseClock) -> None:
    clock.sampled(1, 3.0)
    assert [clock.seconds(images) for images in (1, 2, 4)] == [3.0, 1.5, 2.5]
    clock.sampled(3, 8.0)
    assert clock.seconds(3) == pytest.approx(8.0)
    assert clock.seconds(4) == pytest.approx(10.0)


def test_one_disturbed_sample_changes_little_and_old_ones_are_forgotten(clock: DenseClock) -> None:
    for seconds in (2.0, 2.0, 2.2, 90.0):
        clock.sampled(1, seconds)
    assert clock.seconds(1) == pytest.approx(2.1)
    for _ in range(SAMPLES):
        clock.sampled(1, 1.2)
    assert clock.seconds(1) == pytest.approx(1.2)


def test_samples_take_a_small_share_of_the_engines_time(clock: DenseClock) -> None:
    assert not clock.due(1, 1e-9)
    clock.ran(1.0 / LARGEST_SHARE)
    assert not clock.due(1, 1e-9)
    clock.ran(0.1)
    assert clock.due(1, 1e-9)
    assert not clock.due(4, 1e-9)
    clock.sampled(1, 1.0)
    assert not clock.due(1, 1e-9)


def test_samples_are_an_interval_apart_and_an_interval_of_0_disables_them(clock: DenseClock) -> None:
    clock.ran(1000.0)
    assert not clock.due(1, 3600.0)
    assert not clock.due(1, 0.0)


def test_a_disturbance_counts_for_the_dense_run_too(clock: DenseClock) -> None:
    assert [clock.instead(1, seconds) for seconds in (0.5, 1.2, 3.0)] == [1.0, 1.0, 1.0]
    # Another process delayed this run by 200 seconds. Routing did not.
    assert clock.instead(1, 203.0) == 201.0
