"""Whether the extra `imcore[web]` is installed. This module itself needs none of it."""

from importlib.util import find_spec

from imcore.errors import ConfigurationError

_MODULES = ("cryptography", "httptools", "jwt", "starlette", "uvicorn", "websockets")


def require(what: str) -> None:
    """Raise ConfigurationError if something is missing that `what` needs."""
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{what} needs {', '.join(missing)}: pip install 'imcore[web]'")
