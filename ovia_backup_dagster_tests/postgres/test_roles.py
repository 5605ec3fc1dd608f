from __future__ import annotations

from ovia_backup_dagster.postgres import roles
from ovia_backup_dagster_tests.conftest import PortCluster


def test_a_new_host_lacks_roles_that_no_object_names(server: PortCluster) -> None:
    saved = b"CREATE ROLE missing_reader;\nCREATE ROLE missing_owner;\n"
    schema = b"ALTER TABLE public.t OWNER TO missing_owner;\n"
    assert roles.missing(server.connection(), saved, schema) == ["missing_owner"]
    assert roles.missing(server.connection(), saved, None) == ["missing_reader", "missing_owner"]
