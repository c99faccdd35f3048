"""The text of the demo, and its claims, each with whether it held."""

import sys

from imcore.cli import output


class Claims:
    """Prints the story and its claims; counts claims, and those that did not hold.

    As JSON a claim is an object of `what`, `held` and `details` on stdout; all else goes to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.made = 0
        self.broken = 0
        self._as_json = as_json

    def hold(self, holds: bool, claim: str, *details: str) -> None:
        """Print a claim, and whether it holds."""
        self.made += 1
        self.broken += not holds
        if self._as_json:
            output.show([{"what": claim, "held": holds, "details": details}], (), as_json=True)
            output.flush()
        else:
            self.say(f"  {'ok    ' if holds else 'BROKEN'} {claim}", *map(_indented, details))

    def chapter(self, title: str, *lines: str) -> None:
        """Print what comes next."""
        self.say("", title, *map(_indented, lines))

    def say(self, *lines: str) -> None:
        """Print lines that are no claim."""
        if self._as_json:
            output.remark(*lines)
        else:
            output.say(*output.fitted(sys.stdout, *lines))
            output.flush()


def _indented(line: str) -> str:
    return f"         {line}"
