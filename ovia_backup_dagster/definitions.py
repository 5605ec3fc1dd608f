"""The code location for a single database, configured by the environment. Dagster loads ``defs``.

Both ``workspace.yaml`` and ``[tool.dg]`` in pyproject.toml name this module. For several databases in one code
location, see ``component``. No logic here.
"""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.settings.model import Settings

#: Each run already has its own process or container, so assets materialized by hand need no process per step.
defs = dg.Definitions.merge(build_defs(Settings.load()), dg.Definitions(executor=dg.in_process_executor))
