"""What rclone and the stores behind it say, and which of our errors that is."""

from __future__ import annotations

import json

import pytest

from ovia_backup_dagster.core.errors import (
    BackupError,
    CopyDamagedError,
    RemoteAccessError,
    RemoteError,
    RemoteFullError,
    RemoteLockedError,
    RemoteMissingError,
    RemoteUnreachableError,
)
from ovia_backup_dagster.offsite.rclone_errors import diagnosed, last_words


def logged(*messages: str, level: str = "error", **more: object) -> str:
    return "".join(json.dumps({"level": level, "msg": message, **more}) + "\n" for message in messages)


def error_of(stderr: str) -> BackupError:
    return diagnosed("cannot write x", stderr, 1, remote="vault", try_it="rclone lsf vault:x")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("couldn't connect SSH: ssh: handshake failed: knownhosts: key mismatch", RemoteAccessError),
        ("ssh: handshake failed: ssh: unable to authenticate, attempted methods [none password]", RemoteAccessError),
        ("operation error S3: PutObject, StatusCode: 403, api error AccessDenied", RemoteAccessError),
        (
            "RequestTimeTooSkewed: The difference between the request time and the current time is too large.",
            RemoteAccessError,
        ),
        ("x509: certificate has expired or is not yet valid: current time 2020-01-01 is before", RemoteAccessError),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", RemoteAccessError),
        ("api error NoSuchBucket: The specified bucket does not exist", RemoteMissingError),
        ("api error AccessDenied: Access Denied because object protected by object lock", RemoteLockedError),
        ("write /mnt/nas/x: no space left on device", RemoteFullError),
        ("Put: 507 Insufficient Storage", RemoteFullError),
        ("dial tcp 10.0.0.1:443: connect: connection refused", RemoteUnreachableError),
        ("dial tcp: lookup nowhere.example: no such host", RemoteUnreachableError),
        ("corrupted on transfer: sizes differ src 5 vs dst 4", CopyDamagedError),
        ("something that no row knows", RemoteError),
    ],
)
def test_a_message_has_its_error_and_a_next_command(message: str, kind: type[BackupError]) -> None:
    found = error_of(logged(message))
    assert type(found) is kind
    assert found.said == message
    assert "vault" in found.fix or found.fix


def test_figures_of_progress_are_no_cause() -> None:
    """A number of bytes may contain the code of an error."""
    progress = logged("Transferred: 507 MiB, 403 B/s, EOF", level="notice", stats={"bytes": 507403507})
    found = error_of(progress + logged("something that no row knows"))
    assert type(found) is RemoteError


def test_the_last_error_is_quoted_without_its_frame() -> None:
    stderr = logged("the first") + logged("a notice", level="notice") + logged("the last") + "not JSON\n"
    assert last_words(stderr) == "the last"
    assert last_words("plain words\n") == "plain words"
    assert "exit code 1" in str(error_of(""))
