"""All settings of one database's backups, loaded from the environment or from values in code.

Settings are read at the edges (``definitions``, ``component``, ``cli``) and passed inward as values. An invalid value
does not stop the code location from loading: it becomes a *problem*, its default is used, and every operation refuses
with one line. The groups, one per module, declare the settings; ``system`` builds the parts from them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, Field, SecretStr, ValidationError

from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.settings.application import ApplicationSettings
from ovia_backup_dagster.settings.backup import OVIA_TABLES, BackupSettings
from ovia_backup_dagster.settings.connection import ConnectionSettings
from ovia_backup_dagster.settings.dagster_instance import DagsterSettings
from ovia_backup_dagster.settings.drill import DrillSettings
from ovia_backup_dagster.settings.notifications import NotificationSettings
from ovia_backup_dagster.settings.offsite import OffsiteSettings
from ovia_backup_dagster.settings.pitr import PitrSettings
from ovia_backup_dagster.settings.restore import RestoreSettings
from ovia_backup_dagster.settings.retention import RetentionSettings
from ovia_backup_dagster.settings.secret_files import password_from, password_in, urls_from
from ovia_backup_dagster.settings.setting_definition import SettingDefinition, settings_in
from ovia_backup_dagster.settings.signing import SigningSettings

#: Prefixes of our variables; the demo hides a real deployment's variables from its child.
PREFIXES = (
    *("POSTGRES_", "DEPLOYMENT_", "BACKUP_", "DRILL_", "RESTORE_", "SWARM_", "HEALTH_", "OFFSITE_", "RCLONE_"),
    *("PITR_", "WAL_", "RPO_", "RECOVERY_", "BASE_"),
)
_NO_HOST = "POSTGRES_HOST is not set"


def _passes_through(name: str) -> bool:
    return name.startswith("PGSSL") or name == "PGPASSFILE"


def _only_what_passes(value: dict[str, str]) -> dict[str, str]:
    if others := sorted(name for name in value if not _passes_through(name)):
        raise ValueError(f"only PGSSL* and PGPASSFILE are passed on to libpq, not {', '.join(others)}")
    return value


class Settings(
    ConnectionSettings,
    BackupSettings,
    RetentionSettings,
    SigningSettings,
    OffsiteSettings,
    NotificationSettings,
    DrillSettings,
    RestoreSettings,
    PitrSettings,
    ApplicationSettings,
    DagsterSettings,
):
    """The settings of one database's backups. Use :meth:`load` or :meth:`of`, which never raise on an invalid value.

    Attributes:
        libpq: ``PGSSL*`` and ``PGPASSFILE``, which are passed on to libpq.
        problems: the invalid values, each with the name of its variable.
    """

    libpq: Annotated[dict[str, str], AfterValidator(_only_what_passes)] = Field(default={}, exclude=True)
    problems: tuple[str, ...] = Field(default=(), exclude=True)

    @classmethod
    def load(cls) -> Settings:
        """Read the process's environment. Invalid values are in ``problems``."""
        given: dict[str, Any] = {}
        for setting in SETTINGS:
            for name in reversed(setting.variables):
                if os.environ.get(name):
                    given[setting.field] = os.environ[name]
        given["libpq"] = {name: value for name, value in os.environ.items() if value and _passes_through(name)}
        return cls._checked(given)

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Make settings from values, for one of several databases in a process. Invalid values are in ``problems``.

        The process's environment is not read: a setting that is not given has its default, and libpq's variables come
        only from ``libpq``. Variables of the machine still apply: ``PATH`` if ``pg_bin_dir`` is not given, ``HOME`` and
        ``DOCKER_HOST``. Pass secrets by file (``postgres_password_file``): the file is read at each use, and no
        process can see the secret in an environment.

        Args:
            values: by field name: the variable's name in lower case, such as ``postgres_host``. A value has the type of
                its field, or is the text that the variable would have. ``None`` or an empty text means not set, like an
                empty variable.

        Raises:
            TypeError: a name is not a setting's.
        """
        if unknown := sorted(values.keys() - {setting.field for setting in SETTINGS} - {"libpq"}):
            raise TypeError(f"no settings are called {', '.join(unknown)}")
        return cls._checked({name: value for name, value in values.items() if value is not None and value != ""})

    @classmethod
    def _checked(cls, given: Mapping[str, Any]) -> Settings:
        problems: list[str] = []
        try:
            settings = cls(**given)
        except ValidationError as error:
            names = {**{setting.field: setting.name for setting in SETTINGS}, "libpq": "libpq"}
            wrong = error.errors(include_input=False, include_url=False, include_context=False)
            for field, name in names.items():
                says = (detail["msg"] for detail in wrong if detail["loc"][0] == field)
                problems += (f"{name}: {why.removeprefix('Value error, ')}" for why in says)
            defaults = {str(detail["loc"][0]) for detail in wrong}
            settings = cls(**{field: value for field, value in given.items() if field not in defaults})
        if settings.postgres_host is None:
            problems.insert(0, _NO_HOST)
        if settings.backup_notify_urls and settings.backup_notify_urls_file is not None:
            problems.append("BACKUP_NOTIFY_URLS and BACKUP_NOTIFY_URLS_FILE are both set: set one of them")
        return settings.model_copy(update={"problems": tuple(problems)})

    def require(self) -> None:
        """Refuse to act on invalid settings.

        Raises:
            SettingsError: names each problem.
        """
        if self.problems:
            raise SettingsError(
                "the settings are not usable",
                why="; ".join(self.problems),
                fix="set the variable and start again (docs/configuration.md lists them), or try it out: make demo",
            )

    def require_volume(self) -> None:
        """Like :meth:`require`, for operations that need the volume but no server.

        Raises:
            SettingsError: names each problem.
        """
        self.model_copy(update={"problems": tuple(p for p in self.problems if p != _NO_HOST)}).require()

    @property
    def expected_tables(self) -> tuple[str, ...]:
        """The tables that a dump must contain."""
        if self.backup_expected_tables is not None:
            return self.backup_expected_tables
        return OVIA_TABLES if self.postgres_db == "ovia" else ()

    @property
    def require_rows(self) -> bool:
        """Whether these tables must contain rows."""
        return self.postgres_db == "ovia" if self.backup_require_rows is None else self.backup_require_rows

    def restore_password(self) -> SecretStr | None:
        """The password of the role that restores: its own, or the dumping role's if it is the same role.

        Raises:
            SettingsError: the file cannot be read, or is empty.
        """
        if self.restore_postgres_password is not None:
            return self.restore_postgres_password
        if self.restore_postgres_password_file is not None:
            return password_from("RESTORE_POSTGRES_PASSWORD_FILE", self.restore_postgres_password_file)
        return self.password() if self.restore_postgres_user in (None, self.postgres_user) else None

    @property
    def restore_variables(self) -> Mapping[str, str]:
        """The variables that set server, role and password for restores, if they differ from the dump's."""
        own = {"host": self.restore_postgres_host, "user": self.restore_postgres_user}
        names = {part: f"RESTORE_POSTGRES_{part.upper()}" for part, value in own.items() if value is not None}
        given = self.restore_postgres_password is not None or self.restore_postgres_password_file is not None
        if given or self.restore_postgres_user not in (None, self.postgres_user):
            names["password"] = "RESTORE_POSTGRES_PASSWORD or RESTORE_POSTGRES_PASSWORD_FILE"  # noqa: S105
        return names

    def secrets(self) -> Iterator[str]:
        """All secrets in these settings and their files, and the password in each secret that is a URL.

        A secret whose file cannot be read is left out.
        """
        urls = [*self.backup_notify_urls, SecretStr(self.health_url)]
        given = (self.postgres_password, self.restore_postgres_password, self.wal_postgres_password)
        passwords = [each for each in given if each is not None]
        for variable, file in (
            ("POSTGRES_PASSWORD_FILE", self.postgres_password_file),
            ("RESTORE_POSTGRES_PASSWORD_FILE", self.restore_postgres_password_file),
            ("WAL_POSTGRES_PASSWORD_FILE", self.wal_postgres_password_file),
        ):
            if file is not None:
                with contextlib.suppress(SettingsError):
                    passwords.append(password_from(variable, file))
        if self.backup_notify_urls_file is not None:
            with contextlib.suppress(SettingsError):
                urls += urls_from("BACKUP_NOTIFY_URLS_FILE", self.backup_notify_urls_file)
        yield from (each.get_secret_value() for each in passwords)
        for url in (each.get_secret_value() for each in urls):
            if found := password_in(url):
                yield unquote(found)
                yield found
            if found or "?" in url or url != self.health_url:
                yield url

    @property
    def unread(self) -> Mapping[str, str]:
        """Files that are named but not read -> the variable that takes precedence."""
        pairs = (
            ("postgres_password_file", "postgres_password"),
            ("restore_postgres_password_file", "restore_postgres_password"),
            ("wal_postgres_password_file", "wal_postgres_password"),
        )
        variables = {setting.field: " or ".join(setting.variables) for setting in SETTINGS}
        return {
            variables[file]: variables[value]
            for file, value in pairs
            if getattr(self, file) is not None and getattr(self, value) is not None
        }


#: Every setting, in the order of docs/configuration.md: by groups.
SETTINGS: tuple[SettingDefinition, ...] = tuple(
    setting for group in Settings.__bases__ for setting in settings_in(group)
)


def variable_names() -> frozenset[str]:
    """Every environment variable that is read."""
    return frozenset(name for setting in SETTINGS for name in setting.variables)


def secret_variables() -> frozenset[str]:
    """The environment variables that hold, or may hold, a secret by value."""
    return frozenset(name for setting in SETTINGS if setting.secret for name in setting.variables)
