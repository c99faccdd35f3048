"""Whether the extra `imcore[web]` is installed. This module itself needs none of it."""

from importlib.util import find_spec

from imcore.errors import ConfigurationError

_MODULES = ("cryptography", "httptools", "jwt", "starlette", "uvicorn", "websockets")


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in _MODULES if find_spec(name) is None]


def require(what: str) -> None:
    """Raise ConfigurationError if something is missing that `what` needs."""
    if names := missing():
        raise ConfigurationError(f"{what} needs {', '.join(names)}: pip install 'imcore[web]'")
