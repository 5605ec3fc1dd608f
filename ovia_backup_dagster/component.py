"""``PostgresBackup``: the backups of one database as a component of any Dagster project, configured in YAML.

The component's fields are the settings, each declared once, in ``settings``; this module only maps YAML to them. The
definitions themselves are built by ``defs.code_location``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, SecretStr, create_model

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.settings.model import SETTINGS, Settings
from ovia_backup_dagster.settings.secret_files import password_in
from ovia_backup_dagster.settings.setting_definition import SettingDefinition

#: The setting that the component's ``name`` replaces.
_REPLACED = "backup_asset_prefix"
#: A text that is only a template: the value itself is not in the YAML.
_TEMPLATE = r"^\s*\{\{.+\}\}\s*$"
#: The texts allowed for a value of each type. A template is allowed, too: its value is not known yet.
_TEXT_OF = {bool: r"\{\{|^(true|false)$", int: r"\{\{|^\d+$", float: r"\{\{|^\d+(\.\d+)?$"}
_NEVER_BY_VALUE = " Never the value itself: a template, such as `{{ env.NAME }}`."


class _Refused(BaseModel):
    """Why a value was refused. The value itself is not kept: it may be a secret."""

    why: str


def _secret(context: dg.ResolutionContext, raw: str | Sequence[str]) -> SecretStr | list[SecretStr] | _Refused:
    """Resolve the template of one secret, or of several.

    Problems are returned, not raised: Dagster would show the YAML line, with the secret in it.
    """
    texts = [raw] if isinstance(raw, str) else list(raw)
    if not all(re.match(_TEMPLATE, text, re.DOTALL) for text in texts):
        return _Refused(
            why="the YAML contains a secret; write a template instead, such as {{ env.NAME }}, or use a file"
        )
    found = [context.resolve_value(text) for text in texts]
    if not all(found):
        return _Refused(why=f"a template gives no value: {', '.join(text.strip() for text in texts)}")
    secrets = [SecretStr(str(value)) for value in found]
    return secrets[0] if isinstance(raw, str) else secrets


def _text(context: dg.ResolutionContext, raw: str) -> str | _Refused:
    """Resolve a text that may contain a password, such as a URL."""
    if not re.match(_TEMPLATE, raw, re.DOTALL) and password_in(raw):
        return _Refused(why="the YAML contains a password; write a template instead, such as {{ env.NAME }}")
    return str(context.resolve_value(raw) or "")


def _field(setting: SettingDefinition) -> tuple[Any, Any]:
    """A setting as a field of the component. Optional, because the default is declared with the setting."""
    words = f"{setting.help} Default: {setting.shown}."
    if "SecretStr" in str(setting.type):
        many = "tuple" in str(setting.type)
        kind: Any = list[SecretStr] if many else SecretStr
        resolver = dg.Resolver(
            _secret,
            model_field_type=list[str] if many else str,
            description=words + _NEVER_BY_VALUE,
            inject_before_resolve=False,
        )
        return Annotated[kind | _Refused | None, resolver], Field(default=None)
    if setting.secret:
        text = dg.Resolver(_text, model_field_type=str, description=words, inject_before_resolve=False)
        return Annotated[str | _Refused | None, text], Field(default=None)
    kind, _ = _yaml_form(setting.type)
    # A text is allowed, too: Dagster accepts a template for any value, and ``Settings`` parses the text.
    return Annotated[kind | str | None, dg.Resolver.default(description=words)], Field(default=None)


def _yaml_form(declared: Any) -> tuple[Any, str]:
    """The YAML type for a setting of that type, and the pattern for a text given instead."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _yaml_form(get_args(declared)[0])
    if origin in (Union, UnionType):
        [inner] = (each for each in get_args(declared) if each is not type(None))
        return _yaml_form(inner)
    if origin is Literal:
        return str, rf"\{{\{{|^({'|'.join(get_args(declared))})$"
    if origin is tuple:
        return list[str], ""
    return (declared, _TEXT_OF[declared]) if declared in _TEXT_OF else (str, "")


def _pattern(setting: SettingDefinition) -> dict[str, Any]:
    """The JSON schema by which ``dg`` checks a text before anything is loaded."""
    if "SecretStr" in str(setting.type):
        return {"items": {"pattern": _TEMPLATE}} if "tuple" in str(setting.type) else {"pattern": _TEMPLATE}
    _, pattern = _yaml_form(setting.type)
    return {"pattern": pattern} if pattern else {}


_FIELDS: dict[str, Any] = {s.field: _field(s) for s in SETTINGS if s.field != _REPLACED}
_SettingsFields = create_model("_SettingsFields", __base__=dg.Model, **_FIELDS)


class _Scaffolder(dg.Scaffolder):
    """Writes a YAML file with example values to adapt."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        name = re.sub(r"\W", "_", request.target_path.name, flags=re.ASCII)
        attributes = {
            "name": name,
            "postgres_host": "localhost",
            "postgres_db": name,
            "postgres_user": "ovia_backup",
            "postgres_password_file": f"/run/secrets/{name}_postgres_password",
            "backup_dir": f"/backups/{name}",
        }
        dg.scaffold_component(request, attributes)


@dg.scaffold_with(_Scaffolder)
class PostgresBackup(dg.Component, _SettingsFields, dg.Resolvable):
    """Backups of one PostgreSQL database that are proven restorable: dumps, verification, drills, restores, alerts.

    All names in Dagster begin with the component's name, so that one code location can hold any number of components.
    An invalid value does not keep the other components from loading: the jobs that need it refuse, with one line.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$")] = Field(
        description="Prefix of all names of this database: `orders` gives the asset `orders/daily_dump` and the job "
        "`orders_daily_backup_job`. Empty: names without a prefix, for at most one database."
    )
    libpq: Annotated[
        Mapping[str, str] | None,
        dg.Resolver.default(
            description="`PGSSL*` and `PGPASSFILE`, passed on to libpq. Other variables are not passed on."
        ),
    ] = None

    @classmethod
    @cache
    def model(cls) -> type[BaseModel]:
        """The model that the YAML is validated against."""
        found = super().model()
        # Resolvers can set this only in Dagster releases newer than the oldest that we support.
        for setting in SETTINGS:
            if setting.field in found.model_fields:
                found.model_fields[setting.field].json_schema_extra = _pattern(setting)
        found.model_rebuild(force=True)
        return found

    def settings(self) -> Settings:
        """The settings from the YAML. Invalid values are listed in their ``problems``."""
        given = {name: getattr(self, name) for name in self.model_fields_set - {"name"}}
        refused = {name: value for name, value in given.items() if isinstance(value, _Refused)}
        settings = Settings.of(**{name: value for name, value in given.items() if name not in refused})
        problems = (f"{name}: {value.why}" for name, value in refused.items())
        return settings.model_copy(update={"problems": (*settings.problems, *problems)})

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002
        """The definitions of this database."""
        return build_defs(self.settings(), prefix=self.name)
