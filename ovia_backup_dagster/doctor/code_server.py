"""Whether a Dagster code server answers: the standard gRPC health protocol, without importing Dagster."""

from __future__ import annotations

from collections.abc import Iterator

from ovia_backup_dagster.doctor.report import Area, Observation, fail, ok

#: The name under which Dagster's code server answers.
SERVICE = "DagsterApi"
TIMEOUT_SECONDS = 10.0
_LOG = "restart it, and read what it prints while it loads: its log, or dagster definitions validate"


def ask_code_server(port: int, host: str = "localhost") -> Iterator[Observation]:
    """Ask the code server on a port of this host."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            why = " ".join(str(error.details()).split()) if isinstance(error, grpc.Call) else str(error)
            yield fail(Area.DAGSTER, f"the code server on port {port} does not answer: {why}", _LOG)
            return
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        yield ok(Area.DAGSTER, f"the code server on port {port} serves")
    else:
        yield fail(Area.DAGSTER, f"the code server on port {port} is up, but does not serve", _LOG)
