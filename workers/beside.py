"""One thing beside another: what a worker does while it waits for a server."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread

from imcore.errors import ImError
from imcore.process import signals_blocked


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do the work in a thread, meanwhile what is in the `with`; then wait for the work, and raise its error.

    An ImError of the `with` is raised once the work has ended, in the place of an error of its own. Anything else, as
    Stopped, ends the wait at once: the work goes on, but a process that ends does not wait for it.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # whoever waits raises it
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    with signals_blocked():
        Thread(target=run, name="beside", daemon=True).start()
    try:
        yield
    except ImError:
        outcome.exception()
        raise
    outcome.result()
