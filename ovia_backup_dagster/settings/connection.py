"""The database to back up, and how to connect to it. Where backups are restored to is in ``restore``."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from ovia_backup_dagster.settings.secret_files import password_from
from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import Host, Identifier, Port


class ConnectionSettings(SettingsGroup):
    """Server, database, role and password; and the client programs."""

    title = "Database"

    postgres_host: Host | None = setting(
        "POSTGRES_HOST",
        help="Server to back up: name, address, or folder of a Unix socket; the server itself, not a pooler. Without "
        "it, every operation except the demo is refused.",
        shown="none, required",
    )
    postgres_port: Port = setting("POSTGRES_PORT", default=5432, help="Its port.")
    postgres_db: Identifier = setting("POSTGRES_DB", default="ovia", help="The database.")
    postgres_user: Identifier = setting("POSTGRES_USER", default="ovia", help="The role that dumps.")
    postgres_password: SecretStr | None = setting(
        "PGPASSWORD",
        "POSTGRES_PASSWORD",
        help="Its password. Or use the next one, or `PGPASSFILE`. `PGSSL*` and `PGPASSFILE` are passed on; no other "
        "`PG*` is.",
        shown="none",
    )
    postgres_password_file: Path | None = setting(
        "POSTGRES_PASSWORD_FILE", help="File whose first line is the password; read at each use.", shown="none"
    )
    pg_bin_dir: Path | None = setting(
        "PG_BIN_DIR", help="Folder of PostgreSQL's client programs.", shown="`PATH` is searched"
    )

    def password(self) -> SecretStr | None:
        """The role's password. Its file is read at each call, so that a rotated password is used.

        Raises:
            SettingsError: the file cannot be read, or is empty.
        """
        if self.postgres_password is not None or self.postgres_password_file is None:
            return self.postgres_password
        return password_from("POSTGRES_PASSWORD_FILE", self.postgres_password_file)
