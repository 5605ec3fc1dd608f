"""Replaced databases are found and dropped without remains; so are their subscriptions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import RestoreRefusedError
from ovia_backup_dagster.core.naming import before_at, before_name, restore_name
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration import subscriptions
from ovia_backup_dagster.restoration.replaced_databases import drop_replaced, kept
from ovia_backup_dagster.restoration.swap import swap_databases
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, running_cluster
from ovia_backup_dagster_tests.support.drilling import database, one

AT = datetime(2026, 2, 21, 3, 0, tzinfo=UTC)
LATER = datetime(2026, 2, 22, 3, 0, tzinfo=UTC)
SECONDS = 20


@pytest.mark.parametrize("name", ["ovia", "a_before_20260101000000", "é" * 31, "x" * 63, "x" * 41, "q'\"\n %"])
def test_names_fit_63_bytes_and_hold_their_time(name: str) -> None:
    before, restore = before_name(name, AT), restore_name(name, AT)
    assert max(len(before.encode()), len(restore.encode())) <= 63
    assert before.endswith("_before_20260221030000")
    assert restore.endswith("_restore_20260221030000")
    assert before_at(before, name) == AT
    assert before_at(restore, name) is None
    assert before_at(before, name[:-1] + "y") is None
    assert before_at(name, name) is None


def test_replaced_databases_are_found_and_dropped(server: PortCluster) -> None:
    names = [before_name("shop", AT), before_name("shop", LATER)]
    strangers = before_name("shop2", AT)
    with (
        database(server, names[0]),
        database(server, names[1]),
        database(server, "shop") as shop,
        database(server, strangers),
        admin(server, names[0]),
    ):
        assert [(k.name, k.at) for k in kept(shop, "shop")] == [(names[1], LATER), (names[0], AT)]
        for wrong in ("shop", "postgres", strangers, restore_name("shop", AT)):
            with pytest.raises(RestoreRefusedError):
                drop_replaced(shop, "shop", wrong)
        assert drop_replaced(shop, "shop", names[0]) == []
        assert [k.name for k in kept(shop, "shop")] == [names[1]]


@pytest.fixture
def subscriber(server: PortCluster, bin_dir: Path) -> Iterator[tuple[Connection, Connection]]:
    """A publisher, and a database of another server that is subscribed to it."""
    with (
        running_cluster(bin_dir, wal_level="logical") as publisher,
        database(publisher, "source") as source,
        database(server, "shop") as shop,
    ):
        execute(source, "CREATE TABLE t (n int)", "CREATE PUBLICATION p FOR TABLE t")
        to = f"host={publisher.folder} port={publisher.port} dbname=source user=postgres"
        subscribe = f"""CREATE SUBSCRIPTION "Sub 1" CONNECTION '{to}' PUBLICATION p WITH (slot_name = its_slot)"""
        execute(shop, "CREATE TABLE t (n int)", subscribe)
        yield source, shop


def applied(shop: Connection, source: Connection, n: int) -> bool:
    execute(source, f"INSERT INTO t VALUES ({n})")
    deadline = time.monotonic() + SECONDS
    while not one(shop, f"SELECT count(*) FROM t WHERE n = {n}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_subscription_is_stopped_swapped_back_and_dropped(
    server: PortCluster, subscriber: tuple[Connection, Connection]
) -> None:
    source, shop = subscriber
    before = before_name("shop", AT)
    assert applied(shop, source, 1)
    with database(server, "shop_new"):
        assert subscriptions.disable_subscriptions(shop, "shop") == ["Sub 1"]
        assert subscriptions.disable_subscriptions(shop, "shop") == []
        swap_databases(shop, "shop", "shop_new", before)
        execute(source, "INSERT INTO t VALUES (2)")
        assert [s.name for s in subscriptions.subscriptions_of(shop, before)] == ["Sub 1"]
        # Swapped back and enabled, the subscription catches up on the missed row.
        swap_databases(shop, "shop", before, "shop_new")
        assert one(shop, "SELECT count(*) FROM t WHERE n = 2") == 0
        subscriptions.enable_subscriptions(shop, "shop", ["Sub 1"])
        assert applied(shop, source, 3)
        assert one(shop, "SELECT count(*) FROM t WHERE n = 2") == 1
        # Swapped away again and dropped, while the subscription is applying.
        swap_databases(shop, "shop", "shop_new", before)
        assert drop_replaced(shop, "shop", before) == ["drop on its publisher: replication slot its_slot"]
        # The slot stays on the publisher: another subscription may use it by now.
        assert one(source, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'its_slot'") == 1
        assert kept(shop, "shop") == []
        assert subscriptions.subscriptions_of(shop, before) == []
