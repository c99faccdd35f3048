"""Options of a database's URL are known, and of the kind that each is; or the URL is refused in one line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.errors import ConfigurationError
from imcore.sql import postgres_url
from imcore.sql.database import Database

PASSWORD = "s3cret"
ADDRESS = f"postgresql://ann:{PASSWORD}@db.example:5432/chat"


@pytest.mark.parametrize(
    "option",
    [
        *("sslmode=verify-full", "sslrootcert=/etc/ssl/ca.pem", "sslmode=require&sslcert=a&sslkey=b&sslsni=0"),
        *("connect_timeout=3", "keepalives=0", "tcp_user_timeout=0", "keepalives_idle=5&keepalives_count=2"),
        *("target_session_attrs=read-write", "load_balance_hosts=random", "hostaddr=192.0.2.1"),
        *("application_name=chat", "options=-csearch_path%3Dchat", "ssl_min_protocol_version=TLSv1.3"),
        *("channel_binding=require", "passfile=/x", "service=chat", "user=ann&dbname=chat"),
    ],
)
def test_a_known_option_is_passed_on(option: str) -> None:
    given = postgres_url.parse(f"{ADDRESS}?{option}")

    for pair in option.split("&"):
        name, _, value = pair.partition("=")
        assert value.replace("%3D", "=") in given[name]
    assert "postgresql://" in Database.connect(f"{ADDRESS}?{option}").address


@pytest.mark.parametrize(
    ("option", "said"),
    [
        # Arguments of psycopg or SQLAlchemy.
        *((f"{name}=1", name) for name in ("prepare_threshold", "autocommit", "row_factory", "context", "conninfo")),
        *((f"{name}=1", name) for name in ("client_encoding", "replication", "plugin", "async_fallback", "timezone")),
        # Misspelled names, and names without a value.
        *(("ssl_mode=require", "is it sslmode"), ("sslMode=require", "is it sslmode"), ("sslmode", "sslmode")),
        *(("sslmode=", "sslmode"), ("=1", "another form"), ("connect_timeout", "connect_timeout")),
        # Bad values.
        *((f"connect_timeout={value}", "from 1 to") for value in ("0", "-1", "ten", "1.5", "1e3", "\u0661", "9" * 12)),
        *(("sslmode=on", "one of disable"), ("keepalives=yes", "one of 0, 1"), ("port=0", "from 1 to 65535")),
        *(("port=99999", "65535"), ("port=5432,x", "65535"), ("target_session_attrs=primary,standby", "one of any")),
        *(("keepalives_count=0", "from 1"), ("application_name=", "application_name"), ("user=%00", "user")),
        # Repeated options.
        *(("sslmode=require&sslmode=disable", "more than once"), ("user=a&user=b", "more than once")),
    ],
)
def test_a_bad_option_is_refused_in_one_line(option: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match="IM_DATABASE_URL") as caught:
        Database.connect(f"{ADDRESS}?{option}")

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:p?{PASSWORD}=1@db.example/chat",
        f"postgresql://ann:p?{PASSWORD}@db.example/chat",
        f"postgresql://db.example/chat?password={PASSWORD}&passwort={PASSWORD}",
        f"postgresql://db.example/chat?{PASSWORD}!",
        f"postgresql://db.example/chat?sslmode={PASSWORD}",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    try:
        said = Database.connect(url).address
    except ConfigurationError as error:
        said = str(error)
    assert PASSWORD not in said


@pytest.mark.parametrize(
    ("options", "hosts", "ports"),
    [
        *((option, "a,b", "1,2") for option in ("host=a:1&host=b:2", "host=a:1,b:2", "host=a,b&port=1,2")),
        *((option, "a,b", "1,2") for option in ("host=a&host=b&port=1&port=2", "host=a&host=b&port=1,2")),
        ("host=127.0.0.1:1,127.0.0.1:2", "127.0.0.1,127.0.0.1", "1,2"),
        ("host=[::1]:1,my_db:2", "::1,my_db", "1,2"),
        ("host=::1&port=1", "::1", "1"),
        ("host=a,b&port=1", "a,b", "1"),
        ("host=/run/postgresql&port=1", "/run/postgresql", "1"),
    ],
)
def test_several_servers_in_either_form(options: str, hosts: str, ports: str) -> None:
    given = postgres_url.parse(f"postgresql:///chat?{options}")
    assert (given["host"], given["port"]) == (hosts, ports)


@pytest.mark.parametrize(
    "options",
    [
        *("host=a:1,b", "host=a,b:2", "host=a:1&host=b", "host=a:x", "host=a:99999", "host=a:"),
        *("host=a:1&port=2", "host=a,b&port=1,2,3", "host=a&port=1,2", "port=1,2", "host=a,b&hostaddr=192.0.2.1"),
    ],
)
def test_lists_of_different_lengths_are_refused_in_one_line(options: str) -> None:
    with pytest.raises(ConfigurationError, match=r"IM_DATABASE_URL has .*: (give|leave) [^\n]*$"):
        postgres_url.parse(f"postgresql:///chat?{options}")


PARTS = {
    "user": ("ann", "bob"),
    "password": ("pw1", "pw2"),
    "host": ("h1", "h2"),
    "port": ("1", "2"),
    "dbname": ("c", "d"),
}
"""Parts that may be in the URL or in an option, each with two values."""


def url_of(parts: dict[str, str]) -> str:
    """A URL that says these before its options."""
    port = f":{parts['port']}" if "port" in parts else ""
    user = parts.get("user", "") + (f":{parts['password']}" if "password" in parts else "")
    return f"postgresql://{user}{'@' * bool(user)}{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


@pytest.mark.parametrize("name", PARTS)
def test_a_contradiction_is_refused(name: str) -> None:
    url = url_of({part: first for part, (first, _) in PARTS.items()})
    first, second = PARTS[name]

    with pytest.raises(ConfigurationError, match=rf"option {name}: leave one of them out") as caught:
        Database.connect(f"{url}?{name}={second}")
    assert "pw" not in str(caught.value)

    assert Database.connect(f"{url}?{name}={first}").address == Database.connect(url).address


@given(st.dictionaries(st.sampled_from(list(PARTS)), st.booleans()))
def test_the_shown_url_is_that_of_the_connection(said: dict[str, bool]) -> None:
    """Values before the options of a URL, or in one. Before them, a password needs a user, a port a host."""
    in_the_url = {name: PARTS[name][0] for name, is_in_url in said.items() if is_in_url}
    if "user" not in in_the_url:
        in_the_url.pop("password", None)
    if "host" not in in_the_url:
        in_the_url.pop("port", None)
    options = {name: PARTS[name][0] for name in said if name not in in_the_url}
    url = f"{url_of(in_the_url)}?{'&'.join(f'{name}={value}' for name, value in options.items())}"

    shown = postgres_url.shown(postgres_url.parse(url))

    assert shown == url_of({name: value for name, value in (in_the_url | options).items() if name != "password"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql:///chat?host=a,b&port=1,2", "postgresql://a:1,b:2/chat"),
        ("postgresql:///chat?host=a&host=b&port=1", "postgresql://a:1,b:1/chat"),
        ("postgresql:///chat?host=::1&port=1", "postgresql://[::1]:1/chat"),
        ("postgresql://[::1]:1/chat", "postgresql://[::1]:1/chat"),
        ("postgresql://a/chat?hostaddr=192.0.2.1", "postgresql://a/chat?hostaddr=192.0.2.1"),
        ("postgresql:///?service=chat", "postgresql:///?service=chat"),
    ],
)
def test_the_shown_url_of_several_servers(url: str, shown: str) -> None:
    assert postgres_url.shown(postgres_url.parse(url)) == shown


@pytest.mark.parametrize("option", ["mode=ro", "timeout=5", "cache=shared&mode=rw", "journal_mode=off", "x="])
def test_sqlite_takes_no_options(tmp_path: Path, option: str) -> None:
    name = re.escape(option.partition("=")[0])
    with pytest.raises(ConfigurationError, match=rf"takes no options: leave \?{name}="):
        Database.connect(f"sqlite:///{tmp_path / 'imcore.db'}?{option}")


@pytest.mark.parametrize("name", ["what?.db", "100% odd?#;.db", "a=b?c.db", "?.db"])
def test_a_path_of_sqlite_may_hold_any_character(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "odd?mode=ro"
    folder.mkdir()
    with Database.connect(f"sqlite:///{folder / name}") as database:
        database.upgrade()
    assert (folder / name).exists()
