"""What is injected into assets, jobs and sensors. No asset logic, no settings.

The resource ``backups`` is the ``BackupSystem`` itself, not a ``ConfigurableResource``: its values come from
the environment alone, and a configurable one would print secrets in its ``repr`` and in the launchpad.
"""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.system import BackupSystem

#: For the annotation of an asset's ``backups`` argument.
Backups = dg.ResourceParam[BackupSystem]


def resource(system: BackupSystem) -> dg.ResourceDefinition:
    """The system as Dagster's UI lists it: with a name of its own, and what it is. A bare value has none there."""

    def backup_system(_: dg.InitResourceContext) -> BackupSystem:
        return system

    return dg.ResourceDefinition(
        backup_system,
        description="Catalog, dumper, verifier, driller and restorer of one database, made from the environment alone.",
    )
