"""Options that hold a password leave the command line."""

import pytest

from cli.passwords import without_passwords

REDIS = "redis://ann:s3cret@host"
SQL = "postgresql://ann:s3cret@host/chat"
PLAIN = "redis://host"


@pytest.mark.parametrize(
    ("arguments", "rest", "moved"),
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
def test_what_stays_and_what_goes_into_the_environment(
    arguments: list[str], rest: list[str], moved: dict[str, str]
) -> None:
    assert without_passwords(arguments) == (rest, moved)
