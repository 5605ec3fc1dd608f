"""PostgreSQL backups for Ovia: proven restorable, with an alert when they are not.

ARCHITECTURE.md says which module does what. This module holds the version and the names that other Dagster projects
import. The modules that define those names are imported on first use, so that the command line, which needs no Dagster,
starts without it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_EXPORTED = {
    "PostgresBackup": "ovia_backup_dagster.component",
    "Settings": "ovia_backup_dagster.settings.model",
    "build_defs": "ovia_backup_dagster.defs.code_location",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTED:
        return getattr(import_module(_EXPORTED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Include the exported names: ``dg`` looks for components here."""
    return sorted({*globals(), *_EXPORTED})
