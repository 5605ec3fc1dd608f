"""Texts about restores for readers of Dagster's UI: fields of the Launchpad instead of command-line options.

Plans, errors and records name commands. Here each command that has an equivalent in the UI is replaced by it. A command
without one, such as listing the kept databases, stays.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator

from ovia_backup_dagster.defs.database_names import DUMP_VERIFICATION, RESTORE_JOB, RETENTION_PRUNING

#: A shell word, bare or quoted.
_VALUE = r"""(?:'[^']*'|"[^"]*"|[^\s;,()'"`])+"""
#: A backup's name or path, as opposed to the next word of a sentence.
_BACKUP = rf"(?:latest\b|BACKUP\b|(?=\S*[._/']){_VALUE})"
_WITH_VALUE = ("mode", "into", "stop-services", "scale", "create-privileged-role", "yes-destroy", "kept", "tables")
_ALONE = ("new-host", "create-roles", "even-if-damaged", "auto-undo", "without-services", "resume", "abort", "plan")
_OPTION = (
    rf"(?<![\w-])--(?:(?P<name>{'|'.join(_WITH_VALUE)})\b(?:[ =](?P<value>{_VALUE}))?|(?P<alone>{'|'.join(_ALONE)})\b)"
)
_OPTIONS = rf"(?: {re.sub(r'[?]P<[a-z]+>', '?:', _OPTION)})*"
_COMMANDS = re.compile(
    rf"ovia-backup (?:restore --(?P<look>help|history)"
    rf"|restore(?: (?P<backup>{_BACKUP}))?(?P<restore>{_OPTIONS})"
    rf"|undo-restore(?! --(?:list|forget))(?P<undo>{_OPTIONS})"
    rf"|accept (?P<accepted>{_BACKUP})"
    rf"|(?P<list>list)\b)"
)
_LOOKS = {"help": f"see the fields in the Launchpad of {RESTORE_JOB}", "history": f"see the runs of {RESTORE_JOB}"}
_LISTING = f"the page of {RETENTION_PRUNING} lists them all"


def in_the_ui(text: str) -> str:
    """The text with each command and option replaced by its equivalent in the UI."""
    return re.sub(_OPTION, _bare, _COMMANDS.sub(_command, text))


def _command(found: re.Match[str]) -> str:
    if look := found["look"]:
        return _LOOKS[look]
    if found["list"]:
        return _LISTING
    if accepted := found["accepted"]:
        return f"materialize {DUMP_VERIFICATION} with accept: true, backup: {_scalar(accepted)}"
    fields = [] if found["undo"] is None else ["action: plan_undo"]
    if found["backup"]:
        fields.append(f"backup: {_scalar(found['backup'])}")
    fields += _fields(found["restore"] or found["undo"] or "")
    return f"launch {RESTORE_JOB}" + (f" with {', '.join(fields)}" if fields else "")


def _bare(found: re.Match[str]) -> str:
    """An option that is not part of a command."""
    fields = list(_fields(found[0]))
    return ", ".join(fields) or found[0]


def _fields(options: str) -> Iterator[str]:
    lists: dict[str, list[str]] = {"privileged_roles": [], "tables": []}
    replicas = []
    for found in re.finditer(_OPTION, options):
        name, value, alone = found["name"], found["value"] or "", found["alone"]
        if alone == "plan":
            continue  # the default action
        if alone in ("resume", "abort"):
            yield f"action: {alone}"
        elif alone:
            yield f"{alone.replace('-', '_')}: true"
        elif name == "stop-services":
            yield f"stop_services_first: {json.dumps(value == 'first')}"
        elif name == "create-privileged-role":
            lists["privileged_roles"].append(_scalar(value))
        elif name == "tables":
            lists["tables"].append(_scalar(value))
        elif name == "scale":
            service, _, count = value.rpartition("=")
            replicas.append(f"{_scalar(service)}: {count}")
        # Dropped: instead of this option, a run needs the word of its plan in ``confirm``.
        elif name != "yes-destroy":
            yield f"{name}: {_scalar(value)}".rstrip()
    for field, values in lists.items():
        if values:
            yield f"{field}: [{', '.join(values)}]"
    if replicas:
        yield f"replicas: {{{', '.join(replicas)}}}"


def _scalar(word: str) -> str:
    """A shell word as a YAML scalar."""
    value = "".join(shlex.split(word))
    return value if re.fullmatch(r"[A-Za-z_][\w./-]*", value) or not value else json.dumps(value)


Log = Callable[[str], None]
Words = Callable[[str], str]


def told(log: Log, words: Words) -> Log:
    """A log function that passes each text through ``words`` first."""

    def tell(text: str) -> None:
        log(words(text))

    return tell
