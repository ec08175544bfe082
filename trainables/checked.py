"""What the settings' classes share: how strictly they are read, and checks of single numbers."""

from __future__ import annotations

from typing import Any

from trainables.errors import ConfigError

STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}
"""Read by the spec's validator: unknown keys are errors, and nothing is converted silently."""


def check_positive(where: str, **values: float) -> None:
    """Raises ConfigError for the first of `values` that is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{where}.{name} is {value}; give a positive number.")


def check_not_negative(where: str, **values: float) -> None:
    """Raises ConfigError for the first of `values` that is below zero."""
    for name, value in values.items():
        if not value >= 0:
            raise ConfigError(f"{where}.{name} is {value}; give zero or a positive number.")
