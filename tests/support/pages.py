"""What the README and the pages of docs/ tell people to do."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {page.stem: page for page in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """What a page shows in a language; commands have none."""
    return [block for found, block in _FENCE.findall(PAGES[page].read_text()) if found == language]


def commands(page: str) -> list[list[str]]:
    """The words of each command line on a page."""
    text = "\n".join(blocks(page, "")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words and re.match(r"[a-z]", words[0])]


def of_a_cluster(words: list[str]) -> bool:
    """Whether a command needs a cluster that runs already."""
    return "--address" in words


def of_a_job(words: list[str]) -> bool:
    """Whether a command runs one of our jobs on this machine."""
    return words[0] == "voxfleet" and not of_a_cluster(words)
