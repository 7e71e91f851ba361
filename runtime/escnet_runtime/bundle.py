"""A bundle on disk: opening it, finding its files, checking them. Nothing outside it is read."""

import hashlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import BundleError, BundleFormatError, BundleIntegrityError
from .manifest import FileRef, Manifest, check_relative_path

__all__ = ["Bundle", "FileProblem", "sha256_file"]

_MANIFEST = "bundle.json"
_MAX_MANIFEST_BYTES = 16 * 2**20
_BLOCK_BYTES = 2**20
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class FileProblem:
    """What is wrong with a file of a bundle.

    ``unsafe`` means that it is not a plain file inside the bundle: a folder, a device, or a link
    that leads outside.
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
    def open(cls, path: Path, *, check: Literal["sizes", "hashes"] = "sizes") -> "Bundle":
        """Open a bundle and check its files.

        Args:
            path: the folder.
            check: "sizes" looks whether each file is there with its size; "hashes" reads them all
                and compares their sha256 as well.

        Raises:
            BundleError: there is no bundle at ``path``.
            BundleFormatError: its bundle.json is malformed, unsafe or of another format version.
            BundleIntegrityError: a file is missing or is not the one that was written.
        """
        root = _folder(path)
        bundle = cls(root=root, manifest=Manifest.from_json(_read_manifest(root)))
        problems = bundle.check_files() if check == "hashes" else bundle._check_sizes()
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

    def check_files(self, progress: Callable[[int, int], None] | None = None) -> list[FileProblem]:
        """Compare every file with its size and sha256; an empty list means that all is well.

        Args:
            progress: called with the bytes done and the bytes in total, at least once a mebibyte.
        """
        references = list(self.manifest.files())
        total = sum(reference.bytes for reference in references)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        problems = []
        for reference in references:
            problem = self._size_problem(reference)
            if problem is None:
                problem = self._hash_problem(reference, advance)
            else:
                advance(reference.bytes)
            if problem is not None:
                problems.append(problem)
        return problems

    def _check_sizes(self) -> list[FileProblem]:
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

    def _hash_problem(
        self, reference: FileRef, advance: Callable[[int], None]
    ) -> FileProblem | None:
        found = sha256_file(self.file(reference.file), advance)
        if found == reference.sha256:
            return None
        detail = f"has sha256 {found}, expected {reference.sha256}"
        return FileProblem(file=reference.file, problem="sha256", detail=detail)


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
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            data = file.read(_MAX_MANIFEST_BYTES) if size <= _MAX_MANIFEST_BYTES else b""
    except OSError as error:
        raise BundleError(f"Cannot read {path}: {error.strerror}.") from error
    if size > _MAX_MANIFEST_BYTES:
        raise BundleFormatError(f"{path} has {size:,} bytes; at most 16 MiB are read.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleFormatError(f"{path} is not UTF-8 text: {error}.") from error


def _inside(root: Path, relative: str) -> Path:
    """Resolve links; refuse what ends outside ``root`` or is no plain file (a pipe would block)."""
    try:
        path = (root / relative).resolve(strict=True)
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BundleIntegrityError(f"{relative} is missing from the bundle {root}.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleFormatError(f"{relative} of the bundle {root} is unusable: {error}.") from error
    if not path.is_relative_to(root):
        raise BundleFormatError(f"{relative} is a link that leads out of the bundle {root}.")
    if not stat.S_ISREG(mode):
        raise BundleFormatError(f"{relative} of the bundle {root} is not a plain file.")
    return path
