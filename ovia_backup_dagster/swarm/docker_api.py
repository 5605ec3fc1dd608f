"""Requests to Docker's API about services: one at a time, repeated while Docker is unreachable.

What the answers mean for a restore belongs to ``docker_services``.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from ovia_backup_dagster.core.errors import (
    ServiceManagerRefusedError,
    ServiceManagerUnreachableError,
    ServiceMissingError,
)

if TYPE_CHECKING:
    import docker

#: A JSON object of Docker's API: a service, a task or a specification.
Json = dict[str, Any]
T = TypeVar("T")

#: How long a single request is repeated while Docker is unreachable, in seconds. A wait repeats its requests until its
#: own timeout.
PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
_ANSWER_SECONDS = 10
_LOG_LINES = 10
_NAME = r"(?:password|passwd|_pass|pwd)"
#: A URL's password, up to the last @: the passwords that tools complain about are those with an unencoded / or @. A
#: password in a URL's query is matched as a setting.
_IN_URL = re.compile(rf"(\b[a-z][a-z0-9+.-]{{0,30}}://[^\s:/]*:)(?:(?![?&]\w*{_NAME}=)\S)*@", re.IGNORECASE)
#: A setting's password: in a connection string, an environment, JSON or SQL. A quoted password ends with its quotes.
_IN_SETTING = re.compile(
    rf"""({_NAME}(?:\\*["'])?(?:\s*[=:]\s*|\s+(?=')))"""
    r"""(?:(?P<quote>\\*["'])(?:(?P=quote){2}|\\.|(?!(?P=quote)).)*(?:(?P=quote)|$)|\S+)""",
    re.IGNORECASE,
)


class SwarmApi:
    """The part of Docker's API that services need. Opens a connection for each request.

    Args:
        url: where Docker answers (``unix://…``, ``tcp://…``); ``None`` for ``DOCKER_HOST``, else Docker's socket.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url

    def inspect(self, service: str, ends: float) -> Json:
        found: Json = self._ask(lambda api: api.inspect_service(service), ends, service)
        return found

    def tasks(self, service: str, ends: float) -> list[Json]:
        """The service's tasks, oldest first."""
        found: list[Json] = self._ask(lambda api: api.tasks({"service": service}), ends, service)
        return sorted(found, key=lambda task: str(task["CreatedAt"]))

    def update(self, service: str, edit: Callable[[Json], bool], ends: float) -> Json:
        """Change a service's specification, and return it. ``edit`` returns whether it changed anything."""

        def change(api: docker.APIClient) -> Json:
            found = api.inspect_service(service)
            spec: Json = found["Spec"]
            if edit(spec):
                answer = api.post(
                    f"{api.base_url}/v{api.api_version}/services/{found['ID']}/update",
                    params={"version": found["Version"]["Index"]},
                    json=spec,
                    timeout=_ANSWER_SECONDS,
                )
                if not answer.ok:
                    from docker.errors import APIError

                    raise APIError(str(answer.status_code), response=answer, explanation=_explanation(answer))
            return spec

        return self._ask(change, ends, service)

    def printed(self, spec: Json, tasks: Sequence[Json]) -> str:
        """The last lines of the newest task that had a container; empty if its log cannot be read."""
        had = [task["ID"] for task in tasks if task["Status"].get("ContainerStatus", {}).get("ContainerID")]
        if not had:
            return ""
        mark = f"com.docker.swarm.task.id={had[-1]}"

        def lines(api: docker.APIClient) -> bytes:
            tty = bool(spec["TaskTemplate"]["ContainerSpec"].get("TTY"))
            options = {"details": True, "stdout": True, "stderr": True, "tail": _LOG_LINES, "is_tty": tty}
            return b"".join(api.service_logs(spec["Name"], **options))

        try:
            text = self._ask(lines, time.monotonic(), spec["Name"]).decode("utf-8", "replace")
        except (ServiceManagerUnreachableError, ServiceManagerRefusedError):
            return ""  # the log driver keeps none, or the node is down: report the failure without the log
        pairs = (line.partition(" ")[::2] for line in text.splitlines())
        return " / ".join(redacted(line).strip()[:200] for details, line in pairs if mark in details)

    def _ask(self, question: Callable[[docker.APIClient], T], ends: float, service: str) -> T:
        """Send a request; repeat it until ``ends`` while Docker is unreachable or another update came first."""
        _require_client()
        from docker.errors import APIError, DockerException, NotFound

        for last in looks(ends):
            try:
                with self._api() as api:
                    return question(api)
            except NotFound:
                raise self._missing(service) from None
            except (APIError, DockerException, requests.RequestException) as error:
                said = _said(error)
                if isinstance(error, APIError) and error.is_client_error():
                    raise ServiceManagerRefusedError(
                        f"Docker refuses what a restore needs of service {service}",
                        said=said,
                        fix="see deploy/haproxy/docker.cfg for what the filter passes on; docker service inspect "
                        + service,
                    ) from None
                if last:
                    raise ServiceManagerUnreachableError(
                        f"Docker does not answer at {self._url or 'its socket, or DOCKER_HOST'}",
                        said=said,
                        fix="docker info, on a manager (docker node ls); docker service ps ovia-backup_docker-filter",
                    ) from None
        raise AssertionError("looks() always yields a last look")

    @contextmanager
    def _api(self) -> Iterator[docker.APIClient]:
        """A client for one request, so that no connection is used that Docker's restart has closed."""
        import docker
        from docker.utils import kwargs_from_env

        where = {"base_url": self._url} if self._url else kwargs_from_env()
        with closing(docker.APIClient(**where, timeout=_ANSWER_SECONDS)) as api:
            yield api

    def _missing(self, service: str) -> ServiceMissingError:
        from docker.errors import DockerException

        try:
            with self._api() as api:
                names = [str(found["Spec"]["Name"]) for found in api.services()]
        except (DockerException, requests.RequestException):
            names = []
        near = difflib.get_close_matches(service, names, n=3)
        return ServiceMissingError(
            f"there is no service {service}",
            why=f"did you mean {' or '.join(near)}?" if near else "",
            fix="docker service ls; then set SWARM_APP_SERVICES and SWARM_MIGRATE_SERVICE",
        )


def _require_client() -> None:
    """Require Docker's client, which is an extra: a restore without services does not need it.

    Raises:
        ServiceManagerUnreachableError: Docker's client is not installed.
    """
    if find_spec("docker") is None:
        raise ServiceManagerUnreachableError(
            "Docker's client for Python is not installed", fix="pip install 'ovia-backup-dagster[swarm]'"
        )


def looks(ends: float) -> Iterator[bool]:
    """Pace a polling loop until ``ends``; yield whether this is the last round."""
    while time.monotonic() < ends:
        yield False
        time.sleep(_PAUSE_SECONDS)
    yield True


def soon() -> float:
    return time.monotonic() + PATIENCE_SECONDS


def _explanation(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _said(error: Exception) -> str:
    return str(getattr(error, "explanation", "") or error)


def redacted(line: str) -> str:
    """Remove recognizable passwords from a printed line: those of URLs and of settings."""
    return _IN_SETTING.sub(r"\1...", _IN_URL.sub(r"\1...@", line))
