"""Seal models for servers that are not trusted.

1. ``occlude keygen -o owner.key`` makes a key, once.
2. :func:`seal` encrypts an ONNX model and signs it; with a :class:`Guard` it is harder to copy
   by asking it. :mod:`occlude.guard` trains what that needs.
3. ``occlude serve`` answers with the sealed model inside a trusted execution environment.

This package runs the ``occlude`` program, which does the cryptography.
"""

from occlude._seal import OccludeError, Sealed, seal
from occlude.guard import (
    Budget,
    Budgets,
    Guard,
    Issuer,
    Misinformation,
    Shaping,
    Telemetry,
    Work,
)

__all__ = [
    "Budget",
    "Budgets",
    "Guard",
    "Issuer",
    "Misinformation",
    "OccludeError",
    "Sealed",
    "Shaping",
    "Telemetry",
    "Work",
    "seal",
]
__version__ = "0.1.0"
