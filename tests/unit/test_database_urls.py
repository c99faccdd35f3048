"""Options of a database's URL are known, and of the kind that each is; or the URL is refused in one line."""

import re
from pathlib import Path

import pytest

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
        *("target_session_attrs=read-write", "load_balance_hosts=random", "host=a,b&port=5432,5433", "host=a&host=b"),
        *("application_name=chat", "options=-csearch_path%3Dchat", "ssl_min_protocol_version=TLSv1.3"),
        *("channel_binding=require", "passfile=/x", "service=chat", "user=bob&dbname=other&password=x"),
    ],
)
def test_an_option_that_is_known_is_passed_on(option: str) -> None:
    given = postgres_url.arguments(postgres_url.parse(f"{ADDRESS}?{option}"))

    for pair in option.split("&"):
        name, _, value = pair.partition("=")
        assert value.replace("%3D", "=") in given[name]
    assert "postgresql://" in Database.connect(f"{ADDRESS}?{option}").address


@pytest.mark.parametrize(
    ("option", "said"),
    [
        # What psycopg or SQLAlchemy would take for themselves.
        *((f"{name}=1", name) for name in ("prepare_threshold", "autocommit", "row_factory", "context", "conninfo")),
        *((f"{name}=1", name) for name in ("client_encoding", "replication", "plugin", "async_fallback", "timezone")),
        # What is misspelled, or has nothing after it.
        *(("ssl_mode=require", "is it sslmode"), ("sslMode=require", "is it sslmode"), ("sslmode", "sslmode")),
        *(("sslmode=", "sslmode"), ("=1", "another form"), ("connect_timeout", "connect_timeout")),
        # What is no value of that option.
        *((f"connect_timeout={value}", "from 1 to") for value in ("0", "-1", "ten", "1.5", "1e3", "\u0661", "9" * 12)),
        *(("sslmode=on", "one of disable"), ("keepalives=yes", "one of 0, 1"), ("port=0", "from 1 to 65535")),
        *(("port=99999", "65535"), ("port=5432,x", "65535"), ("target_session_attrs=primary,standby", "one of any")),
        *(("keepalives_count=0", "from 1"), ("application_name=", "application_name"), ("user=%00", "user")),
        # What was said twice: which of the two counts?
        *(("sslmode=require&sslmode=disable", "more than once"), ("user=a&user=b", "more than once")),
    ],
)
def test_an_option_that_is_not_is_refused_in_one_line(option: str, said: str) -> None:
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


def test_several_servers_in_either_form() -> None:
    for option in ("host=a:1&host=b:2", "host=a,b&port=1,2", "host=a&host=b&port=1&port=2"):
        given = postgres_url.arguments(postgres_url.parse(f"postgresql:///chat?{option}"))
        assert (given["host"], given["port"]) == ("a,b", "1,2")


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
