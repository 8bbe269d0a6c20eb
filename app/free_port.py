"""Check of the port that a server of this machine will listen on."""

import socket

from app.errors import UserError


def require_free_port(host: str, port: int) -> None:
    """Raise UserError unless a process can listen on this address and port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port} of {host} cannot be used ({error}): give another --port"
            ) from None
