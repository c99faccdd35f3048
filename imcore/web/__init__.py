"""The network side: WebSocket, HTTP and the page. It needs the extra `imcore[web]`.

`app` is an ASGI application; `im serve` runs it alone.
"""

TYPE_CHECKING = False  # nothing is imported here: `im serve` says in one line what is not installed
if TYPE_CHECKING:
    from typing import Any

    from imcore.web.asgi import app
    from imcore.web.auth import Identity
    from imcore.web.settings import WebSettings

__all__ = ["Identity", "WebSettings", "app"]

_PLACES = {"Identity": "auth", "WebSettings": "settings", "app": "asgi"}


def __getattr__(name: str) -> "Any":
    """Import these when they are asked for."""
    from importlib import import_module  # noqa: PLC0415

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"imcore.web.{_PLACES[name]}"), name)
