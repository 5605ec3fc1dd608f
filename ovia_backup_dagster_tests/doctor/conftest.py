"""The Dagster layer's fixtures, for the doctor's observations of Dagster."""

from __future__ import annotations

from ovia_backup_dagster_tests.defs.conftest import bare, instance, new_location

__all__ = ["bare", "instance", "new_location"]
