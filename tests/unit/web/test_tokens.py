"""Tokens: the key decides about the algorithm, and a token about nothing but its user and its end."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from imcore.errors import ConfigurationError, InvalidInput, NotAuthenticated
from imcore.web.auth import Tokens, bearer_of
from imcore.web.settings import WebSettings
from tests.helpers.web import KEY, token, web_settings

RSA, EC, ED = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey
ED_KEY = ED.generate()


def public(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def tokens(**environ: str) -> Tokens:
    return Tokens(WebSettings.from_env(environ))


def refusal(made: str, checker: Tokens | None = None) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        (checker or tokens(IM_WEB_KEY=KEY)).identity(made)
    assert len(made) < 8 or made not in str(refused.value)
    return str(refused.value)


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "nothing": (lambda: "", "not a JSON Web Token"),
    "a word": (lambda: "x", "not valid"),
    "three words": (lambda: "a.b.c", "not valid"),
    "too long": (lambda: "x" * 20_000, "not a JSON Web Token"),
    "another key": (lambda: token(key="another key of thirty-two bytes!!"), "Signature verification failed"),
    "expired": (lambda: token(ttl_s=-1), "expired"),
    "expired now": (lambda: token(ttl_s=0), "expired"),
    "no exp": (lambda: token(exp=None), "exp"),
    "no sub": (lambda: token(sub=None), "sub"),
    "made in the future": (lambda: token(iat=time.time() + 60), "iat"),
    "from the future": (lambda: token(nbf=time.time() + 60), "nbf"),
    "exp is a word": (lambda: token(exp="soon"), "exp"),
    "exp is true": (lambda: token(exp=True), "exp"),
    "exp is infinite": (lambda: token(exp=1e400), "exp"),
    "exp is no number": (lambda: token(exp=float("nan")), "exp"),
    "an empty uid": (lambda: token(sub=""), "names no user"),
    "a uid with a line break": (lambda: token(sub="a\nb"), "names no user"),
    "a long uid": (lambda: token(sub="x" * 129), "names no user"),
    "for others": (lambda: token(aud="others"), "udience"),
}


class TestSecret:
    def test_a_token_names_its_user_its_role_and_its_end(self) -> None:
        identity = tokens(IM_WEB_KEY=KEY).identity(token("ann", 60, role="server"))
        assert (identity.uid, identity.is_server) == ("ann", True)
        assert identity.expires_at == pytest.approx(time.time() + 60, abs=5)
        assert not tokens(IM_WEB_KEY=KEY).identity(token("ann", role="admin")).is_server
        assert not tokens(IM_WEB_KEY=KEY).identity(token("ann", role=["server"])).is_server

    def test_what_im_token_makes_is_taken(self) -> None:
        checker = tokens(IM_WEB_KEY=KEY)
        identity = checker.identity(checker.issue("群", 60, is_server=True, demo=["a"]))
        assert (identity.uid, identity.is_server, identity.claims["demo"]) == ("群", True, ["a"])
        with pytest.raises(InvalidInput):
            checker.issue("", 60)

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_token_is_refused_and_not_repeated(self, name: str) -> None:
        make, words = BAD[name]
        assert words in refusal(make())

    def test_a_clock_that_is_a_little_ahead_is_no_reason_to_refuse(self) -> None:
        now = time.time() + 3
        assert tokens(IM_WEB_KEY=KEY).identity(token(iat=now, nbf=now)).uid == "ann"

    def test_an_expired_token_gets_no_leeway(self) -> None:
        checker, made = tokens(IM_WEB_KEY=KEY), token(exp=2_000_000_000)
        assert checker.identity(made, 1_999_999_999.9).uid == "ann"
        with pytest.raises(NotAuthenticated, match="expired"):
            checker.identity(made, 2_000_000_000)


class TestAlgorithms:
    def test_a_token_without_a_signature_is_refused(self) -> None:
        def part(value: object) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

        payload = {"sub": "ann", "exp": time.time() + 60}
        for alg in ("none", "None", "NONE", ""):
            unsigned = f"{part({'alg': alg, 'typ': 'JWT'})}.{part(payload)}."
            assert "not valid" in refusal(unsigned)
            assert "not valid" in refusal(unsigned, tokens(IM_WEB_PUBLIC_KEY=public(RSA)))

    def test_a_public_key_is_no_secret_to_sign_with(self) -> None:
        def part(value: object) -> bytes:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

        head = part({"alg": "HS256", "typ": "JWT"}) + b"." + part({"sub": "ann", "exp": time.time() + 60})
        signature = base64.urlsafe_b64encode(hmac.new(public(RSA).encode(), head, hashlib.sha256).digest()).rstrip(b"=")
        assert "not valid" in refusal((head + b"." + signature).decode(), tokens(IM_WEB_PUBLIC_KEY=public(RSA)))

    @pytest.mark.parametrize(("key", "alg"), [(RSA, "RS256"), (EC, "ES256"), (ED_KEY, "EdDSA")])
    def test_each_kind_of_public_key_takes_its_algorithm_only(self, key: Any, alg: str, tmp_path: Path) -> None:
        payload = {"sub": "ann", "exp": time.time() + 60}
        made = jwt.encode(payload, key, alg)
        (tmp_path / "key.pem").write_text(public(key))
        for given in (public(key), str(tmp_path / "key.pem")):
            assert tokens(IM_WEB_PUBLIC_KEY=given).identity(made).uid == "ann"
        for other in {RSA, EC, ED_KEY} - {key}:
            assert "not valid" in refusal(made, tokens(IM_WEB_PUBLIC_KEY=public(other)))
        assert "not valid" in refusal(made)
        if alg == "RS256":
            assert "not valid" in refusal(jwt.encode(payload, key, "PS256"), tokens(IM_WEB_PUBLIC_KEY=public(key)))
            assert "not valid" in refusal(jwt.encode(payload, key, "RS512"), tokens(IM_WEB_PUBLIC_KEY=public(key)))

    def test_a_public_key_signs_nothing(self) -> None:
        with pytest.raises(ConfigurationError, match="IM_WEB_KEY"):
            tokens(IM_WEB_PUBLIC_KEY=public(EC)).issue("ann", 60)


class TestKeys:
    @pytest.mark.parametrize(
        ("environ", "words"),
        [
            ({}, "no key for tokens is set"),
            ({"IM_WEB_KEY": "x" * 31}, "has 31 bytes and needs 32"),
            ({"IM_WEB_KEY": KEY, "IM_WEB_PUBLIC_KEY": public(EC)}, "both set"),
            ({"IM_WEB_KEY": public(EC)}, "IM_WEB_KEY is PEM"),
            ({"IM_WEB_PUBLIC_KEY": "-----BEGIN PUBLIC KEY-----\nrubbish"}, "not a public key"),
            ({"IM_WEB_PUBLIC_KEY": "/no/such/file"}, "neither PEM nor a file"),
            ({"IM_WEB_PUBLIC_KEY": public(ec.generate_private_key(ec.SECP384R1()))}, "P-256"),
            ({"IM_WEB_PUBLIC_KEY": public(ed448.Ed448PrivateKey.generate())}, "Ed25519"),
            ({"IM_WEB_PUBLIC_KEY": public(rsa.generate_private_key(65537, 1024))}, "2048 bits"),
            (
                {"IM_WEB_PUBLIC_KEY": EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()},
                "is a private key",
            ),
        ],
    )
    def test_a_key_that_cannot_be_used_is_named(self, environ: dict[str, str], words: str) -> None:
        with pytest.raises(ConfigurationError) as refusal:
            tokens(**environ)
        assert words in str(refusal.value)
        assert "PRIVATE" not in str(refusal.value)

    def test_keys_are_not_shown(self) -> None:
        assert KEY not in repr(web_settings())


@pytest.mark.parametrize(
    ("header", "expected"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("", None), ("Bearer", "")],
)
def test_a_bearer_header_is_read(header: str, expected: str | None) -> None:
    assert bearer_of({"authorization": header}) == expected
    assert bearer_of({}) is None
