"""What pins the environment, read: docker/pins.toml, the locks, and the site-packages folder they are held against."""

import re
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from recipe.core.errors import UsageError

DOCKER = Path(__file__).parents[2] / "docker"


@dataclass(frozen=True)
class Pins:
    """What docker/pins.toml demands of an environment."""

    required_sm: int
    cuda: str

    @property
    def bitsandbytes(self) -> str:
        """The library that bitsandbytes loads on a P100."""
        return f"libbitsandbytes_cuda{self.cuda.replace('.', '')}_nocublaslt.so"


def read_pins(path: Path) -> Pins:
    """Raises UsageError where the file is absent, not TOML or lacks a key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return Pins(required_sm=int(table["cuda"]["required_sm"]), cuda=str(table["cuda"]["version"]))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} does not say cuda.version and cuda.required_sm ({error!r}); restore it") from None


@dataclass(frozen=True)
class Drivers:
    """Which NVIDIA drivers will do: at least `minimum`, a version; at most `last_branch`, its first number."""

    minimum: str
    last_branch: int


def read_drivers(path: Path) -> Drivers:
    """Raises UsageError where docker/pins.toml does not say them."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["driver"]
        return Drivers(minimum=str(table["minimum"]), last_branch=int(table["last_branch"]))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} does not say driver.minimum and driver.last_branch ({error!r}); restore it") from None


def read_lock(path: Path) -> dict[str, str]:
    """Normalised package name -> version, for this Python and machine.

    Raises UsageError: no such file, a line that is not name==version, a package without a hash.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the lock {path} ({error}); `make lock` writes it") from None
    versions: dict[str, str] = {}
    for line in re.sub(r"\\\s*\n", " ", re.sub(r"(?m)(^|\s)#.*$", "", text)).splitlines():
        if not line.strip():
            continue
        pinned, *hashes = re.split(r"\s+--hash=", line.strip())
        try:
            requirement = Requirement(pinned)
        except InvalidRequirement:
            raise UsageError(f"{path}: {pinned!r} is not name==version; `make lock` writes the lock anew") from None
        specifiers = list(requirement.specifier)
        if len(specifiers) != 1 or specifiers[0].operator != "==":
            raise UsageError(f"{path}: {pinned} is not pinned by ==; `make lock` writes the lock anew")
        if not hashes:
            raise UsageError(f"{path}: {pinned} has no --hash, so anything could be installed for it; run `make lock`")
        if requirement.marker is None or requirement.marker.evaluate():
            versions[canonicalize_name(requirement.name)] = specifiers[0].version
    return versions


def find_site(prefix: Path | None) -> Path:
    """The site-packages folder of the running environment, of a virtual environment, or `prefix` itself if it is one.

    Raises UsageError where there is none, or more than one.
    """
    if prefix is None:
        return Path(sysconfig.get_path("purelib"))
    if any(prefix.glob("*.dist-info")):
        return prefix
    found = [*prefix.glob("lib/python3*/site-packages"), *prefix.glob("lib/python3*/dist-packages")]
    if len(found) != 1:
        raise UsageError(f"{prefix} holds {len(found)} site-packages folders, expected one: name the folder itself")
    return found[0]


def same_version(one: str, two: str) -> bool:
    """1.0 and 1.0.0 are one version; what no version is must be the same text."""
    try:
        return Version(one) == Version(two)
    except InvalidVersion:
        return one == two
