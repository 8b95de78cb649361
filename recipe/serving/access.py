"""Who may ask: the Host and Origin checks, the key, and the headers of every answer."""

import hmac
import ipaddress
import socket
from dataclasses import dataclass, field

from recipe.core.errors import UsageError

KEY = "RECIPE_API_KEY"
MIN_KEY = 16
LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


@dataclass(frozen=True)
class Access:
    """The rules of one server. Raises UsageError for an address beyond loopback without a key."""

    host: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.key and (len(self.key) < MIN_KEY or not self.key.isascii() or not self.key.isprintable()):
            raise UsageError(f"{KEY} is not a usable key; expected {MIN_KEY} or more printable ASCII characters")
        if not self.loopback and not self.key:
            raise UsageError(
                f"--host {self.host} can be reached from other machines, and {KEY} is not set; set it to a secret of "
                f"{MIN_KEY} or more characters, or keep the default 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def host_allowed(self, header: str) -> bool:
        """Whether a Host header names this server exactly, with any port.

        A page of another site that rebinds its own DNS name to this machine sends that name. So names are compared as
        a whole, and beyond loopback an IP address is accepted too: it cannot be rebound.
        """
        name, separator, port = header.rpartition(":")
        if not separator or header.endswith("]"):
            name, port = header, "0"
        if not (port.isascii() and port.isdigit()):
            return False
        name = name.lower()
        if name in LOOPBACK:
            return True
        if self.loopback:
            return False
        return name in {self.host.lower(), socket.gethostname().lower()} or _is_address(name)

    def origin_allowed(self, origin: str | None, host: str) -> bool:
        """Whether a request comes from this server's own page, or from a program, which sends no Origin."""
        return origin is None or origin in (f"http://{host}", f"https://{host}")

    def key_allowed(self, authorization: str) -> bool:
        """Whether the Authorization header has the key, compared in constant time; always true without a key."""
        expected = f"Bearer {self.key}".encode()
        return not self.key or hmac.compare_digest(authorization.encode("utf-8", "surrogateescape"), expected)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
