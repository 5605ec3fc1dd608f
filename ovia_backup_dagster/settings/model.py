"""Every environment variable that this program reads, once, typed.

Read at the two edges, ``definitions`` and ``cli``, and handed inward as values. A value that cannot be used
does not stop the code location from loading: it becomes a *problem*, the default stands in, and everything
that would act on it refuses with one line. What is built from the settings is ``system``'s business.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.settings.cron import why_not

#: Tables whose absence makes a dump of Ovia's own database bad.
OVIA_TABLES = ("people", "identities", "person_identity_links")
#: What the names of our variables begin with; the demo keeps a real deployment's from its child.
PREFIXES = ("POSTGRES_", "DEPLOYMENT_", "BACKUP_", "DRILL_", "RESTORE_", "SWARM_", "HEALTH_")
_NO_HOST = "POSTGRES_HOST is not set"
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _split_urls(value: object) -> object:
    return _parts(value) if isinstance(value, str) else value


def _hints(value: object) -> object:
    return Hints.parse(value) if isinstance(value, str) else value


def _parts(text: str) -> tuple[str, ...]:
    # A comma may stand inside a URL: it separates only before the next scheme.
    return tuple(part for part in re.split(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", text.strip(", \r\n\t")) if part)


def _variable(*names: str, default: Any = None, doc: str, shown: str | None = None) -> Any:
    """A field that is read from the first of ``names`` that is set."""
    return Field(
        default=default,
        validation_alias=AliasChoices(*names),
        description=doc,
        json_schema_extra={"shown": shown} if shown is not None else None,
    )


def _found(default: Any) -> Any:
    """A field that :meth:`Settings.load` fills: no variable's name can contain its alias."""
    return Field(default=default, validation_alias="=", exclude=True)


