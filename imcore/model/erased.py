"""The names of erased users. No I/O."""

import re
import secrets

_PREFIX = "erased-"
_ALIAS = re.compile(f"{_PREFIX}[0-9a-f]{{16}}")


def new_alias() -> str:
    """Return what a user is called from now on, and no other user."""
    return _PREFIX + secrets.token_hex(8)


def is_alias(uid: str) -> bool:
    """Return whether a name is that of an erased user, who gets no receipts. Other users should not have such names."""
    return _ALIAS.fullmatch(uid) is not None
