"""The server keeps the contract of its OpenAPI document, tested by schemathesis over a real socket."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.parts import Running

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]

BOUNDED = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_contract(running: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    # They would change what the other tests are served. test_fuzz calls them with other names.
    operations = [
        each.ok() for each in schema.exclude(path_regex="/(load|unload|promote|rollback)$").get_all_operations()
    ]
    assert {"/classify", "/v2/models/{model}/infer", "/metrics"} <= {operation.path for operation in operations}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # Its path takes any name, so no request can violate the contract.

        @BOUNDED
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps_it(case: schemathesis.Case) -> None:
            response = case.call()
            # A deadline of a few nanoseconds is valid.
            assert response.status_code < 500 or response.status_code == 504
            case.validate_response(response, checks=CHECKS)

        keeps_it()
