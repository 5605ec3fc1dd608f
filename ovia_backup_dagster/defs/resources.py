"""What is injected into assets, jobs and sensors. No asset logic, no settings.

The resource ``backups`` is the ``BackupSystem`` itself, not a ``ConfigurableResource``: its values come from
the environment alone, and a configurable one would print secrets in its ``repr`` and in the launchpad.
"""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.system import BackupSystem

#: For the annotation of an asset's ``backups`` argument.
Backups = dg.ResourceParam[BackupSystem]
