"""The registry of what rclone, S3, SSH and filesystems say, and which of our errors that is. Pure.

To add one, add a row. The messages are those of rclone 1.75 and of the stores behind it.
"""

from __future__ import annotations

import contextlib
import json
import re

from ovia_backup_dagster.core.errors import (
    BackupError,
    CopyDamagedError,
    ProgramMissingError,
    RemoteAccessError,
    RemoteError,
    RemoteFullError,
    RemoteLockedError,
    RemoteMissingError,
    RemoteUnreachableError,
    SettingsError,
)

_CHECK = "ovia-backup offsite check {remote}"
#: Words of rclone, S3, SSH and the operating system -> our error. The first that is found wins.
_KNOWN: tuple[tuple[str, type[BackupError], str, str], ...] = (
    (r"didn't find section in config file", SettingsError, "RCLONE_CONFIG has no such remote", _CHECK),
    (
        r"unknown (shorthand )?flag|unknown command",
        ProgramMissingError,
        "this rclone is too old",
        "pip install 'ovia-backup-dagster[offsite]'",
    ),
    (r"knownhosts:|host key", RemoteAccessError, "its host key is not the one in known_hosts_file", _CHECK),
    (
        r"RequestTimeTooSkewed|RequestExpired|difference between the request time and",
        RemoteAccessError,
        "the clock of this host differs from the store's",
        "timedatectl; then {try_it}",
    ),
    (
        r"certificate has expired or is not yet valid",
        RemoteAccessError,
        "its certificate has expired, or the clock of this host is wrong",
        "timedatectl; then {try_it}",
    ),
    (
        r"\bx509:|tls: failed to verify",
        RemoteAccessError,
        "its TLS certificate is not trusted here",
        (
            "check the address in RCLONE_CONFIG; if the store has its own certificate authority: SSL_CERT_FILE; "
            "then {try_it}"
        ),
    ),
    (r"NoSuchBucket|bucket does not exist", RemoteMissingError, "there is no such bucket", _CHECK),
    (
        r"missing Object ?Lock ?Configuration|Object Lock is not (enabled|configured)",
        RemoteError,
        "its bucket has no object lock",
        "create a bucket with object lock and use that; or OFFSITE_LOCK_DAYS=0",
    ),
    (
        r"ObjectLocked|object is locked|retention period|WORM protected|Access Denied because object protected",
        RemoteLockedError,
        "the store has locked it",
        "wait for the end of the lock",
    ),
    (
        (
            r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|Forbidden|StatusCode: 40[13]|401 Unauthorized|"
            r"unable to authenticate|permission denied|couldn't decrypt|InvalidToken"
        ),
        RemoteAccessError,
        "it refuses these credentials, or they may not do this",
        _CHECK,
    ),
    (
        (
            r"no space left|remaining disk space|not enough space|insufficient storage|quota ?exceeded|StatusCode: 507|"
            r"SSH_FX_FAILURE.*space|EntityTooLarge"
        ),
        RemoteFullError,
        "it has no room left",
        "make room there, or keep fewer backups: OFFSITE_DAILY_KEEP",
    ),
    (
        (
            r"connection refused|no such host|i/o timeout|unreachable|connection reset|\bEOF\b|broken pipe|timed? ?out|"
            r"connection lost|Locked: 423|StatusCode: 5\d\d|StatusCode: 0|closed network|SlowDown|connection was closed"
        ),
        RemoteUnreachableError,
        "it does not answer, or the connection was lost",
        "{try_it}",
    ),
    (
        r"corrupted on transfer|sizes differ|hash differ|md5.*differ",
        CopyDamagedError,
        "what arrived is not what was sent",
        "ovia-backup offsite copy {remote}",
    ),
    (r"directory not found|object not found|not found", RemoteMissingError, "it is not there", _CHECK),
)


def diagnosed(what: str, stderr: str, code: int, *, remote: str, try_it: str) -> BackupError:
    """The error of a run that failed.

    Args:
        what: what failed, naming the thing.
        stderr: rclone's log, a JSON object a line.
        code: its exit code.
        remote: the remote's name, for the next command.
        try_it: a command that lists the remote.
    """
    said = last_words(stderr) or f"exit code {code}"
    messages = "\n".join(text for _, text in _messages(stderr)) or stderr
    for pattern, kind, why, fix in _KNOWN:
        if re.search(pattern, messages, re.IGNORECASE):
            return kind(what, why=why, said=said, fix=fix.format(remote=remote, try_it=try_it))
    return RemoteError(what, said=said, fix=try_it)


def last_words(stderr: str) -> str:
    """The last error in rclone's log, without its frame."""
    messages = _messages(stderr)
    errors = [text for is_error, text in messages if is_error]
    return errors[-1] if errors else messages[0][1] if messages else stderr.strip()[-300:]


def _messages(stderr: str) -> list[tuple[bool, str]]:
    """The messages of a log, each with whether it is an error. Progress is left out: its figures are no cause."""
    found = []
    for line in stderr.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("msg") and "stats" not in entry:
                is_error = entry.get("level") in ("error", "critical", "emergency")
                found.append((is_error, str(entry["msg"]).strip()))
    return found
