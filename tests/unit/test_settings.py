"""Settings: defaults, the environment, options above it, and the errors for impossible values."""

import dataclasses
import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from imcore.errors import ConfigurationError
from imcore.settings import Settings, socket_path, socket_url

FLAGS = [f.name for f in dataclasses.fields(Settings) if f.type in {bool, "bool"}]
DAY_MS = 24 * 60 * 60 * 1000
NUMBERS = [f.name for f in dataclasses.fields(Settings) if f.type in {int, int | None, "int", "int | None"}]


class TestSources:
    def test_without_anything_set_all_is_in_the_data_directory_of_the_user(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/ann")
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        settings = Settings.from_env({})
        assert settings.data_dir.is_relative_to("/home/ann")
        assert settings.data_dir.name == "imcore"
        assert (
            settings.redis_url
            == settings.jobs_redis_url
            == f"unix://{settings.data_dir}/redis.sock".replace(" ", "%20")
        )
        assert settings.database_url == f"sqlite:///{settings.data_dir}/imcore.db"
        assert settings.embedded

    def test_the_process_environment_is_the_default_source(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IM_BATCH_SIZE", "7")
        assert Settings.from_env().batch_size == 7

    def test_every_setting_is_read_from_its_variable(self) -> None:
        texts = {
            "redis_url": "redis://r",
            "database_url": "sqlite:///d",
            "jobs_redis_url": "redis://j",
            "data_dir": "/d",
            "metrics_host": "0.0.0.0",
            "log_format": "json",
            "log_level": "warning",
            "durable": "fsynced",
        }
        environ = {f"IM_{name.upper()}": text for name, text in texts.items()}
        environ |= {f"IM_{name.upper()}": str(6000 + i) for i, name in enumerate(NUMBERS)}
        environ |= {f"IM_{name.upper()}": "1" for name in FLAGS}
        settings = Settings.from_env(environ)
        assert all(getattr(settings, name) is True for name in FLAGS)
        assert [getattr(settings, name) for name in NUMBERS] == list(range(6000, 6000 + len(NUMBERS)))
        assert {name: str(getattr(settings, name)) for name in texts} == texts
        assert len(texts) + len(NUMBERS) + len(FLAGS) == len(dataclasses.fields(Settings)), (
            "a setting of a kind this test does not know"
        )

    def test_an_override_wins_unless_it_is_none(self) -> None:
        environ = {"IM_REDIS_URL": "redis://a", "IM_PARTITIONS": "3", "IM_BATCH_SIZE": "9"}
        settings = Settings.from_env(environ, redis_url="redis://b", partitions="4", batch_size=None)
        assert (settings.redis_url, settings.partitions, settings.batch_size) == ("redis://b", 4, 9)

    def test_an_empty_text_means_the_default(self) -> None:
        settings = Settings.from_env(
            {"IM_BATCH_SIZE": "", "IM_REDIS_URL": "redis://a", "IM_DATA_DIR": "/d"}, redis_url=""
        )
        assert settings.batch_size == 500
        assert settings.embedded

    def test_jobs_use_the_same_redis_by_default(self) -> None:
        assert Settings.from_env({"IM_REDIS_URL": "redis://a"}).jobs_redis_url == "redis://a"
        assert Settings.from_env({"IM_JOBS_REDIS_URL": "redis://b"}).redis_url.startswith("unix://")

    def test_a_name_that_is_no_setting_is_a_fault_of_the_program(self) -> None:
        with pytest.raises(TypeError):
            Settings.from_env({}, colour="1")

    def test_passwords_are_not_shown(self) -> None:
        url = "redis://user:secret@host"
        settings = Settings.from_env({"IM_REDIS_URL": url, "IM_DATABASE_URL": "postgresql://user:secret@host/db"})
        assert "secret" not in repr(settings)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_0_or_1(name: str) -> None:
    assert [getattr(Settings.from_env({}, **{name: text}), name) for text in ("0", "1", "")] == [False, True, False]
    for text in ("yes", "2", "-1", "true", " 1"):
        with pytest.raises(ConfigurationError, match=f"^IM_{name.upper()} must be 0 or 1; it is "):
            Settings.from_env({}, **{name: text})


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("log_format", ("text", "json"), "text or json"),
        ("log_level", ("debug", "info", "warning", "error"), "debug, info, warning or error"),
    ],
)
def test_a_choice_is_one_of_its_words(name: str, choices: tuple[str, ...], said: str) -> None:
    assert [getattr(Settings.from_env({}, **{name: text}), name) for text in choices] == list(choices)
    for text in ("xml", "JSON", " json", "critical"):
        with pytest.raises(ConfigurationError, match=f"^IM_{name.upper()} must be {said}; it is '{text}'$"):
            Settings.from_env({}, **{name: text})


def test_without_settings_logs_are_text_and_no_metrics_are_served() -> None:
    settings = Settings.from_env({})
    assert (settings.log_format, settings.log_level) == ("text", "info")
    assert (settings.metrics_port, settings.metrics_host) == (None, "127.0.0.1")


