"""Who a client is: JSON Web Tokens (RFC 7519), made with one key and checked with one algorithm.

The algorithm follows from the key that is set, and never from a token.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from imcore.errors import ConfigurationError, InvalidInput, NotAuthenticated
from imcore.model.limits import check_name, is_number
from imcore.web.settings import WebSettings

SERVER = "server"
"""The role of a back end, which may speak for others and change groups."""

DEMO = "demo"
"""The claim with the users of a demo."""

LEAST_KEY_BYTES = 32
"""As many as HS256 gives (RFC 7518, 3.2)."""
LEAST_RSA_BITS = 2048

_LEEWAY_S = 10
"""By so much the clock of who signs a token may be ahead."""
_MOST_TOKEN_BYTES = 16_384
_HMAC = "HS256"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls: `expires_at` is in seconds since 1970, None for never; a `role` of "server" speaks for others."""

    uid: str
    role: str | None = None
    expires_at: float | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_server(self) -> bool:
        return self.role == SERVER


class Tokens:
    """Checks tokens, and makes them where the key is a secret of ours. Any thread may use it."""

    def __init__(self, settings: WebSettings) -> None:
        """Raise ConfigurationError without a key, with two, and for a key that is too weak or of the wrong kind."""
        if settings.key and settings.public_key:
            raise ConfigurationError(
                "IM_WEB_KEY and IM_WEB_PUBLIC_KEY are both set: set the one that tokens are checked with"
            )
        if not settings.key and not settings.public_key:
            raise ConfigurationError(
                "no key for tokens is set: set IM_WEB_KEY to a secret of 32 bytes or more, or IM_WEB_PUBLIC_KEY to the "
                "public key of who signs them"
            )
        self._key: Any
        if settings.key:
            self._key, self._algorithm = _secret(settings.key), _HMAC
        else:
            self._key, self._algorithm = _public(settings.public_key)

    def identity(self, token: str, now: float | None = None) -> Identity:
        """Return who a token names. Raise NotAuthenticated, which says what is wrong with it and not what it says."""
        claims = self._claims(token)
        expires_at = claims["exp"]
        if not is_number(expires_at) or not math.isfinite(expires_at):
            raise NotAuthenticated("the token's exp is no number")
        if expires_at <= (time.time() if now is None else now):
            raise NotAuthenticated("the token has expired: get a new one")
        try:
            uid = check_name(claims["sub"], "sub")
        except InvalidInput as error:
            raise NotAuthenticated(f"the token names no user: {error}") from None
        role = claims.get("role")
        return Identity(uid, role if isinstance(role, str) else None, float(expires_at), claims)

    def issue(self, uid: str, ttl_s: float, *, is_server: bool = False, **claims: object) -> str:
        """Return a token. Raise InvalidInput for an impossible uid, ConfigurationError without IM_WEB_KEY."""
        if self._algorithm != _HMAC:
            raise ConfigurationError("a public key (IM_WEB_PUBLIC_KEY) cannot sign a token: that needs IM_WEB_KEY")
        now = int(time.time())
        role = {"role": SERVER} if is_server else {}
        payload = {"sub": check_name(uid, "uid"), "iat": now, "exp": now + int(ttl_s), **role, **claims}
        return jwt.encode(payload, self._key, _HMAC)

    def _claims(self, token: str) -> dict[str, Any]:
        if not isinstance(token, str) or not 0 < len(token) <= _MOST_TOKEN_BYTES:
            raise NotAuthenticated("the token is not a JSON Web Token")
        required = {"require": ["exp", "sub"], "verify_exp": False}
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                options=required,  # type: ignore[arg-type]
                leeway=_LEEWAY_S,
            )
        except jwt.InvalidTokenError as error:
            raise NotAuthenticated(f"the token is not valid: {str(error) or type(error).__name__}") from None
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise NotAuthenticated(f"the token cannot be read: {type(error).__name__}") from None
        return claims


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """Return the token of an `Authorization: Bearer` header, if there is one. Names of headers are in lower case."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _secret(text: str) -> bytes:
    key = text.encode()
    if text.lstrip().startswith("-----BEGIN"):
        raise ConfigurationError("IM_WEB_KEY is PEM: a public key goes into IM_WEB_PUBLIC_KEY")
    if len(key) < LEAST_KEY_BYTES:
        raise ConfigurationError(
            f"IM_WEB_KEY has {len(key)} bytes and needs {LEAST_KEY_BYTES}: `openssl rand -base64 32` makes a good one"
        )
    return key


def _public(pem: str) -> tuple[Any, str]:
    """Return a public key, and the one algorithm for it."""
    if "PRIVATE KEY-----" in pem:
        raise ConfigurationError("IM_WEB_PUBLIC_KEY is a private key: give the public one, and keep this one secret")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("IM_WEB_PUBLIC_KEY is not a public key in PEM") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
        return key, "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key, "ES256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key, "EdDSA"
    raise ConfigurationError(
        f"IM_WEB_PUBLIC_KEY must be RSA of {LEAST_RSA_BITS} bits or more, EC on the curve P-256, or Ed25519"
    )
