"""Reads pictures of pages with the program tesseract, each page once: its text is kept in the cache folder."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optimsyn.base.disk import cache_dir
from optimsyn.base.environment import OCR, OMP_THREAD_LIMIT, variables
from optimsyn.base.errors import DataError
from optimsyn.base.files import write_text
from optimsyn.base.identity import whole_digest
from optimsyn.data.files.page_pictures import DPI
from optimsyn.recipe.sections.data import Documents

INSTALL_DATA = "install data for the languages of your scans, e.g. `sudo apt install tesseract-ocr-deu`"
# To say its version and languages.
_ANSWER_SECONDS = 20
# Raise it when pages are drawn in another way, so that they are read again.
_DRAWING = 1
_NOT_LOADED = "Failed loading language"


@dataclass(frozen=True)
class Tesseract:
    """The installed program.

    Attributes:
        installed: The languages whose data is installed.
    """

    program: str
    version: str
    installed: tuple[str, ...]

    @classmethod
    def on_this_machine(cls) -> Tesseract:
        """Asks the program that PATH names.

        Raises:
            DataError: It is missing or does not work; with the command that installs it.
        """
        program = shutil.which("tesseract")
        if program is None:
            raise DataError(f"the program tesseract is not installed; {_install(())}")
        said = _run(program, ["--version"], _ANSWER_SECONDS)
        version = re.search(r"tesseract v?(\d[\w.-]*)", said)
        if version is None:
            raise DataError(f"{program} is not tesseract, or broken: it says {said[:80]!r}; {_install(())}")
        lines = _run(program, ["--list-langs"], _ANSWER_SECONDS).splitlines()
        installed = tuple(line.strip() for line in lines if re.fullmatch(r"\w+(?:/\w+)?", line.strip()))
        return cls(program, version.group(1), installed)

    def read(self, picture: Path, languages: str, seconds: float) -> str:
        """The text of a picture.

        Raises:
            DataError: The program fails, takes too long or cannot load a language.
        """
        said = _run(self.program, [str(picture), "stdout", "-l", languages], seconds)
        return said.replace("\f", "")


@dataclass(frozen=True)
class Ocr:
    """Reads the pages of a recipe's documents that are pictures."""

    tesseract: Tesseract
    languages: str
    seconds: float

    @classmethod
    def of(cls, config: Documents) -> Ocr | None:
        """What `documents.ocr` asks for; None without it.

        Raises:
            DataError: The program or the data of a language is not installed.
        """
        if config.ocr is None:
            return None
        wanted = config.ocr.split("+")
        try:
            tesseract = Tesseract.on_this_machine()
        except DataError as error:
            raise DataError(f"documents.ocr: {error}") from None
        missing = [name for name in wanted if name not in tesseract.installed]
        if missing:
            raise DataError(
                f"documents.ocr: tesseract {tesseract.version} has no data for {', '.join(missing)} (it has "
                f"{', '.join(tesseract.installed) or 'none'}); {_install(missing)}"
            )
        return cls(tesseract, config.ocr, config.limits.seconds)

    def read(self, path: Path, pages: Iterable[int], draw: Callable[[int, Path], object]) -> dict[int, str]:
        """The text of these pages of a file.

        Args:
            path: The file.
            pages: Numbers from 1.
            draw: Writes a page as a picture.

        Raises:
            DataError: A page cannot be drawn or read; names the page, not the file.
        """
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return {page: self._page(content, page, draw) for page in pages}

    def _page(self, content: str, page: int, draw: Callable[[int, Path], object]) -> str:
        facts = [content, page, self.languages, self.tesseract.version, DPI, _DRAWING]
        key = whole_digest(facts)
        kept = cache_dir() / "ocr" / key[:2] / f"{key}.txt"
        with suppress(OSError, UnicodeDecodeError):
            return kept.read_text("utf-8")
        with tempfile.TemporaryDirectory(prefix="optimsyn-") as folder:
            picture = Path(folder) / "page.png"
            try:
                draw(page, picture)
                text = self.tesseract.read(picture, self.languages, self.seconds)
            except DataError as error:
                raise DataError(f"page {page}: {error}") from None
        # Without a place for it, it is read again the next time.
        with suppress(OSError, DataError):
            kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_text(kept, text)
        return text


def _run(program: str, arguments: list[str], seconds: float) -> str:
    asked = arguments[0].startswith("--")
    environment = {name: value for name, value in variables().items() if name.upper() in OCR}
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            env=environment | {OMP_THREAD_LIMIT: "1"},
        )
    except subprocess.TimeoutExpired:
        if asked:
            raise DataError(f"{program} does not answer within {seconds:g} s; {_install(())} again") from None
        raise DataError(
            f"tesseract takes longer than documents.limits.seconds = {seconds:g}; raise that, or scan the page again "
            "with fewer pixels"
        ) from None
    except OSError as error:
        raise DataError(f"{program} cannot be started ({error.strerror}); {_install(())} again") from None
    said = done.stderr.decode(errors="replace")
    failed = re.findall(rf"{_NOT_LOADED} '([^']*)'", said)
    if failed:
        raise DataError(f"tesseract cannot load its data for {', '.join(failed)}; {_install(failed)}")
    if done.returncode != 0:
        words = "".join(c if c.isprintable() else " " for c in said.strip()[-200:]) or "it says nothing"
        raise DataError(
            f"tesseract fails with exit status {done.returncode} ({words}); scan the page again, or remove it"
        )
    # Version 3 answered questions on standard error.
    return done.stdout.decode(errors="replace") or (said if asked else "")


def _install(languages: Iterable[str]) -> str:
    """The command that installs the program, or the data of languages."""
    names = list(languages)
    system = platform.system()
    if system == "Darwin":
        return "run `brew install tesseract tesseract-lang`"
    if system == "Windows":
        data = f" and choose the data for {', '.join(names)}" if names else ""
        return f"run `winget install --id UB-Mannheim.TesseractOCR`{data}"
    if shutil.which("dnf"):
        packages = [f"tesseract-langpack-{name}" for name in names] or ["tesseract"]
        return f"run `sudo dnf install {' '.join(packages)}`"
    packages = [f"tesseract-ocr-{name.lower().replace('_', '-').replace('/', '-')}" for name in names]
    return f"run `sudo apt install {' '.join(packages or ['tesseract-ocr'])}` (or your system's package of it)"
