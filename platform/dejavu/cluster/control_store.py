"""Which cluster Ray would attach to, and whether its control store answers: Ray itself waits for one without end."""

from __future__ import annotations

import os

import grpc
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel

ANSWER_TIMEOUT_S = 20.0
"""A control store that is well answers within milliseconds, on a machine that is very busy within seconds."""
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_SILENT = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


def cluster_here() -> str | None:
    """Return what `ray.init()` would attach to: RAY_ADDRESS, or what `ray start` noted on this machine.

    None is for neither, and for an address that another service than the control store answers, such as `ray://`.

    Raises:
        ConnectionError: RAY_ADDRESS is `auto`, and no cluster is here.
        ValueError: RAY_ADDRESS is no address.
    """
    asked = os.environ.get("RAY_ADDRESS")
    if asked and "://" in asked:
        return None
    address: str | None = services.canonicalize_bootstrap_address(asked)  # type: ignore[arg-type]  # None is taken
    return address


def answers(address: str) -> bool:
    """Whether a control store says anything at this address (host:port), be it that it does not know us."""
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() not in _SILENT
    return True
