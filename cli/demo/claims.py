"""What the demo says, and whether it was so."""

from cli import output


class Claims:
    """Counts the claims that were made, and those that did not hold."""

    def __init__(self) -> None:
        self.made = 0
        self.broken = 0

    def hold(self, holds: bool, claim: str, *details: str) -> None:
        """Print a claim, and whether it holds."""
        self.made += 1
        self.broken += not holds
        output.say(f"  {'ok    ' if holds else 'BROKEN'} {claim}", *map(_indented, details))
        output.flush()


def chapter(title: str, *lines: str) -> None:
    """Print what comes next."""
    output.say("", title, *map(_indented, lines))
    output.flush()


def _indented(line: str) -> str:
    return f"         {line}"
