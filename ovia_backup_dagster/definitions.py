"""The code location of the one database that the environment names: ``defs`` is what Dagster loads.

Both ``workspace.yaml`` and ``[tool.dg]`` in pyproject.toml name this module. Several databases in one code location
are ``component``'s business. No logic here.
"""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.settings.model import Settings

#: Each run is a process or container of its own already: what is materialized by hand needs no more of them, either.
defs = dg.Definitions.merge(build_defs(Settings.load()), dg.Definitions(executor=dg.in_process_executor))