class TestNumbers:
    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("text", ["x", "-1", "1.5", "1e3", " 1", "1 ", "+1", "1_000", "٣", "²", "9" * 5000])
    def test_only_whole_numbers_are_taken(self, name: str, text: str) -> None:
        with pytest.raises(ConfigurationError, match=f"^IM_{name.upper()} must be a whole number from "):
            Settings.from_env({f"IM_{name.upper()}": text})

    @pytest.mark.parametrize("name", NUMBERS)
    def test_zero_is_accepted_only_where_it_has_a_meaning(self, name: str) -> None:
        if name in {
            *("receipt_window_ms", "retry_ms", "keep_messages", "keep_ms", "keep_read_times_ms", "trim_every_ms")
        }:
            assert getattr(Settings.from_env({}, **{name: "0"}), name) == 0
        else:
            with pytest.raises(ConfigurationError, match=f"IM_{name.upper()} .* from 1 to .* it is '0'"):
                Settings.from_env({}, **{name: "0"})

    @pytest.mark.parametrize("online_ms", ["20000", "19999", "1"])
    def test_a_session_must_not_end_between_two_heartbeats(self, online_ms: str) -> None:
        assert Settings.from_env({}, online_ms="20001").online_ms == 20_001
        with pytest.raises(ConfigurationError, match=r"^IM_HEARTBEAT_MS \(20000\) must be less than IM_ONLINE_MS"):
            Settings.from_env({}, online_ms=online_ms)

    @pytest.mark.parametrize(
        ("name", "highest"),
        [
            *(("partitions", 16_384), ("max_content_bytes", 2**28), ("batch_size", 10**12), ("metrics_port", 65_535)),
            *(("keep_ms", 100_000 * DAY_MS), ("keep_read_times_ms", 100_000 * DAY_MS), ("keep_messages", 10**12)),
        ],
    )
    def test_the_highest_is_taken_and_one_more_is_not(self, name: str, highest: int) -> None:
        assert getattr(Settings.from_env({}, **{name: str(highest)}), name) == highest
        with pytest.raises(ConfigurationError, match=f"from . to {highest}; it is '{highest + 1}'"):
            Settings.from_env({}, **{name: str(highest + 1)})


class TestDataDirectory:
    @pytest.mark.parametrize("spelling", ["{0}/data", "{0}/./data", "{0}/other/../data", "{0}/link", "{0}/data/"])
    def test_every_spelling_leads_to_the_same_place(self, tmp_path: Path, spelling: str) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "data")
        assert Settings.from_env({"IM_DATA_DIR": spelling.format(tmp_path)}).data_dir == tmp_path / "data"

    def test_a_data_directory_may_be_relative_or_begin_at_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert Settings.from_env({"IM_DATA_DIR": "x"}).data_dir == tmp_path / "x"
        assert Settings.from_env({"IM_DATA_DIR": "~/x"}).data_dir == tmp_path / "x"

    def test_reading_settings_makes_nothing(self, tmp_path: Path) -> None:
        assert not Settings.from_env({"IM_DATA_DIR": str(tmp_path / "x")}).data_dir.exists()

    @pytest.mark.parametrize("path", ["~no-such-user-here/x", "a\0b", "/tmp/\udcff"])
    def test_a_text_that_cannot_be_a_path_is_refused(self, path: str) -> None:
        with pytest.raises(ConfigurationError, match="is not a usable path") as refusal:
            Settings.from_env({"IM_DATA_DIR": path})
        assert str(refusal.value).isprintable()

    @pytest.mark.parametrize("name", ["what?", "50%41"])
    def test_a_path_that_a_database_url_reads_otherwise_is_refused_for_the_default_database(self, name: str) -> None:
        environ = {"IM_DATA_DIR": f"/data/{name}"}
        with pytest.raises(ConfigurationError, match="use another data directory"):
            Settings.from_env(environ)
        assert Settings.from_env(environ, database_url="postgresql://host/db").embedded


class TestSocket:
    def test_the_socket_is_in_the_data_directory(self) -> None:
        assert socket_path(Path("/data/im")) == Path("/data/im/redis.sock")

    @pytest.mark.parametrize("letter", ["x", "é", "群"])
    def test_a_long_data_directory_gets_a_short_folder_of_its_own(
        self, letter: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", "/long" * 30)  # neither used nor mixed up by a client with another one
        long, other = Path("/data", letter * 120), Path("/data", letter * 121)
        assert len(os.fsencode(socket_path(long))) <= 100
        assert socket_path(long) == socket_path(long)
        assert socket_path(long) != socket_path(other)
        assert str(os.getuid()) in socket_path(long).parent.name
        assert Settings.from_env({"IM_DATA_DIR": str(long)}).embedded

    def test_the_longest_path_that_fits_is_used(self) -> None:
        fits = Path("/" + "x" * (100 - len("//redis.sock")))
        assert socket_path(fits).parent == fits
        assert len(str(socket_path(fits))) == 100
        assert socket_path(Path(f"{fits}x")).parent != Path(f"{fits}x")

    @pytest.mark.parametrize("path", ["/data/redis.sock", "/a b/#?%41/群.sock"])
    def test_its_url_names_exactly_that_path(self, path: str) -> None:
        url = socket_url(Path(path))
        assert url.isascii()
        assert unquote(url.removeprefix("unix://")) == path

    def test_another_redis_is_not_embedded(self) -> None:
        assert not Settings.from_env({"IM_REDIS_URL": "unix:///run/redis.sock"}).embedded
