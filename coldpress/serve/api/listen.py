"""The listening socket, bound before anything slow is imported or loaded."""

import errno
import socket

from coldpress.errors import PortInUseError, UsageError


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 chooses a free one.

    Raises:
        PortInUseError: somebody else listens there.
        UsageError: the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(512)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(f"port {port} is in use", "choose another --port") from error
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", "see --host"
        ) from error
    return bound
