"""The commands of one deployment come from its settings, and are in no message of another deployment."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

import ovia_backup_dagster
from ovia_backup_dagster.core.deployment_hints import Hints, steps
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Connection, Variables
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import REPOSITORY

PACKAGE = Path(ovia_backup_dagster.__file__).parent
#: Code that is about Docker itself: the stack's containers, and the services that SWARM_APP_SERVICES names.
OF_THE_STACK = ("container/", "swarm/", "restoration/")
DOCKERS = re.compile(
    r"\bdocker (?:service|exec|volume|network|ps|logs|inspect)\b|\bovia_(?:postgres|backup_data|backup=)"
)


def test_no_message_names_a_deployments_services() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        if name.startswith(OF_THE_STACK):
            continue
        texts = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
        found += [(name, text) for text in texts if isinstance(text, str) and DOCKERS.search(text)]

    # The doctor's part on restores prints it if services are named.
    assert found == [("doctor/examination.py", "docker service ls")]


def test_the_stack_sets_every_hint() -> None:
    text = (REPOSITORY / "deploy/stack.yml").read_text("utf-8")
    block = re.search(r"^  DEPLOYMENT_HINTS: \|\n((?:    .+\n)+)", text, re.MULTILINE)
    assert block is not None
    hints = Hints.parse(block[1].replace("$$", "$"))
    assert all(asdict(hints).values())
    assert hints.disk == "docker exec $(docker ps -q -f name=ovia_postgres) df -h"


@pytest.mark.parametrize("text", ["server", "nobody: x", "server systemctl status postgresql"])
def test_a_line_without_a_service_is_no_hint(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ", ".join(field.name for field in fields(Hints))
    with pytest.raises(ValueError, match=f"one of {names}"):
        Hints.parse(text)
    monkeypatch.setenv("POSTGRES_HOST", "db")
    monkeypatch.setenv("DEPLOYMENT_HINTS", text)
    assert Settings.load().problems == (f"DEPLOYMENT_HINTS: a line is NAME: COMMAND, and NAME one of {names}",)


def test_hints_apply_to_the_configured_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "db")
    monkeypatch.setenv("DEPLOYMENT_HINTS", "server: systemctl status postgresql\n\ndisk:df -h /srv\n")

    def advice(connection: Connection) -> str:
        return diagnose("Connection refused", what="it failed", connection=connection).fix

    system = BackupSystem(Settings.load())
    assert advice(system.connection) == "pg_isready -h db -p 5432; systemctl status postgresql"
    assert advice(system.restore_connection) == advice(system.connection)
    full = "pg_dump: error: ERROR:  could not write: No space left on device"
    assert diagnose(full, what="", connection=system.connection).fix == "make room on the server: df -h /srv"
    monkeypatch.setenv("RESTORE_POSTGRES_HOST", "new")
    assert advice(BackupSystem(Settings.load()).restore_connection) == "pg_isready -h new -p 5432; see the server's log"
    assert Variables().hints == Hints()


def test_empty_steps_are_left_out() -> None:
    assert steps("one", "", "two") == "one; two"
