"""Networks built from separable convolutions, their weights, data and training.

The training command is ``python -m sepconv.models.train``.
"""

from .optimized import OptimizedXception, optimized_xception
from .original import Xception, xception
from .settings import SETTINGS, build_model
from .weights import load_pretrained

__all__ = [
    "SETTINGS",
    "OptimizedXception",
    "Xception",
    "build_model",
    "load_pretrained",
    "optimized_xception",
    "xception",
]
