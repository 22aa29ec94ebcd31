"""Where and when: words -> plan -> driver -> records. Called, it is `gpubench.run.api.run`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Called(ModuleType):
    """``gpubench.run(...)`` measures, and ``gpubench.run`` holds the modules that do."""

    def __call__(self, suite_or_model: Any, **options: Any) -> Any:
        from gpubench.run import api

        return api.run(suite_or_model, **options)


sys.modules[__name__].__class__ = _Called
