"""Secrets in our own environment and in other programs' output. Real commands and runs: ``e2e/test_secrets.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from ovia_backup_dagster.postgres import session
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.secrets import Secrets, _entries
from ovia_backup_dagster.settings.model import secret_variables
from ovia_backup_dagster.settings.secret_files import password_in
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster
from ovia_backup_dagster_tests.defs.support import load


def test_each_variable_that_may_hold_a_secret_is_known() -> None:
    assert secret_variables() == {
        "PGPASSWORD",
        "POSTGRES_PASSWORD",
        "RESTORE_POSTGRES_PASSWORD",
        "WAL_POSTGRES_PASSWORD",
        "BACKUP_NOTIFY_URLS",
        "HEALTH_URL",
    }


def test_only_secret_variables_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "geheim")
    monkeypatch.setenv("PGPASSFILE", "/a")
    before = {name: value for name, value in os.environ.items() if name != "PGPASSWORD"}
    for _ in range(2):
        Secrets(frozenset({"PGPASSWORD", "POSTGRES_PASSWORD"})).forget()
        assert dict(os.environ) == before


def test_a_variable_that_contains_a_secret_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings from code may have read the secret from that variable."""
    monkeypatch.setenv("SHOP_PASSWORD", "geheim")
    before = {name: value for name, value in os.environ.items() if name != "SHOP_PASSWORD"}
    for name, value in (("SHOP_NOTE", "geheimer"), ("SHOP_NOTHING", "")):
        monkeypatch.setenv(name, value)
        before[name] = value
    Secrets(read=lambda: ("geheim", "")).forget()
    assert dict(os.environ) == before


def test_an_environment_block_is_parsed() -> None:
    block = b"A=1\0PGPASSWORD=a=b\0\0odd\0EMPTY=\0\xff=\xfe\0"
    found = {name: block[at : at + length] for name, at, length in _entries(block)}
    assert found == {"A": b"1", "PGPASSWORD": b"a=b", "EMPTY": b"", "\udcff": b"\xfe"}


def test_a_password_is_in_no_environment_while_we_connect(server: PortCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may start a program at that moment."""
    monkeypatch.setenv("PGPASSWORD", "of-the-surroundings")
    seen: list[dict[str, str]] = []
    real = session._Session.connect

    def watched(*arguments: object, **options: object) -> object:
        seen.append(dict(os.environ))
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(session._Session, "connect", watched)
    to = Connection("127.0.0.1", server.port, "postgres", "postgres", SecretStr(PASSWORD))
    with session.connect(to) as asked:
        assert asked.execute("SELECT 1 AS one").fetchall() == [{"one": 1}]
    [environment] = seen
    assert environment["PGHOST"] == "127.0.0.1"
    assert "PGPASSWORD" not in environment
    assert PASSWORD not in str(environment)
    assert os.environ["PGPASSWORD"] == "of-the-surroundings"


def test_output_is_redacted_in_every_form_of_a_secret(tmp_path: Path) -> None:
    password, urls = tmp_path / "password", tmp_path / "urls"
    password.write_text("of a file/1\nno secret\n")
    urls.write_text("# people\nslack://A1/B2/C3\nmailto://u:m%40il@host\n")
    settings = load(
        {
            "POSTGRES_PASSWORD_FILE": str(password),
            "RESTORE_POSTGRES_PASSWORD": "short",
            "RESTORE_POSTGRES_PASSWORD_FILE": str(tmp_path / "none"),
            "BACKUP_NOTIFY_URLS_FILE": str(urls),
            "HEALTH_URL": "http://host/health?token=t0ken",
        }
    )
    redact = Secrets(read=settings.secrets).redactor()
    for text in (
        "of a file/1",
        "of%20a%20file%2F1",
        "of%20a%20file/1",
        "of+a+file%2F1",
        "short",
        "slack://A1/B2/C3",
        "mailto://u:m%40il@host",
        "m@il",
        "http://host/health?token=t0ken",
    ):
        assert redact(f"<{text}>") == "<********>", text
    assert redact("no secret, host") == "no secret, host"
    # A program may print the old secret, read before its rotation, or the new one.
    password.write_text("rotated\n")
    assert redact("of a file/1 rotated") == "******** ********"
    password.unlink()
    assert redact("of a file/1") == "********"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://u:pw@h/", "pw"),
        ("psql postgresql://u:pw@h/db -c x", "pw"),
        ("postgresql://:pw@h", "pw"),
        ("http://h:80/a@b", ""),
        ("http://u@h", ""),
        ("postgresql://$U:$P@h", ""),
        ("a:b@c", ""),
        ("", ""),
    ],
)
def test_a_password_in_a_url_is_found(text: str, found: str) -> None:
    assert password_in(text) == found
