"""A bundle on disk: opening it, finding its files, checking them. Nothing outside it is read."""

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from .errors import BundleError, BundleFormatError, BundleIntegrityError
from .manifest import FileRef, Manifest, Stage, check_relative_path
from .self_contained import names_other_files

__all__ = ["Bundle", "FileProblem", "sha256_file"]

_MANIFEST = "bundle.json"
_MAX_MANIFEST_BYTES = 16 * 2**20
_BLOCK_BYTES = 2**20
_MAX_THREADS = 4

Check: TypeAlias = Literal["hashes", "sizes", "description"]
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class FileProblem:
    """What is wrong with a file of a bundle.

    ``unsafe`` means that it is not a plain file inside the bundle (a folder, a device, a link that
    leads outside), or a graph that reads weights from other files.
    """

    file: str
    problem: Literal["missing", "unsafe", "size", "sha256"]
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An opened bundle: the resolved path of its folder, and its checked description."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, *, check: Check = "hashes") -> "Bundle":
        """Open a bundle and check its files.

        Args:
            path: the folder.
            check: "hashes" reads all files and compares their sha256; "sizes" only looks whether
                each is there with its size, for a bundle that was checked a moment ago;
                "description" looks at bundle.json alone.

        Raises:
            BundleError: there is no bundle at ``path``.
            BundleFormatError: its bundle.json is malformed, unsafe or of another format version.
            BundleIntegrityError: a file is missing or is not the one that was written.
        """
        root = _folder(path)
        text = _read_manifest(root)
        try:
            bundle = cls(root=root, manifest=Manifest.from_json(text))
        except BundleFormatError as error:
            raise BundleFormatError(f"The bundle {path} cannot be used: {error}") from error
        problems = bundle._problems(check)
        if problems:
            shown = "\n".join(
                f"  {entry.file}: {entry.detail}" for entry in problems[:_PROBLEMS_SHOWN]
            )
            more = len(problems) - _PROBLEMS_SHOWN
            raise BundleIntegrityError(
                f"The bundle {path} is not as it was written:\n{shown}"
                + (f"\n  and {more} more" if more > 0 else "")
                + "\nCopy or export it again."
            )
        return bundle

    def file(self, ref_path: str) -> Path:
        """Give the resolved path of a file of the bundle.

        Args:
            ref_path: POSIX path relative to the root.

        Raises:
            BundleFormatError: the path is unsafe, leads outside, or is not a plain file.
            BundleIntegrityError: there is no such file.
        """
        check_relative_path(ref_path)
        return _inside(self.root, ref_path)

    def text(self, ref_path: str, *, most: int) -> str:
        """Read a file of the bundle as UTF-8 text.

        Args:
            ref_path: as for :meth:`file`.
            most: bytes; a larger file is refused unread.

        Raises:
            BundleFormatError: it is unsafe, too large or not UTF-8.
            BundleIntegrityError: it is missing or cannot be read.
        """
        path = self.file(ref_path)
        return _read_text(path, ref_path, most)

    def folders(self, ref_path: str) -> list[str]:
        """Names of the folders in a folder of the bundle, sorted; none if there is no such folder.

        Raises:
            BundleFormatError: the path is unsafe or leads outside.
        """
        check_relative_path(ref_path)
        path = self.root / ref_path
        try:
            if not path.resolve(strict=True).is_relative_to(self.root):
                raise BundleFormatError(
                    f"{ref_path} is a link that leads out of the bundle {self.root}. Remove it."
                )
            return sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, RuntimeError) as error:
            raise BundleFormatError(
                f"{ref_path} of the bundle {self.root} is unusable: {error}."
            ) from error

    def check_files(self, progress: Callable[[int, int], None] | None = None) -> list[FileProblem]:
        """Compare every file with its size and sha256; an empty list means that all is well.

        Args:
            progress: called with the bytes done and the bytes in total, at least once a mebibyte.
        """
        references = list(self.manifest.files())
        total = sum(reference.bytes for reference in references)
        done = 0
        counting = threading.Lock()

        def advance(count: int) -> None:
            nonlocal done
            with counting:
                done += count
                if progress is not None:
                    progress(done, total)

        def check(reference: FileRef) -> FileProblem | None:
            problem = self._size_problem(reference)
            if problem is None:
                return self._content_problem(reference, advance)
            advance(reference.bytes)
            return problem

        # Hashing lets other threads run.
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            problems = list(pool.map(check, references))
        return [problem for problem in problems if problem is not None]

    def _problems(self, check: Check) -> list[FileProblem]:
        if check == "description":
            return []
        if check == "hashes":
            return self.check_files()
        problems = (self._size_problem(reference) for reference in self.manifest.files())
        return [problem for problem in problems if problem is not None]

    def _size_problem(self, reference: FileRef) -> FileProblem | None:
        try:
            size = self.file(reference.file).stat().st_size
        except BundleIntegrityError:
            return FileProblem(file=reference.file, problem="missing", detail="is missing")
        except BundleFormatError as error:
            return FileProblem(file=reference.file, problem="unsafe", detail=str(error))
        if size == reference.bytes:
            return None
        detail = f"has {size:,} bytes, expected {reference.bytes:,}"
        return FileProblem(file=reference.file, problem="size", detail=detail)

    def _content_problem(
        self, reference: FileRef, advance: Callable[[int], None]
    ) -> FileProblem | None:
        path = self.file(reference.file)
        found = sha256_file(path, advance)
        if found != reference.sha256:
            detail = f"has sha256 {found}, expected {reference.sha256}"
            return FileProblem(file=reference.file, problem="sha256", detail=detail)
        if isinstance(reference, Stage) and _names_other_files(path):
            detail = "reads weights from other files; a graph of a bundle holds its own"
            return FileProblem(file=reference.file, problem="unsafe", detail=detail)
        return None


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hash a file, a mebibyte at a time.

    Args:
        path: the file.
        advance: called with the number of bytes read since the last call.

    Returns:
        The sha256 as 64 hexadecimal digits.

    Raises:
        BundleIntegrityError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                if advance is not None:
                    advance(len(block))
    except OSError as error:
        raise BundleIntegrityError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()


