from __future__ import annotations

import pytest

from gpubench.run import availability
from gpubench.suite.types import Catalog


@pytest.fixture(scope="session")
def installed() -> Catalog:
    return availability.catalog()
