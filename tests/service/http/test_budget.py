"""compute_budget over HTTP."""

from collections.abc import Callable
from dataclasses import replace

from models.checkpoint import CalibrationPoint
from service.repository.loaded_model import LoadedModel
from tests.service.http.routes.oip import request
from tests.service.parts import NAME, PNG, Running, encoded, picture


def test_the_budget_is_kept_and_the_response_has_the_cost(start: Callable[..., Running], model: LoadedModel) -> None:
    points = [(0.0, 1.0), (1.0, 0.1)]
    calibration = [
        CalibrationPoint(threshold=t, accuracy=share, computation_percentage=50, mac_share=share) for t, share in points
    ]
    config = model.checkpoint.config.model_copy(update={"calibration": calibration})
    model.checkpoint = replace(model.checkpoint, config=config)
    server = start()
    spent, expected = [], []
    for budget in (1.0, 0.5, 0.1):
        response = server.client.post(f"/classify?compute_budget={budget}", content=encoded(picture(0)), headers=PNG)
        spent.append(1 - response.json()["routing"]["saved"])
        expected.append(response.json()["expected_accuracy"])
        body = request(parameters={"compute_budget": budget})
        assert server.client.post(f"/v2/models/{NAME}/infer", json=body).status_code == 200
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > 0.99
    assert spent[-1] < 0.1
    assert expected == [1.0, 0.1, 0.1]
    response = server.client.post("/classify?execute_threshold=0", content=encoded(picture(0)), headers=PNG)
    assert "expected_accuracy" not in response.json()
    for query in ("compute_budget=0.05", "compute_budget=0.5&execute_threshold=0.5", "compute_budget=1.5"):
        refused = server.client.post(f"/classify?{query}", content=encoded(picture(0)), headers=PNG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_parameter")
