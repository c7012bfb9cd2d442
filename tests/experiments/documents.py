"""Commands and code blocks in README.md, CONTRIBUTING.md and docs/, as a reader would copy them."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
IMAGES = ROOT / "docs" / "images.md"
ADDITIONS = (README, CONTRIBUTING, IMAGES)
"""Pages with whole files to add."""
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS_BEFORE_COMMANDS = ROOT / "docs" / "conditions.md", ROOT / "docs" / "latent.md"
"""Pages with commands on what their blocks write."""
PLACEHOLDERS = ("DIR", "FILE", "FINGERPRINT")
"""Capital words that the reader fills in."""

_PROGRAMS = {"python": "run.py", "srun": "run.py", "sbatch": "docs/slurm/array.sbatch"}
"""What takes the settings of a run, by the first word of a command."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:OMP_NUM_THREADS=\d+ )?(?:python run\.py|pytest|pip install)[^`\n]*)`")
_FILE = re.compile(r"# ([\w./]+\.(?:py|yaml))$")
_HEADING = re.compile(r"^#+ (.+)$|^\*\*(\w+)\.\*\*", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of ``language``, with the heading (or the bold word that begins a paragraph) that it stands under."""

    page: Path
    heading: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The path in the comments at the top, if the block is the content of a file. Hydra's header comes before any comment."""
        top = itertools.takewhile(lambda line: line.startswith("#"), self.text.splitlines())
        return next((match[1] for match in map(_FILE.match, top) if match), None)


def blocks(page: Path, language: str = "") -> list[Block]:
    """The fenced blocks of a page, of one language if given."""
    text = page.read_text()
    headings = [(match.start(), match[1] or match[2]) for match in _HEADING.finditer(_without_code(text))]
    found = []
    for match in _FENCE.finditer(text):
        heading = [name for start, name in headings if start < match.start()][-1]
        found.append(Block(page, heading, match[1], match[2]))
    return [block for block in found if not language or block.language == language]


def shell_lines(block: Block) -> list[str]:
    """The commands of a shell block: lines joined at a final backslash, split at ``&&``, without comments."""
    joined = re.sub(r"\\\n *", "", block.text)
    lines = [shlex.join(shlex.split(part, comments=True)) for line in joined.splitlines() for part in _parts(line)]
    return [line for line in lines if line]


def commands(page: Path) -> list[str]:
    """All commands of a page, in shell blocks and quoted within a sentence."""
    text = page.read_text()
    inline = [shlex.join(shlex.split(match)) for match in _INLINE.findall(_FENCE.sub("", text))]
    return [*(line for block in blocks(page, "bash") for line in shell_lines(block)), *inline]


def run_commands(page: Path) -> list[str]:
    """The arguments of each ``python run.py`` of a page, also those that Slurm starts."""
    found = [shlex.split(command) for command in commands(page)]
    found = [words[1:] if words[0].startswith("OMP_NUM_THREADS=") else words for words in found]
    programs = [(words, _PROGRAMS.get(words[0])) for words in found]
    return [shlex.join(words[words.index(program) + 1 :]) for words, program in programs if program in words]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The targets of a page's relative links and figures."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text())) if "://" not in target]


def _parts(line: str) -> list[str]:
    code = line if line.lstrip()[:1] != "#" else ""
    return [part.strip() for part in code.split("&&")]


def _without_code(text: str) -> str:
    """``text`` with blanks in place of its fenced blocks, so that positions stay."""
    return _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
