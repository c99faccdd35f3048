"""What the server answers, in our words: passing trouble is of the branch TryAgain."""

import pytest
import redis
from hiredis import Reader
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError

from imcore.errors import ConfigurationError, ImError, RedisFull, RedisRefuses, RedisUnavailable, TryAgain
from imcore.streams.redis_errors import translated

WHERE = "redis://host:6379"

REFUSALS = {
    "LOADING Redis is loading the dataset in memory": "still loading",
    "READONLY You can't write against a read only replica.": "new primary",
    "NOREPLICAS Not enough good replicas to write.": "min-replicas-to-write",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": "its disk",
    "BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.": "FUNCTION KILL",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "lost its primary",
    "CLUSTERDOWN Hash slot not served": "no node serves",
    "TRYAGAIN Multiple keys request during rehashing of slot": "another node",
    "REDIRECT 10.0.0.1:6379": "new primary",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "ended a wait",
    "UNBLOCKED client unblocked via CLIENT UNBLOCK": "ended a wait",
    "NOMASTERLINK Can't SYNC while failing over": "failing over",
    "INPROG Failover already in progress": "failing over",
    "EXECABORT Transaction discarded because of: LOADING Redis is loading the dataset in memory": "still loading",
    "ERR max number of clients reached": "maxclients",
    "ERR max number of clients + cluster connections reached": "maxclients",
    "ERR Function not found": "lost the functions",
    "ERR Error running script: Script killed by user with FUNCTION KILL.": "FUNCTION KILL",
}


def answered(line: str, where: str = WHERE) -> ImError:
    """Return what an error of the server becomes, as the driver hands it over."""
    reader = Reader(replyError=BaseParser.parse_error)
    reader.feed(f"-{line}\r\n".encode())
    return translated(reader.gets(), where)


@pytest.mark.parametrize(("line", "hint"), REFUSALS.items(), ids=[line.partition(" ")[0] for line in REFUSALS])
def test_a_refusal_that_passes_says_what_is_wrong_and_may_be_tried_again(line: str, hint: str) -> None:
    error = answered(line)

    assert isinstance(error, RedisRefuses)
    assert isinstance(error, TryAgain)
    assert str(error).startswith(f"{WHERE} ")
    assert hint in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(("line", "hint"), REFUSALS.items(), ids=[line.partition(" ")[0] for line in REFUSALS])
def test_so_does_one_of_a_command_in_a_pipeline_of_the_driver(line: str, hint: str) -> None:
    reader = Reader(replyError=BaseParser.parse_error)
    reader.feed(f"-{line}\r\n".encode())
    refused = reader.gets()
    with redis.Redis() as client:
        client.pipeline().annotate_exception(refused, 1, ("DEL", "rq:worker:1"))
    assert str(refused).startswith("Command # 1 (DEL rq:worker:1) of pipeline caused error: ")

    assert str(translated(refused, WHERE)) == str(answered(line))


def test_full_memory_and_no_answer_are_told_apart_from_refusals() -> None:
    assert isinstance(answered("OOM command not allowed when used memory > 'maxmemory'."), RedisFull)
    assert isinstance(translated(RedisConnectionError("Connection closed by server."), WHERE), RedisUnavailable)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("ERR DB index is out of range", "no database of that number"),
        ("ERR SELECT is not allowed in cluster mode", "redis+cluster:// without one"),
        ("ERR This instance has cluster support disabled", "use redis:// or rediss://"),
        ("ERR Protocol error: invalid bulk length", "proto-max-bulk-len"),
        ("ERR Library 'imcore' already exists", "of somebody else"),
        ("ERR Function im_send already exists", "of somebody else"),
        ("NOPROTO unsupported protocol version", "?protocol=2"),
        ("DENIED Redis is running in protected mode because ...", "protected-mode no"),
        ("EXECABORT Transaction discarded because of: NOPERM User ann has no permissions", "im acl"),
    ],
)
def test_an_error_that_waiting_does_not_mend_says_what_to_do(line: str, hint: str) -> None:
    error = answered(line)

    assert isinstance(error, ConfigurationError)
    assert str(error).startswith(f"{WHERE} ")
    assert hint in str(error)


def test_full_memory_is_recognized_in_a_transaction_too() -> None:
    line = "EXECABORT Transaction discarded because of: OOM command not allowed when used memory > 'maxmemory'."
    assert isinstance(answered(line), RedisFull)


def test_an_error_that_does_not_pass_is_no_refusal() -> None:
    for line in ("BUSYGROUP Consumer Group name already exists", "ERR Function 'im_send' failed", "WRONGTYPE of a key"):
        assert not isinstance(answered(line), TryAgain)


@pytest.mark.parametrize("line", ["MOVED 6539 127.0.0.1:7001", "ASK 6539 127.0.0.1:7001"])
def test_a_node_of_a_cluster_that_was_taken_for_a_single_server_is_called_one(line: str) -> None:
    error = answered(line)

    assert isinstance(error, ConfigurationError)
    assert str(error) == f"{WHERE} is a node of a cluster: use redis+cluster:// or rediss+cluster://"


@pytest.mark.parametrize("line", ["MOVED 6539 127.0.0.1:7001", "ASK 6539 127.0.0.1:7001"])
def test_a_cluster_whose_nodes_send_a_command_to_and_fro_may_be_tried_again(line: str) -> None:
    assert isinstance(answered(line, "redis+cluster://host:6379"), RedisRefuses)
