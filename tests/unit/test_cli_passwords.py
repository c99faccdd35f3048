"""Options that hold a password leave the command line, and no text shows one, whatever the options are called."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.cli.main import without_passwords
from imcore.logs.redaction import redact
from imcore.sql import postgres_options
from imcore.streams import url_options

REDIS = "redis://ann:s3cret@host"
SQL = "postgresql://ann:s3cret@host/chat"
PLAIN = "redis://host"


@pytest.mark.parametrize(
    ("arguments", "remaining", "moved"),
    [
        (["up"], ["up"], {}),
        (["up", "--redis-url", PLAIN], ["up", "--redis-url", PLAIN], {}),
        (["up", "--redis-url", REDIS, "--json"], ["up", "--json"], {"IM_REDIS_URL": REDIS}),
        ([f"--redis-url={REDIS}", "up"], ["up"], {"IM_REDIS_URL": REDIS}),
        (
            ["--redis-url", REDIS, "up", "--database-url", SQL],
            ["up"],
            {"IM_REDIS_URL": REDIS, "IM_DATABASE_URL": SQL},
        ),
        (["up", "--database-url", "postgresql:///chat?password=s3cret"], ["up"], {
            "IM_DATABASE_URL": "postgresql:///chat?password=s3cret"
        }),
        # Of two, the later counts, wherever it ends up.
        (["--redis-url", PLAIN, "up", "--redis-url", REDIS], ["up"], {"IM_REDIS_URL": REDIS}),
        (["--redis-url", REDIS, "up", "--redis-url", PLAIN], ["up"], {"IM_REDIS_URL": PLAIN}),
        # What is no option stays.
        (["send", "team", "--", "--redis-url", REDIS], ["send", "team", "--", "--redis-url", REDIS], {}),
        (["send", "team", REDIS, "--from", "ann"], ["send", "team", REDIS, "--from", "ann"], {}),
        (["up", "--redis-url"], ["up", "--redis-url"], {}),
    ],
)  # fmt: skip
def test_urls_with_passwords_go_into_the_environment(
    arguments: list[str], remaining: list[str], moved: dict[str, str]
) -> None:
    assert without_passwords(arguments) == (remaining, moved)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@h", "redis://:***@h"),
        (
            "at rediss://u:p@ss:w/rd@h:1/0, and postgresql://a:b@c/d",
            "at rediss://u:***@h:1/0, and postgresql://a:***@c/d",
        ),
        ("unix:///run/x.sock?db=1&password=secret&x=1", "unix:///run/x.sock?db=1&password=***&x=1"),
        ("redis://h:1?password=a@b and more", "redis://h:*** and more"),
        ("ann@example.org: 10:30", "ann@example.org: 10:30"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


SECRET = "T0PSECRET"
TABLES = (
    ("--redis-url", "IM_REDIS_URL", url_options.OPTIONS),
    ("--database-url", "IM_DATABASE_URL", postgres_options.OPTIONS),
)
URLS = [
    *("redis://h/0?{}", "rediss://ann@h:1?db=1&{}", "unix:///run/x.sock?{}&db=1", "redis+cluster://h:7000/?{}"),
    *("postgresql:///chat?{}", "postgresql://ann@h:5432/chat?sslmode=require&{}&sslkey=k", "postgresql://h/chat&{}"),
]


def secret_options() -> Iterator[tuple[str, str, str]]:
    """Each option that is secret, and the option of `im` and the variable that may have it."""
    for option, variable, table in TABLES:
        yield from ((option, variable, name) for name, known in table.items() if known.is_secret)


def test_every_option_named_like_a_secret_is_secret() -> None:
    for _, _, table in TABLES:
        assert {name for name in table if "password" in name} == {name for name in table if table[name].is_secret}


@given(st.sampled_from(list(secret_options())), st.sampled_from(URLS), st.data())
def test_every_secret_option_is_found_in_every_form_of_its_name(
    secret: tuple[str, str, str], url: str, data: st.DataObject
) -> None:
    # Given a URL whose option has some letters of its name in percent form, or in capitals
    option, variable, name = secret
    forms = [
        data.draw(st.sampled_from([char, f"%{ord(char):02x}", f"%{ord(char):02X}", char.upper()])) for char in name
    ]
    value = data.draw(st.sampled_from([SECRET, f"{SECRET}@{SECRET}", f":{SECRET}@", f"{SECRET};a={SECRET}"]))
    url = url.format(f"{''.join(forms)}={value}")

    # Then it leaves the command line, and what is shown of it is not the value
    assert without_passwords(["listen", option, url]) == (["listen"], {variable: url})
    assert SECRET not in redact(f"at {url} is nobody")
    assert redact(redact(url)) == redact(url)


@pytest.mark.parametrize("url", ["redis://ann:s3 cret@h", "redis://h?passwort=s3cret", "ann:s3cret@h"])
def test_a_possible_password_leaves_the_command_line_too(url: str) -> None:
    assert without_passwords(["up", "--redis-url", url]) == (["up"], {"IM_REDIS_URL": url})


@pytest.mark.parametrize(
    "url", ["postgresql:///chat?passfile=/home/ann/.pgpass", "rediss://h?ssl_certfile=a&ssl_keyfile=b", "redis://ann@h"]
)
def test_text_without_secrets_stays_as_it_is(url: str) -> None:
    assert redact(url) == url
    assert without_passwords(["up", "--redis-url", url])[1] == {}
