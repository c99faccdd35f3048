"""What the documentation says: its code blocks, tables, links and the code within its lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.house.sources import ROOT

DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    "cli/README.md",
    "cli/bench/GROWTH.md",
    "cli/bench/README.md",
    "imcore/README.md",
    "imcore/gateway/README.md",
    "imcore/repair/README.md",
    "imcore/web/README.md",
    "tests/README.md",
)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block, and the language that its fence names."""

    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(frozen=True)
class Document:
    """A file of documentation. `name` is its path in the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its code blocks."""
        return _BLOCK.sub("", self.text)

    @property
    def words(self) -> str:
        """The prose with one space between two words, however its lines are broken."""
        return " ".join(self.prose.split())

    @property
    def blocks(self) -> list[Block]:
        return [Block(language, text) for language, text in _BLOCK.findall(self.text)]

    def blocks_in(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]

    @property
    def code(self) -> list[str]:
        """The texts in backticks within the prose."""
        return _CODE.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """The targets of links within the repository."""
        return [target for target in _LINK.findall(self.prose) if "://" not in target]

    def table(self, heading: str) -> Iterator[list[str]]:
        """Yield the cells of each row of the table whose first column has this heading."""
        lines = iter(self.text.splitlines())
        for line in lines:
            if line.startswith(f"| {heading} |"):
                break
        else:
            raise AssertionError(f"{self.name} has no table whose first column is {heading!r}")
        next(lines)
        for line in lines:
            if not line.startswith("|"):
                return
            yield [cell.strip() for cell in line.strip("|").split("|")]


def code_in(cell: str) -> list[str]:
    """Return the texts in backticks in a cell of a table."""
    return _CODE.findall(cell)


def documents() -> list[Document]:
    return [Document(name) for name in DOCUMENTS]


README = Document("README.md")
