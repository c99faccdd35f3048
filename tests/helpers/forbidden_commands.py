"""Commands of Redis that the roles of `im acl` must not run."""

from imcore.admin.acl import GATEWAY, READER, WORKER

COMMON = [
    *("FLUSHALL", "FLUSHDB", "CONFIG GET dir", "CONFIG SET maxmemory 1", "KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE"),
    *("SHUTDOWN NOSAVE", "MONITOR", "CLIENT LIST", "CLIENT KILL TYPE normal", "REPLICAOF no one"),
    *(
        "ACL LIST",
        "ACL SETUSER me on",
        "FUNCTION FLUSH",
        "FUNCTION DELETE imcore",
        "SWAPDB 0 1",
        "SAVE",
    ),
    *("GET other", "SET other 1", "DEL other", "HGET other a", "XADD other * a b", "COPY {team}stream other"),
    *("RENAME {team}stream other", "MIGRATE host 1 {team}stream 0 1", "DUMP {team}stream", "OBJECT FREQ {team}stream"),
    *("SUBSCRIBE other", "PSUBSCRIBE im:*", "SPUBLISH other x", "SSUBSCRIBE other", "PUBLISH im:x y", "MODULE LIST"),
    *("FCALL im_ack 1 other", "FCALL_RO im_range 2 other other - + 1", "SORT {team}stream", "LATENCY RESET"),
]
"""Commands that no role may run. `{team}` is the beginning of a group's keys."""

NOT_THE_CHAT = [
    *(
        "DEL {team}stream",
        "UNLINK {team}stream",
        "RENAME {team}stream {team}own_unacked",
        "DEL {team}acked",
        "DEL {odd}stream",
    ),
    *("XTRIM {team}stream MAXLEN 0", "XDEL {team}stream 1-1", "DEL im:config", "HSETNX {team}meta a b"),
    *("HDEL {team}meta seq", "EXPIRE {team}stream 1", "SET {team}stream 1", "XACK {journal} persist 1-1"),
    *("XSETID {team}stream 9-9", "PEXPIRE {team}stream 1", "PEXPIRE {team}meta 1", "PEXPIRE {journal} 1"),
    *(
        "PEXPIREAT {team}acked 1",
        "RENAME {team}meta {team}idempotency_older",
        "RENAME {team}idempotency_newer {team}meta",
    ),
    *("RENAME {team}idempotency_older {team}idempotency_newer", "RENAME {team}shadow {team}stream"),
    *("HSET im:config rebuilding 1", "HSET im:config partitions 99", "HSETNX im:config rebuilding 1"),
    *("HSET {p}watermarks persist-1 9007199254740000", "HSET {p}group_locks team me", "HSET {p}failures a 9"),
    *(
        "HSET {p}coalescing acks 9",
        "SET {p}version 9",
        "INCR {p}version",
        "SADD {p}rebuilt team",
        "SREM {p}groups team",
    ),
    *("XGROUP DESTROY {journal} persist", "XGROUP CREATE {journal} evil 0", "XGROUP SETID {journal} persist $"),
    *(
        "XADD {p}dead * a b",
        "XDEL {p}dead 1-1",
        "ZREM {team}left ann",
        "ZREM {team}joined:x ann",
        "ZREM {team}recalled 1",
    ),
    *("SET im:lease:persist:1 me", "DEL im:lease:persist:1", "LPOP {journal}", "COPY {team}meta {team}own_unacked"),
    *(
        "FCALL im_repair_lock_partition 1 {p}watermarks me 1000000000000",
        "FCALL im_repair_set_watermarks 1 {p}watermarks persist-1 9",
    ),
    *("HDEL {p}watermarks persist-1", "FCALL im_repair_journal 1 {journal} 99999999999999-0"),
    *("FCALL im_repair_raise_versions 1 {p}version", "FCALL im_repair_lock 1 {p}group_locks team me 1000"),
    *("FCALL im_trim 3 {team}meta {team}stream {p}group_locks team 9", "FCALL im_trim_journal 2 {journal} {p}failures"),
    "FCALL im_done 3 {journal} {p}failures {p}coalescing persist 1 1-1",
    *("FCALL im_claim 1 {journal} persist evil persist-1 10", "FCALL im_create_consumer_group 1 {journal} evil"),
    "FCALL im_fail 3 {journal} {p}dead {p}failures persist 1-1 no 1",
    *("FCALL im_requeue 2 {p}dead {journal} 1-1", "FCALL im_lease 1 im:lease:persist:1 me 1000"),
    *("FCALL im_init 1 im:config 99 other", "FCALL im_publish_receipts 2 {p}version im:{0}:dirty:ann x team"),
    *("FUNCTION LOAD REPLACE x", "GET rq:x", "SADD rq:queues x", "LPUSH rq:queue:imcore x", "EVAL return(1) 0"),
    *("XREADGROUP GROUP persist me STREAMS {journal} >", "SSUBSCRIBE rq:x"),
]

NOT_FOR_WORKERS = [
    *("SSUBSCRIBE im:{0}:push:team", "SUBSCRIBE im:x", "RENAME im:config rq:x", "COPY rq:x im:config"),
    *(
        "SET im:config x",
        "SET {team}stream x",
        "DEL {team}stream",
        "DEL {team}meta",
        "DEL {journal}",
        "DEL im:config",
    ),
    *(
        "RENAME {team}stream {team}shadow",
        "RENAME {team}stream {team}stream",
        "RENAME {team}idempotency_newer {team}shadow",
    ),
    *("RENAME {team}shadow {team}meta", "RENAMENX {team}stream {team}shadow", "COPY {team}stream {team}shadow"),
    *(
        "RENAME {team}stream {team}own_unacked",
        "RENAME {team}own_unacked {team}stream",
        "PEXPIRE {team}stream 1",
        "EXPIRE {journal} 1",
    ),
    *(
        "PEXPIREAT {team}acked 1",
        "GETDEL {team}meta",
        "GETEX {p}version PX 1",
        "SETEX im:config 1 x",
        "RESTORE {p}dead 0 x",
    ),
]

FORBIDDEN = {
    WORKER: [*COMMON, *NOT_FOR_WORKERS],
    GATEWAY: [*COMMON, *NOT_THE_CHAT, "BGREWRITEAOF", "GET im:lease:persist:1"],
    READER: [
        *(
            *COMMON,
            *NOT_THE_CHAT,
            "BGREWRITEAOF",
            "SSUBSCRIBE im:{0}:push:team",
            "XADD {team}stream * a b",
            "ZADD {team}acked 1 bob",
        ),
        *("FCALL im_ack 1 {team}meta", "HSET {team}meta seq 1", "SPUBLISH im:{0}:push:team x", "DEL {own}"),
    ],
}
