from tests.service.conftest import repository

__all__ = ["repository"]
