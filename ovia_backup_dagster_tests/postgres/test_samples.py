"""Databases that this project did not make pass the drill: those of PostgreSQL's own regression tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.drill.placement import Where
from ovia_backup_dagster_tests.conftest import PortCluster, running_cluster
from ovia_backup_dagster_tests.support.drilling import Drilling, assert_passed, database, one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.samples import SAMPLES, Sample

_COLUMNS = (
    "SELECT count(*) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
    "JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' AND c.oid >= 16384 "
)
#: Kind of object -> its least number in the database of PostgreSQL's own tests, and the query that counts them.
KINDS = {
    "tables": (405, "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND oid >= 16384"),
    "partitioned": (45, "SELECT count(*) FROM pg_class WHERE relkind = 'p'"),
    "by list": (18, "SELECT count(*) FROM pg_partitioned_table WHERE partstrat = 'l'"),
    "by range": (26, "SELECT count(*) FROM pg_partitioned_table WHERE partstrat = 'r'"),
    "by hash": (1, "SELECT count(*) FROM pg_partitioned_table WHERE partstrat = 'h'"),
    "inheritance": (
        38,
        "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid AND NOT relispartition",
    ),
    "views": (46, "SELECT count(*) FROM pg_class WHERE relkind = 'v' AND oid >= 16384"),
    "materialized": (8, "SELECT count(*) FROM pg_class WHERE relkind = 'm'"),
    "domains": (15, "SELECT count(*) FROM pg_type WHERE typtype = 'd' AND oid >= 16384"),
    "enums": (3, "SELECT count(*) FROM pg_type WHERE typtype = 'e'"),
    "ranges": (4, "SELECT count(*) FROM pg_type WHERE typtype = 'r' AND oid >= 16384"),
    "composites": (12, "SELECT count(*) FROM pg_type t JOIN pg_class c ON c.oid = typrelid AND relkind = 'c'"),
    "generated": (9, "SELECT count(*) FROM pg_attribute WHERE attgenerated <> '' AND attnum > 0"),
    "identity": (17, "SELECT count(*) FROM pg_attribute WHERE attidentity <> ''"),
    "triggers": (53, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"),
    "policies": (27, "SELECT count(*) FROM pg_policy"),
    "rules": (35, "SELECT count(*) FROM pg_rewrite WHERE rulename <> '_RETURN' AND oid >= 16384"),
    "functions": (270, "SELECT count(*) FROM pg_proc WHERE oid >= 16384"),
    "operator classes": (3, "SELECT count(*) FROM pg_opclass WHERE oid >= 16384"),
    "large objects": (3, "SELECT count(*) FROM pg_largeobject_metadata"),
    "full text": (1, _COLUMNS + "WHERE a.atttypid = 'tsvector'::regtype"),
    "jsonb": (1, _COLUMNS + "WHERE a.atttypid = 'jsonb'::regtype"),
    "arrays": (18, _COLUMNS + "WHERE t.typcategory = 'A'"),
    "statistics": (4, "SELECT count(*) FROM pg_statistic_ext"),
}
#: The extensions whose tests leave tables or an extension behind.
_CONTRIB = """
    bloom btree_gin btree_gist citext cube dblink dict_int earthdistance file_fdw fuzzystrmatch hstore isn lo ltree
    pg_trgm pgcrypto pgstattuple postgres_fdw seg tablefunc tsm_system_rows unaccent xml2
"""


@pytest.fixture(scope="module")
def sources() -> Path:
    """The sources of the regression tests. `make test` fetches them."""
    if not (SAMPLES / "src").exists():
        message = "PostgreSQL's regression tests are missing: make test fetches them into .cache"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SAMPLES


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server may read."""
    made = Path(tempfile.mkdtemp(prefix="ovia-samples-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.exhaustive
def test_the_database_of_postgresqls_own_tests_passes(
    sources: Path, full_bin_dir: Path, folder: Path, tmp_path: Path
) -> None:
    with running_cluster(full_bin_dir) as cluster, database(cluster, "regression", "LOCALE 'C'") as source:
        sample = Sample(source, full_bin_dir, "src/test/regress", folder)
        sample.run(sample.schedule)
        found = {kind: one(source, query) for kind, (_, query) in KINDS.items()}
        assert {kind: found[kind] for kind, (least, _) in KINDS.items() if int(str(found[kind])) < least} == {}
        drilling = Drilling(source, full_bin_dir, tmp_path)
        drilling.dump()

        evidence = drilling.drill()

        assert evidence.rows > 100_000
        # Parents that gained columns after their children; other deparsed text; stale materialized views.
        odd = Check.TABLES, Check.SCHEMA_TEXT, Check.COMPUTED
        assert_passed(evidence, *odd)

        # The same in a database on the source's server, without its roles.
        assert_passed(drilling.drill(Where.DATABASE), *odd)


@pytest.mark.exhaustive
def test_the_databases_of_the_extensions_pass(sources: Path, full_bin_dir: Path, folder: Path, tmp_path: Path) -> None:
    with running_cluster(full_bin_dir) as cluster, database(cluster, "contrib_regression", "LOCALE 'C'") as source:
        for contrib in _CONTRIB.split():
            sample = Sample(source, full_bin_dir, f"contrib/{contrib}", folder)
            # The first script creates the extension.
            sample.run(dict.fromkeys([name for name in (contrib, "init") if name in sample.scripts] + sample.scripts))
        extensions = int(str(one(source, "SELECT count(*) FROM pg_extension")))

        evidence = Drilling(source, full_bin_dir, tmp_path).dump_and_drill()

    assert extensions > 15
    assert evidence.rows > 10_000
    assert_passed(evidence)


@pytest.mark.parametrize("encoding", thinned(["euc_jp", "euc_kr", "euc_tw"]))
def test_the_databases_of_other_encodings_pass(
    encoding: str, sources: Path, full_server: PortCluster, full_bin_dir: Path, folder: Path, tmp_path: Path
) -> None:
    with database(full_server, f"mb_{encoding}", f"LOCALE 'C' ENCODING '{encoding}'") as source:
        sample = Sample(source, full_bin_dir, "src/test/mb", folder)
        sample.run([encoding])

        evidence = Drilling(source, full_bin_dir, tmp_path).dump_and_drill()

    assert evidence.rows == 3
    assert all(table.size_bytes for table in evidence.tables)
    assert_passed(evidence)
