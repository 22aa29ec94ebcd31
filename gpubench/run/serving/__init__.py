"""What `gpubench deploy` has written, as a classifier: ``gpubench.load(DIR)``."""

from __future__ import annotations

from gpubench.run.serving.classifier import Classifier, Prediction, load

__all__ = ["Classifier", "Prediction", "load"]