class Settings(BaseSettings):
    """The settings of one database's backups. Use :meth:`load`, which never raises."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        case_sensitive=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    postgres_host: str | None = _variable(
        "POSTGRES_HOST",
        doc="Server to back up: name, address, or folder of a Unix socket; the server itself, not a pooler. Without it "
        "everything but the demo refuses.",
        shown="none, required",
    )
    postgres_port: int = _variable("POSTGRES_PORT", default=5432, doc="Its port.")
    postgres_db: str = _variable("POSTGRES_DB", default="ovia", doc="The database.")
    postgres_user: str = _variable("POSTGRES_USER", default="ovia", doc="The role that dumps.")
    postgres_password: SecretStr | None = _variable(
        "PGPASSWORD",
        "POSTGRES_PASSWORD",
        doc="Its password. Or use the next one, or `PGPASSFILE`. `PGSSL*` and `PGPASSFILE` are passed on; no other "
        "`PG*` is.",
        shown="none",
    )
    postgres_password_file: Path | None = _variable(
        "POSTGRES_PASSWORD_FILE", doc="File whose first line is the password; read at each use.", shown="none"
    )
    backup_dir: Path = _variable("BACKUP_DIR", default=Path("/backups"), doc="The backup volume.")
    backup_schedule: str = _variable("BACKUP_SCHEDULE", default="0 3 * * *", doc="When to back up, as cron.")
    backup_timezone: str = _variable(
        "BACKUP_TIMEZONE", default="UTC", doc="Time zone of the schedule, of days and of weeks. Names are in UTC."
    )
    backup_weekly_day: str = _variable("BACKUP_WEEKLY_DAY", default="sunday", doc="Whose dump is kept as the weekly.")
    backup_daily_keep: int = _variable("BACKUP_DAILY_KEEP", default=7, doc="Days with a proven dump to keep.")
    backup_weekly_keep: int = _variable("BACKUP_WEEKLY_KEEP", default=4, doc="Weeks to keep.")
    backup_max_age_hours: float = _variable(
        "BACKUP_MAX_AGE_HOURS", default=26.0, doc="An older newest dump is stale, and alerts.", shown="26"
    )
    backup_expected_tables: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_split)] = _variable(
        "BACKUP_EXPECTED_TABLES",
        doc="Comma list of tables (`name` or `schema.name`) without which a dump is bad.",
        shown=f"{','.join(OVIA_TABLES)} for database `ovia`, else none",
    )
    backup_require_rows: bool | None = _variable(
        "BACKUP_REQUIRE_ROWS", doc="Whether those tables must hold rows.", shown="true for database `ovia`, else false"
    )
    backup_compression: str = _variable(
        "BACKUP_COMPRESSION",
        default="auto",
        doc="`auto` (zstd:2 where both programs can, else gzip:1), or pg_dump's own spelling.",
    )
    backup_notify_urls: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_urls)] = _variable(
        "BACKUP_NOTIFY_URLS",
        default=(),
        doc="Where alerts go: Apprise URLs, separated by commas. Or use the next one.",
        shown="none",
    )
    backup_notify_urls_file: Path | None = _variable(
        "BACKUP_NOTIFY_URLS_FILE",
        doc="File with these URLs, separated by commas or lines; lines that begin with `#` are comments. Read at each "
        "use.",
        shown="none",
    )
    backup_lock_wait_minutes: float = _variable(
        "BACKUP_LOCK_WAIT_MINUTES", default=30.0, doc="How long to wait for another operation's lock.", shown="30"
    )
    backup_stall_minutes: float = _variable(
        "BACKUP_STALL_MINUTES",
        default=30.0,
        doc="How long a client program, such as pg_dump, may stand still while the server reports no progress of it; "
        "then it is ended.",
        shown="30",
    )
    backup_asset_prefix: str = _variable(
        "BACKUP_ASSET_PREFIX",
        default="",
        doc="Stands before every asset key, group and pool. For a second database in the same Dagster.",
        shown="none",
    )
    drill_schedule: str = _variable("DRILL_SCHEDULE", default="0 5 1 * *", doc="When to drill by itself, as cron.")
    drill_where: Literal["auto", "throwaway", "database"] = _variable(
        "DRILL_WHERE",
        default="auto",
        doc="Where drills restore to: `throwaway`, a cluster beside the run; `database`, a scratch database "
        "`<db>_restore_test` on the server that `RESTORE_POSTGRES_*` name; `auto`, the first, or the second where "
        "server programs are missing and `RESTORE_POSTGRES_HOST` is set.",
    )
    drill_jobs: int = _variable("DRILL_JOBS", default=0, doc="Restored at a time, at least 2.", shown="the cores")
    drill_dir: Path = _variable(
        "DRILL_DIR",
        default=Path("/tmp"),  # noqa: S108 - mkdtemp makes a private folder in it
        doc="Where throwaway clusters are made; at most 60 bytes long. Needs 1.25 times the database's size.",
    )
    drill_sandbox: Literal["auto", "require", "off"] = _variable(
        "DRILL_SANDBOX",
        default="auto",
        doc="Whether what runs or parses a backup's content is confined (Landlock and seccomp): `auto`, where the "
        "kernel can, and the evidence says how; `require`, else drills and verification refuse; `off`.",
    )
    drill_check_command: str = _variable(
        "DRILL_CHECK_COMMAND",
        default="",
        doc="A shell command, or an `.sql` file, to run on each drill's copy: migrations, an application's health "
        "check. It gets `DATABASE_URL` and libpq's `PG*`, and none of these variables; what it prints is logged "
        "without our secrets.",
        shown="none",
    )
    drill_max_age_days: float = _variable(
        "DRILL_MAX_AGE_DAYS", default=35.0, doc="When the last drill that passed is older, people are told.", shown="35"
    )
    drill_max_hours: float = _variable(
        "DRILL_MAX_HOURS",
        default=6.0,
        doc="A drill that takes longer is ended, and has failed.",
        shown="6",
    )
    restore_postgres_host: str | None = _variable(
        "RESTORE_POSTGRES_HOST", doc="Server to restore to, and for scratch databases.", shown="`POSTGRES_HOST`"
    )
    restore_postgres_port: int | None = _variable("RESTORE_POSTGRES_PORT", doc="Its port.", shown="`POSTGRES_PORT`")
    restore_postgres_user: str | None = _variable(
        "RESTORE_POSTGRES_USER",
        doc="Role there that restores: what `deploy/restore-role.sql` makes. A superuser would run the functions in a "
        "backup as one.",
        shown="`POSTGRES_USER`",
    )
    restore_postgres_password: SecretStr | None = _variable(
        "RESTORE_POSTGRES_PASSWORD", doc="Its password; or use the next one.", shown="none; with the same role, its own"
    )
    restore_postgres_password_file: Path | None = _variable(
        "RESTORE_POSTGRES_PASSWORD_FILE", doc="File whose first line is that password.", shown="none"
    )
    restore_jobs: int = _variable("RESTORE_JOBS", default=0, doc="Restored at a time, at least 1.", shown="the cores")
    restore_keep_days: float = _variable(
        "RESTORE_KEEP_DAYS",
        default=14.0,
        doc="Days that the database which a restore replaced is kept, to go back to; 0 is for ever. People are told "
        "two days before.",
        shown="14",
    )
    swarm_app_services: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = _variable(
        "SWARM_APP_SERVICES",
        default=(),
        doc="Comma list of Docker services that write to the database: a restore stops them, and starts them again.",
        shown="none",
    )
    swarm_migrate_service: str = _variable(
        "SWARM_MIGRATE_SERVICE", default="", doc="The one-shot service that migrates a restored database.", shown="none"
    )
    swarm_docker_url: str | None = _variable(
        "SWARM_DOCKER_URL", doc="Where Docker's manager answers.", shown="`DOCKER_HOST`, else its socket"
    )
    health_url: str = _variable(
        "HEALTH_URL", default="", doc="What answers when the services are well; asked after a restore.", shown="none"
    )
    pg_bin_dir: Path | None = _variable(
        "PG_BIN_DIR", doc="Folder of PostgreSQL's client programs.", shown="`PATH` is searched"
    )
    dagster_public_url: str | None = _variable(
        "DAGSTER_PUBLIC_URL", doc="Where people reach the UI; alerts link to it.", shown="none"
    )
    dagster_keep_runs_days: int = _variable(
        "DAGSTER_KEEP_RUNS_DAYS",
        default=400,
        doc="Days to keep Dagster's runs, with their events and output: a year of drills stays plotted.",
    )
    deployment_hints: Annotated[Hints, NoDecode, BeforeValidator(_hints)] = _variable(
        "DEPLOYMENT_HINTS",
        default=Hints(),
        doc="Commands that messages are to add where this is deployed, a line each, `NAME: COMMAND`. NAME is `server` "
        "(whether it runs, and its log), `disk` (the server's), `network`, `upgrade` (of the server), `volume`, "
        "`daemon` or `code_server`. `deploy/stack.yml` sets them.",
        shown="none",
    )
    libpq: dict[str, str] = _found({})
    problems: tuple[str, ...] = _found(())

    @classmethod
    def load(cls) -> Settings:
        """Read the process's environment. What is wrong with it is in ``problems``."""
        problems: tuple[str, ...] = ()
        try:
            settings = cls()
        except ValidationError as error:
            defaults: dict[str, Any] = {}
            for detail in error.errors(include_input=False, include_url=False, include_context=False):
                name, field = _field(str(detail["loc"][0]))
                defaults[name] = field.get_default(call_default_factory=True)
                problems += (f"{name}: {detail['msg'].removeprefix('Value error, ')}",)
            settings = cls(**defaults)
        if settings.postgres_host is None:
            problems = (_NO_HOST, *problems)
        if settings.backup_notify_urls and settings.backup_notify_urls_file is not None:
            problems += ("BACKUP_NOTIFY_URLS and BACKUP_NOTIFY_URLS_FILE are both set: set one of them",)
        libpq = {k: v for k, v in os.environ.items() if v and (k.startswith("PGSSL") or k == "PGPASSFILE")}
        return settings.model_copy(update={"libpq": libpq, "problems": problems})

    def require(self) -> None:
        """Refuse to act on settings that are not right.

        Raises:
            SettingsError: names each problem.
        """
        if self.problems:
            raise SettingsError(
                "the settings are not usable",
                why="; ".join(self.problems),
                fix="set the variable and start again (the README lists them), or try it out: make demo",
            )

    def require_volume(self) -> None:
        """As :meth:`require`, for what needs no server, not even its name.

        Raises:
            SettingsError: names each problem.
        """
        self.model_copy(update={"problems": tuple(p for p in self.problems if p != _NO_HOST)}).require()

    @property
    def expected_tables(self) -> tuple[str, ...]:
        """The tables that a dump must hold."""
        if self.backup_expected_tables is not None:
            return self.backup_expected_tables
        return OVIA_TABLES if self.postgres_db == "ovia" else ()

    @property
    def require_rows(self) -> bool:
        """Whether they must hold rows."""
        return self.postgres_db == "ovia" if self.backup_require_rows is None else self.backup_require_rows

    def password(self) -> SecretStr | None:
        """The role's password, read anew so that a rotated file is used.

        Raises:
            SettingsError: the file cannot be read, or is empty.
        """
        if self.postgres_password is not None or self.postgres_password_file is None:
            return self.postgres_password
        return _first_line("POSTGRES_PASSWORD_FILE", self.postgres_password_file)

    def restore_password(self) -> SecretStr | None:
        """The password of the role that restores: its own, or, where it is the role that dumps, that one's.

        Raises:
            SettingsError: the file cannot be read, or is empty.
        """
        if self.restore_postgres_password is not None:
            return self.restore_postgres_password
        if self.restore_postgres_password_file is not None:
            return _first_line("RESTORE_POSTGRES_PASSWORD_FILE", self.restore_postgres_password_file)
        return self.password() if self.restore_postgres_user in (None, self.postgres_user) else None

    @property
    def restore_variables(self) -> Mapping[str, str]:
        """What the server that is restored to, the role that restores and its password are set by, where it is not
        what those of the dump are.
        """
        own = {"host": self.restore_postgres_host, "user": self.restore_postgres_user}
        names = {part: f"RESTORE_POSTGRES_{part.upper()}" for part, value in own.items() if value is not None}
        given = self.restore_postgres_password is not None or self.restore_postgres_password_file is not None
        if given or self.restore_postgres_user not in (None, self.postgres_user):
            names["password"] = "RESTORE_POSTGRES_PASSWORD or RESTORE_POSTGRES_PASSWORD_FILE"  # noqa: S105
        return names

    def notify_urls(self) -> tuple[SecretStr, ...]:
        """Where alerts go, read anew so that a rotated file is used.

        Raises:
            SettingsError: nobody can be told, as the file cannot be read, or holds no URLs.
        """
        path = self.backup_notify_urls_file
        if path is None:
            return self.backup_notify_urls
        try:
            return (*self.backup_notify_urls, *_urls_in("BACKUP_NOTIFY_URLS_FILE", path))
        except SettingsError:
            # Both are set, which is a problem that people should be told of.
            if self.backup_notify_urls:
                return self.backup_notify_urls
            raise

    def secrets(self) -> Iterator[str]:
        """Every secret that these settings hold, or find in a file: as it is, and its password, where it is a URL.

        One whose file cannot be read is left out.
        """
        urls = [*self.backup_notify_urls, SecretStr(self.health_url)]
        passwords = [each for each in (self.postgres_password, self.restore_postgres_password) if each is not None]
        if self.postgres_password_file is not None:
            with contextlib.suppress(SettingsError):
                passwords.append(_first_line("POSTGRES_PASSWORD_FILE", self.postgres_password_file))
        if self.restore_postgres_password_file is not None:
            with contextlib.suppress(SettingsError):
                passwords.append(_first_line("RESTORE_POSTGRES_PASSWORD_FILE", self.restore_postgres_password_file))
        if self.backup_notify_urls_file is not None:
            with contextlib.suppress(SettingsError):
                urls += _urls_in("BACKUP_NOTIFY_URLS_FILE", self.backup_notify_urls_file)
        yield from (each.get_secret_value() for each in passwords)
        for url in (each.get_secret_value() for each in urls):
            if found := password_in(url):
                yield unquote(found)
                yield found
            if found or "?" in url or url != self.health_url:
                yield url

    @property
    def unread(self) -> Mapping[str, str]:
        """Files that are named but not read -> the variable that comes first."""
        pairs = (
            ("postgres_password_file", "postgres_password"),
            ("restore_postgres_password_file", "restore_postgres_password"),
        )
        fields = type(self).model_fields
        return {
            _names(fields[file])[0]: " or ".join(_names(fields[value]))
            for file, value in pairs
            if getattr(self, file) is not None and getattr(self, value) is not None
        }

    @field_validator("postgres_port", "restore_postgres_port")
    @classmethod
    def _port(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= 65535:
            raise ValueError(f"{value} is not a port (1 to 65535)")
        return value

    @field_validator("postgres_host", "restore_postgres_host")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        # Never repeated: what is meant as a connection string holds a password.
        if value is not None and re.search(r"://|@|=", value):
            raise ValueError("it must be a host alone, not a URL or connection string")
        return value

    @field_validator("backup_dir", "drill_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"{str(value)!r} is not an absolute path, and would mean another folder to each program")
        return value

    @field_validator("drill_dir")
    @classmethod
    def _short(cls, value: Path) -> Path:
        # A Unix socket stands in a folder in it, and its path may have 107 bytes.
        if len(os.fsencode(value)) > 60:
            raise ValueError(f"{str(value)!r} is longer than 60 bytes, too long for a Unix socket in it")
        return value

    @field_validator("restore_jobs")
    @classmethod
    def _restore_jobs(cls, value: int) -> int:
        if not 0 <= value <= 64:
            raise ValueError(f"{value} is not a number of jobs between 1 and 64, or 0 for the cores")
        return value

    @field_validator("health_url")
    @classmethod
    def _health_url(cls, value: str) -> str:
        if value and not re.match(r"https?://", value):
            raise ValueError("it must begin with http:// or https://")
        return value

    @field_validator("drill_jobs")
    @classmethod
    def _jobs(cls, value: int) -> int:
        if value != 0 and not 2 <= value <= 64:
            raise ValueError(f"{value} is not a number of jobs between 2 and 64, or 0 for the cores")
        return value

    @field_validator("restore_keep_days")
    @classmethod
    def _keep_days(cls, value: float) -> float:
        if not 0 <= value <= 3660:
            raise ValueError(f"{value} is not a number of days between 0 and ten years")
        return value

    @field_validator("drill_max_age_days")
    @classmethod
    def _days(cls, value: float) -> float:
        if not 0 < value <= 3660:
            raise ValueError(f"{value} is not a number of days between 0 and ten years")
        return value

    @field_validator("drill_max_hours")
    @classmethod
    def _drill_hours(cls, value: float) -> float:
        if not 0 < value <= 24 * 31:
            raise ValueError(f"{value} is not a number of hours between 0 and a month")
        return value

    @field_validator("dagster_keep_runs_days")
    @classmethod
    def _days_of_runs(cls, value: int) -> int:
        # An alert that goes on asks the runs of its first days whether people were told.
        if not 30 <= value <= 36600:
            raise ValueError(f"{value} is not a number of days between 30 and a century")
        return value

    @field_validator("postgres_db", "postgres_user", "restore_postgres_user")
    @classmethod
    def _identifier(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            encoded = value.encode()
        except UnicodeEncodeError:
            raise ValueError("the name is not valid UTF-8") from None
        if "password=" in value.lower() or ("://" in value and "@" in value):
            raise ValueError("it must be a name alone, not a connection string")
        if not 1 <= len(encoded) <= 63:
            raise ValueError("a PostgreSQL name has 1 to 63 bytes")
        return value

    @field_validator("backup_schedule", "drill_schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        if why := why_not(value):
            raise ValueError(f"{value!r} is not a cron expression, such as '0 3 * * *': {why}")
        return value.strip()

    @field_validator("backup_timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is not a time zone, such as Europe/Berlin") from None
        return value

    @field_validator("backup_weekly_day")
    @classmethod
    def _weekday(cls, value: str) -> str:
        day = value.strip().lower()
        if day not in WEEKDAYS:
            raise ValueError(f"{value!r} is not a day of the week, such as sunday")
        return day

    @field_validator("backup_daily_keep", "backup_weekly_keep")
    @classmethod
    def _at_least_one(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"{value} is too few: at least 1 must be kept")
        return value

    @field_validator("backup_max_age_hours")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not 0 < value <= 24 * 366:
            raise ValueError(f"{value} is not a number of hours between 0 and a year")
        return value

    @field_validator("backup_lock_wait_minutes")
    @classmethod
    def _minutes(cls, value: float) -> float:
        if not 0 <= value <= 24 * 60:
            raise ValueError(f"{value} is not a number of minutes between 0 and a day")
        return value

    @field_validator("backup_stall_minutes")
    @classmethod
    def _stall(cls, value: float) -> float:
        # Not 0: a limit of a day is as good as none.
        if not 0 < value <= 24 * 60:
            raise ValueError(f"{value} is not a number of minutes, more than 0 and at most a day")
        return value

    @field_validator("backup_compression")
    @classmethod
    def _compression(cls, value: str) -> str:
        if not re.fullmatch(r"auto|none|[0-9]|(gzip|lz4|zstd)(:[a-z0-9=,]+)?", value):
            raise ValueError(f"{value!r} is neither auto nor pg_dump's spelling, such as zstd:3 or gzip:1")
        return value

    @field_validator("backup_asset_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        # Dagster's own rule for groups, which is the strictest.
        if not re.fullmatch(r"[A-Za-z0-9_]*", value):
            raise ValueError(f"{value!r} is not a name of letters, digits and underscores")
        return value

    @field_validator("backup_notify_urls")
    @classmethod
    def _urls(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, url in enumerate(value, 1):
            if "://" not in url.get_secret_value():
                raise ValueError(f"URL number {number} has no scheme, such as mailto:// or slack://")
        return value

    @field_validator("dagster_public_url")
    @classmethod
    def _public_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://", value):
            raise ValueError("it must begin with http:// or https://")
        return value.rstrip("/") if value else value


def _text(variable: str, path: Path, then: str = "") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is not text"
        raise SettingsError(f"{variable}={path} cannot be read{then}", why=why, fix=f"ls -l {path}") from None


def _urls_in(variable: str, path: Path) -> Iterator[SecretStr]:
    then = ", so nobody can be told of anything"
    lines = _text(variable, path, then).splitlines()
    # By lines: what is no URL on one must not become the end of another.
    urls = [url for line in lines if not line.lstrip().startswith("#") for url in _parts(line)]
    if not urls:
        raise SettingsError(f"{variable}={path} holds no URL{then}", fix="write Apprise URLs into it, a line each")
    for number, url in enumerate(urls, 1):
        if "://" not in url:
            what = f"{variable}={path} cannot be used{then}"
            why = f"URL number {number} has no scheme, such as mailto:// or slack://"
            raise SettingsError(what, why=why, fix="write Apprise URLs into it, a line each")
    yield from map(SecretStr, urls)


def _first_line(variable: str, path: Path) -> SecretStr:
    first = _text(variable, path).partition("\n")[0].rstrip("\r")
    if not first:
        raise SettingsError(f"{variable}={path} is empty", fix="write the password into it")
    return SecretStr(first)


def variables() -> Mapping[str, tuple[str, str]]:
    """Environment variable(s) -> (default, what it is for), in order: the README's table."""
    table = {}
    for field in Settings.model_fields.values():
        if _names(field):
            extra = field.json_schema_extra
            shown = str(extra["shown"]) if isinstance(extra, dict) else f"`{field.default}`"
            table[" or ".join(f"`{name}`" for name in _names(field))] = (shown, field.description or "")
    return table


def names() -> frozenset[str]:
    """Every environment variable that is read."""
    return frozenset(name for field in Settings.model_fields.values() for name in _names(field))


def secret_variables() -> frozenset[str]:
    """The environment variables that hold, or may hold, a secret by value."""
    fields = Settings.model_fields
    secret = [field for field in fields.values() if "SecretStr" in str(field.annotation)]
    return frozenset(name for field in (*secret, fields["health_url"]) for name in _names(field))


def password_in(text: str) -> str:
    """The password of the first URL with one in a text; empty where there is none. A shell's variable is none."""
    found = re.search(r"://[^\s/:@]*:([^\s/@$][^\s/@]*)@", text)
    return found[1] if found else ""


def _field(location: str) -> tuple[str, FieldInfo]:
    """The variable and the field that an error is about; pydantic names it by the alias that was used."""
    for field in Settings.model_fields.values():
        if location in _names(field):
            return _names(field)[0], field
    raise KeyError(location)


def _names(field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    return tuple(str(choice) for choice in alias.choices) if isinstance(alias, AliasChoices) else ()