def _names_other_files(path: Path) -> bool:
    try:
        return names_other_files(path)
    except OSError as error:
        raise BundleIntegrityError(f"Cannot read {path}: {error.strerror}.") from error


def _folder(path: Path) -> Path:
    try:
        root = Path(path).resolve(strict=True)
    except FileNotFoundError:
        raise BundleError(f"There is no bundle at {path}: no such folder.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(f"Cannot open the bundle {path}: {error}.") from error
    if not root.is_dir():
        raise BundleError(f"{path} is a file; a bundle is a folder that holds {_MANIFEST}.")
    return root


def _read_manifest(root: Path) -> str:
    try:
        path = _inside(root, _MANIFEST)
    except BundleIntegrityError:
        raise BundleError(
            f"{root} is not a bundle: it holds no {_MANIFEST}. Make one with escnet-export."
        ) from None
    return _read_text(path, str(path), _MAX_MANIFEST_BYTES)


def _read_text(path: Path, name: str, most: int) -> str:
    try:
        size = path.stat().st_size
        if size > most:
            raise BundleFormatError(
                f"{name} has {size:,} bytes; at most {most // 2**20} MiB are read."
            )
        with path.open("rb") as file:
            data = file.read(size)
    except OSError as error:
        raise BundleIntegrityError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleFormatError(f"{name} is not UTF-8 text: {error}.") from error


def _inside(root: Path, relative: str) -> Path:
    """Resolve links; refuse what ends outside ``root`` or is no plain file (a pipe would block)."""
    try:
        path = (root / relative).resolve(strict=True)
        inside = path.is_relative_to(root)
        plain = inside and stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleIntegrityError(f"{relative} is missing from the bundle {root}.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleFormatError(f"{relative} of the bundle {root} is unusable: {error}.") from error
    if not inside:
        raise BundleFormatError(
            f"{relative} is a link that leads out of the bundle {root}. Do not use this bundle."
        )
    if not plain:
        raise BundleFormatError(
            f"{relative} of the bundle {root} is not a plain file. Do not use this bundle."
        )
    return path
