from time import perf_counter

import pytest

from service.errors import Code, ServiceError
from service.inference.admission import Admission
from service.inference.dense_clock import DenseClock
from service.repository.loaded_model import LoadedModel


class ObservedAdmission(Admission):
    def __init__(
        self, max_images: int = 10, max_bytes: int = 100, rate: float = 0, request_timeout: float = 1000
    ) -> None:
        self.reasons: list[str] = []
        self.measured = rate
        super().__init__(max_images, max_bytes, request_timeout, lambda: self.measured, self.reasons.append)


def later(seconds: float = 1000) -> float:
    return perf_counter() + seconds


def test_a_full_queue_refuses_until_a_place_is_free(loaded: LoadedModel) -> None:
    admission = ObservedAdmission(max_images=3)
    with admission.admit(2, loaded, later(), perf_counter()):
        with pytest.raises(ServiceError) as caught, admission.admit(2, loaded, later(), perf_counter()):
            pytest.fail("was admitted")
        with admission.admit(1, loaded, later(), perf_counter()):
            assert admission.image_count == 3
    assert admission.image_count == 0
    assert caught.value.code == Code.OVERLOADED
    assert admission.reasons == ["queue_full"]


def test_an_error_frees_the_place(loaded: LoadedModel) -> None:
    admission = ObservedAdmission()
    with pytest.raises(ValueError, match="x"), admission.admit(1, loaded, later(), perf_counter()):
        raise ValueError("x")
    assert admission.image_count == 0


@pytest.mark.parametrize(("rate", "after"), [(1, "5"), (2, "3"), (0.1, "50"), (1000, "1")])
def test_retry_after_is_the_time_to_drain_half_the_queue(loaded: LoadedModel, rate: float, after: str) -> None:
    admission = ObservedAdmission(max_images=10, rate=rate)
    with (
        admission.admit(10, loaded, later(), perf_counter()),
        pytest.raises(ServiceError) as caught,
        admission.admit(1, loaded, later(), perf_counter()),
    ):
        pytest.fail("was admitted")
    assert caught.value.headers == {"Retry-After": after}


def test_retry_after_uses_the_warm_up_before_the_first_batch(loaded: LoadedModel) -> None:
    admission = ObservedAdmission(max_images=1)
    slow = LoadedModel(loaded.checkpoint, loaded.engine, loaded.mode, DenseClock([1, 4], [9.0, 36.0]))
    with (
        admission.admit(1, slow, later(), perf_counter()),
        pytest.raises(ServiceError) as caught,
        admission.admit(1, slow, later(), perf_counter()),
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
    admission = ObservedAdmission(max_images=100, rate=1e9, request_timeout=request_timeout)
    slow = LoadedModel(loaded.checkpoint, loaded.engine, loaded.mode, DenseClock([1, 2], [2.0, 2.0]))
    with admission.admit(4, slow, later(), perf_counter()):
        assert admission.drain_seconds(slow) == 4
        with pytest.raises(ServiceError) as caught, admission.admit(1, slow, later(3.9), perf_counter()):
            pytest.fail("was admitted")
        with admission.admit(1, slow, later(10), perf_counter()):
            pass
        # The request has used most of its time to send its body. Its client set no shorter deadline.
        with (
            pytest.raises(ServiceError, match="the deadline would pass") as slowly,
            admission.admit(1, slow, later(0.5), perf_counter() + 0.5 - request_timeout),
        ):
            pytest.fail("was admitted")
        assert slowly.value.outcome is None
    admission.reasons.pop()
    assert caught.value.code == Code.OVERLOADED
    assert (admission.reasons, caught.value.outcome) == ([reason], outcome)


def test_an_idle_service_admits_any_deadline(loaded: LoadedModel) -> None:
    slow = LoadedModel(loaded.checkpoint, loaded.engine, loaded.mode, DenseClock([1], [100.0]))
    with ObservedAdmission().admit(1, slow, later(0.001), perf_counter()):
        pass


def test_a_saturated_service_refuses_before_the_body_and_takes_no_place(loaded: LoadedModel) -> None:
    admission = ObservedAdmission(max_images=1)
    admission.refuse_if_saturated(loaded)
    with admission.admit(1, loaded, later(), perf_counter()), pytest.raises(ServiceError) as caught:
        admission.refuse_if_saturated(loaded)
    assert caught.value.code == Code.OVERLOADED
    assert admission.reasons == ["queue_full"]


def test_the_bytes_of_all_bodies_are_limited_and_released() -> None:
    admission = ObservedAdmission(max_bytes=100)
    with admission.hold_body() as hold:
        hold(60)
        with admission.hold_body() as other:
            other(40)
            with pytest.raises(ServiceError) as caught:
                other(1)
        assert admission.byte_count == 60
    assert admission.byte_count == 0
    assert caught.value.code == Code.OVERLOADED
    assert "Retry-After" in caught.value.headers
    assert admission.reasons == ["bodies_full"]
