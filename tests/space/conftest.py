from __future__ import annotations

import pytest

from gpubench.run import setup
from gpubench.suite import Catalog


@pytest.fixture(scope="session")
def installed() -> Catalog:
    return setup.catalog()
