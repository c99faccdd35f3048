"""The whole story on a throw-away stack."""

import time

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.errors import ImError
from imcore.process import Stopped


@command("demo", example="im demo")
def demo(run: Invocation) -> None:
    """A group of 200, 40 of them online; 100 messages, acked in batches; one who leaves and one who comes; live
    sessions, one of them killed; receipts, a one-to-one chat, and a sender who was offline. The server, the database,
    the workers and the sessions are real, in a temporary directory; your own data is not touched. Every claim that is
    printed is checked; the exit code is 0 only if all of them hold. With --json each is an object.
    """
    from imcore.cli.demo import story  # noqa: PLC0415 (the help need not wait for the drivers)

    began = time.monotonic()
    claims = story.Claims(as_json=run.json)
    log: list[str] = []
    try:
        story.play(claims, log)
    except Stopped:
        output.end_records()
        raise ImError("the demo was stopped before its end") from None
    except ImError:
        claims.chapter("What the workers and the sessions said:", *log)
        raise
    claims.say("", f"All {claims.made} claims held, in {time.monotonic() - began:.1f} s.")
