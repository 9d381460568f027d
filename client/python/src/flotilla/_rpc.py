"""The daemon's gRPC service: calls by name, and gRPC's errors as ours. The same for blocking and asyncio channels."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Tuple

import grpc
from google.protobuf import message_factory

from . import _convert
from ._errors import CanceledError, FlotillaError, InternalError, ResourceExhaustedError, TimedOutError, UnavailableError, VersionMismatchError
from .v1 import client_pb2, types_pb2

PROTOCOL = 1
RESTART_LIMIT = 30.0  # a daemon that restarts is back within this; a wait goes on with the new one
DEAD_LIMIT = 1.5  # for an error message: longer is not waited for a daemon that is dead
CAUSE_LIMIT = 6.0  # a pilot that is gone is noticed within 5 s

LARGEST_REQUEST = 64 << 20  # bytes that a daemon takes

CHANNEL_OPTIONS: List[Tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),  # a listing may be long
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.bdp_probe", 0),  # it would send a ping with each message
    ("grpc.http2.lookahead_bytes", 4 << 20),
]


def target(path: str) -> str:
    return "unix:" + os.path.abspath(path)


def check_size(request: Any) -> None:
    size = request.ByteSize()
    if size > LARGEST_REQUEST:
        raise ResourceExhaustedError(
            f"the request has {size} bytes, a daemon takes {LARGEST_REQUEST}",
            "give what is large as an input file; submit very many jobs in several calls",
        )


class Stub:
    """Each method of the service as an attribute."""

    def __init__(self, channel: Any) -> None:
        service = client_pb2.DESCRIPTOR.services_by_name["ClientService"]
        makers: Dict[Tuple[bool, bool], Callable[..., Any]] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        for method in service.methods:
            make = makers[bool(method.client_streaming), bool(method.server_streaming)]
            call = make(
                f"/{service.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:  # for type checkers; what exists is found without this
        raise AttributeError(name)


# What grpc.aio says of a stream whose connection broke while it began.
_BROKE_AT_ITS_BEGIN = (grpc.StatusCode.INTERNAL, "Internal error from Core")


def lost(error: grpc.RpcError) -> bool:
    """The connection to the daemon ended; what the daemon itself calls unavailable comes with details."""
    broke = error.code() == grpc.StatusCode.UNAVAILABLE or (error.code(), error.details()) == _BROKE_AT_ITS_BEGIN
    return broke and not _details(error)


def _details(error: grpc.RpcError) -> bytes:
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            return value if isinstance(value, bytes) else value.encode()
    return b""


def as_error(error: grpc.RpcError) -> FlotillaError:
    details = _details(error)
    if details:
        wire = types_pb2.Error()
        try:
            wire.ParseFromString(details)
        except Exception:  # not ours
            wire.Clear()
        if wire.message:
            return _convert.error(wire)
    code, text = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"the connection to the daemon ended ({text})", "see 'flotilla logs daemon'", retry=True)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOutError("the daemon did not answer in time", "see 'flotilla logs daemon'", retry=True)
    if code == grpc.StatusCode.CANCELLED:
        return CanceledError("canceled")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatchError(f"the running daemon does not know this call: {text}", "run 'flotilla daemon restart'")
    return InternalError(f"the daemon answered with an error without an explanation: {text} ({code})", "see 'flotilla logs daemon'")


def check_protocol(info: client_pb2.DaemonInfo) -> None:
    if info.protocol != PROTOCOL:
        raise VersionMismatchError(
            f"the running daemon ({info.build}) speaks protocol {info.protocol}, this library {PROTOCOL}",
            "run 'flotilla daemon restart', or install a library of the same version",
        )
