"""The application's HTTP health check. ``execution`` decides what a restore does if the check fails."""

from __future__ import annotations

import base64
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO
from urllib.parse import unquote, urlsplit

from ovia_backup_dagster.core.errors import HealthError

#: Time limit of one request, in seconds.
TRY_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
_PORTS = {"http": 80, "https": 443}


def wait_until_healthy(url: str, timeout_seconds: float, log: Callable[[str], None]) -> None:
    """Send requests until one succeeds (2xx).

    Args:
        url: ``http`` or ``https``; a user name and a password in it are sent as basic authentication, and never shown.
        timeout_seconds: how long to try.
        log: receives each answer that differs from the previous one.

    Raises:
        HealthError: no request succeeded in time, or the URL is not valid.
    """
    ends = time.monotonic() + timeout_seconds
    request, bare = _request(url)
    # No proxy: the environment's proxy is for hosts outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _SameOrigin)
    said = ""
    while True:
        before = said
        left = ends - time.monotonic()
        said = _answer(opener, request, max(0.1, min(TRY_SECONDS, left)))
        if not said:
            log(f"{bare} is healthy")
            return
        if said != before:
            log(f"{bare} is not healthy yet: {said}")
        if time.monotonic() + _PAUSE_SECONDS > ends:
            raise HealthError(
                f"{bare} was not healthy within {timeout_seconds:.0f} s",
                why=f"the last answer was: {said}",
                fix=f"curl -i {bare}; see the log of the service that answers there, and of those that it needs",
            )
        time.sleep(_PAUSE_SECONDS)


def shown(url: str) -> str:
    """The URL as it may be shown: without user name, password and query, which may be secrets.

    Raises:
        HealthError: the URL is not valid.
    """
    return _request(url)[1]


def _request(url: str) -> tuple[urllib.request.Request, str]:
    """The request, and its URL as it may be shown."""
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in _PORTS
            and parts.hostname
            and parts.port != 0
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:  # of the port, or of an address in brackets
        usable = False
    if not usable:
        raise HealthError(
            "the application's health cannot be checked",
            why="HEALTH_URL is not an http or https URL",
            fix="set HEALTH_URL to one such as http://ovia-api:8080/health",
        )
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
    request = urllib.request.Request(bare.geturl())  # noqa: S310 - the scheme was checked
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    return request, bare._replace(query="").geturl()


def _answer(opener: urllib.request.OpenerDirector, request: urllib.request.Request, seconds: float) -> str:
    """The error in the answer; empty if the check succeeded."""
    try:
        with opener.open(request, timeout=seconds):
            return ""  # any other status is raised as an error
    except urllib.error.HTTPError as error:
        with error:
            return _status(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        return "none in time" if isinstance(cause, TimeoutError) else f"none ({cause})"


def _status(error: urllib.error.HTTPError) -> str:
    phrase = http.client.responses.get(error.code, "")
    where = urlsplit(error.headers.get("Location", ""))
    led = f" (to {where.scheme}://{where.netloc.rpartition('@')[2]}, which is not followed)" if where.netloc else ""
    return f"{error.code} {phrase}".strip() + led


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Refuse redirects to another host: its health says nothing about this one, and it must not get the password."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if _origin(req.full_url) != _origin(newurl):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
