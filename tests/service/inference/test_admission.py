from time import perf_counter

import pytest

from service.errors import Code, ServiceError
from service.inference.admission import Admission
from service.inference.dense_clock import DenseClock
from service.repository.loaded_model import LoadedModel


class Door(Admission):
    def __init__(
        self, max_images: int = 10, max_bytes: int = 100, rate: float = 0, request_timeout: float = 1000
    ) -> None:
        self.reasons: list[str] = []
        self.measured = rate
        super().__init__(max_images, max_bytes, request_timeout, lambda: self.measured, self.reasons.append)


def later(seconds: float = 1000) -> float:
    return perf_counter() + seconds


def test_full_house_is_refused_until_someone_leaves(loaded: LoadedModel) -> None:
    door = Door(max_images=3)
    with door.admit(2, loaded, later(), perf_counter()):
        with pytest.raises(ServiceError) as caught, door.admit(2, loaded, later(), perf_counter()):
            pytest.fail("was admitted")
        with door.admit(1, loaded, later(), perf_counter()):
            assert door.image_count == 3
    assert door.image_count == 0
    assert caught.value.code == Code.OVERLOADED
    assert door.reasons == ["queue_full"]


def test_place_is_given_back_after_an_error(loaded: LoadedModel) -> None:
    door = Door()
    with pytest.raises(ValueError, match="x"), door.admit(1, loaded, later(), perf_counter()):
        raise ValueError("x")
    assert door.image_count == 0


@pytest.mark.parametrize(("rate", "after"), [(1, "5"), (2, "3"), (0.1, "50"), (1000, "1")])
def test_retry_after_is_half_the_house_at_the_measured_rate(loaded: LoadedModel, rate: float, after: str) -> None:
    door = Door(max_images=10, rate=rate)
    with (
        door.admit(10, loaded, later(), perf_counter()),
        pytest.raises(ServiceError) as caught,
        door.admit(1, loaded, later(), perf_counter()),
    ):
        pytest.fail("was admitted")
    assert caught.value.headers == {"Retry-After": after}


def test_before_anything_is_measured_the_warm_up_tells(loaded: LoadedModel) -> None:
    door = Door(max_images=1)
    slow = LoadedModel(loaded.checkpoint, loaded.engine, loaded.mode, DenseClock([1, 4], [9.0, 36.0]))
    with (
        door.admit(1, slow, later(), perf_counter()),
        pytest.raises(ServiceError) as caught,
        door.admit(1, slow, later(), perf_counter()),
    ):
        pytest.fail("was admitted")
    assert caught.value.headers == {"Retry-After": "5"}


@pytest.mark.parametrize(
    ("request_timeout", "reason", "outcome"),
    [(3.9, "deadline_out_of_reach", None), (4.1, "client_deadline", "client_deadline")],
)
def test_deadline_out_of_reach_assumes_that_every_block_runs(
    loaded: LoadedModel, request_timeout: float, reason: str, outcome: str | None
) -> None:
    door = Door(max_images=100, rate=1e9, request_timeout=request_timeout)
    slow = LoadedModel(loaded.checkpoint, loaded.engine, loaded.mode, DenseClock([1, 2], [2.0, 2.0]))
    with door.admit(4, slow, later(), perf_counter()):
        assert door.drain_seconds(slow) == 4
        with pytest.raises(ServiceError) as caught, door.admit(1, slow, later(3.9), perf_counter()):
            pytest.fail("was admitted")
        with door.admit(1, slow, later(10), perf_counter()):
            pass
        # Of its time a request has used most by then, in sending its body: no client asked for less.
        with (
            pytest.raises(ServiceError, match="the deadline would pass") as slowly,
            door.admit(1, slow, later(0.5), perf_counter() + 0.5 - request_timeout),
        ):
            pytest.fail("was admitted")
        assert slowly.value.outcome is None
    door.reasons.pop()
    assert caught.value.code == Code.OVERLOADED
    assert (door.reasons, caught.value.outcome) == ([reason], outcome)


def test_an_empty_house_admits_any_deadline(loaded: LoadedModel) -> None:
    slow = LoadedModel(loaded.checkpoint, loaded.engine, loaded.mode, DenseClock([1], [100.0]))
    with Door().admit(1, slow, later(0.001), perf_counter()):
        pass


def test_a_saturated_service_refuses_before_the_body_and_takes_no_place(loaded: LoadedModel) -> None:
    door = Door(max_images=1)
    door.refuse_if_saturated(loaded)
    with door.admit(1, loaded, later(), perf_counter()), pytest.raises(ServiceError) as caught:
        door.refuse_if_saturated(loaded)
    assert caught.value.code == Code.OVERLOADED
    assert door.reasons == ["queue_full"]


def test_bytes_are_bounded_over_all_bodies_and_given_back() -> None:
    door = Door(max_bytes=100)
    with door.hold_body() as hold:
        hold(60)
        with door.hold_body() as other:
            other(40)
            with pytest.raises(ServiceError) as caught:
                other(1)
        assert door.byte_count == 60
    assert door.byte_count == 0
    assert caught.value.code == Code.OVERLOADED
    assert "Retry-After" in caught.value.headers
    assert door.reasons == ["bodies_full"]
