"""Delivery through Apprise, to real receivers on the loopback."""

from __future__ import annotations

import logging
from typing import Any

import apprise
import pytest
from pydantic import SecretStr

from ovia_backup_dagster.core.errors import NotificationError
from ovia_backup_dagster.notifications.apprise_sender import Delivery, Notifier
from ovia_backup_dagster_tests.defs.receiver import receiver

# Apprise raises it on import under Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")


def test_a_channel_that_raises_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = apprise.Apprise.notify

    def notify(self: apprise.Apprise, **kwargs: Any) -> Any:
        if self[0].port == 1:
            raise RuntimeError("a defect of the plugin's")
        return real(self, **kwargs)

    monkeypatch.setattr(apprise.Apprise, "notify", notify)
    with receiver() as people:
        urls = [SecretStr("json://127.0.0.1:1/"), SecretStr(people.url)]

        assert Notifier(urls).send("title", "body", failure=True) == Delivery(("2 (json)",), ("1 (json)",))

        assert people.titles == ["title"]


def test_an_undelivered_alert_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    secret = "channel-s3cret"
    urls = [SecretStr(f"json://user:{secret}@127.0.0.1:1/"), SecretStr(f"nosuchscheme://{secret}")]

    with caplog.at_level(logging.DEBUG), pytest.raises(NotificationError, match=r"1 \(json\), 2 \(nosuchscheme\)") as e:
        Notifier(urls).send("title", "body", failure=True)

    assert e.value.transient
    assert secret not in str(e.value) + caplog.text


def test_without_channels_sending_is_no_failure() -> None:
    assert Notifier(()).send("title", "body", failure=True) == Delivery((), ())
