"""Every error this package raises on purpose.

::

    EscNetError                    base; a command exits 1
    ├── InputError                 what the caller gave cannot be used; a command exits 2
    │   ├── ImageError             an image cannot be read or has an unusable shape or type
    │   ├── VocabularyError        a category list or a template cannot be used
    │   └── BundleError            a bundle cannot be used
    │       ├── BundleFormatError  its description is malformed, unsafe or from a newer format
    │       ├── BundleIntegrityError  a file is missing or is not the one that was written
    │       └── EngineMismatchError   its engines are missing or were built for something else
    ├── BackendError               a backend is missing, or failed while running a graph
    └── DeviceError                the GPU, its driver or its compiler failed, or is not there
        └── OutOfDeviceMemory      the GPU has less memory free than was asked for

Messages say what was got, what was expected and what to do.
"""

__all__ = [
    "BackendError",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "DeviceError",
    "EngineMismatchError",
    "EscNetError",
    "ImageError",
    "InputError",
    "OutOfDeviceMemory",
    "VocabularyError",
]


class EscNetError(Exception):
    """Base of all errors of the ESC-Net toolkit."""

    def let_go(self) -> None:
        """Forget where it and what caused it were raised, and what was held there.

        For who handles it by freeing memory: frames of a failed call keep what it had.
        """
        error: BaseException | None = self
        while error is not None:
            error.__traceback__ = None
            error = error.__cause__ or error.__context__


class InputError(EscNetError):
    """The caller's input cannot be used."""


class ImageError(InputError):
    """An image cannot be read, or its shape or type is unusable."""


class VocabularyError(InputError):
    """A list of categories or a template cannot be used."""


class BundleError(InputError):
    """A bundle cannot be used."""


class BundleFormatError(BundleError):
    """A bundle's description is malformed, unsafe, or of a newer format than this package reads."""


class BundleIntegrityError(BundleError):
    """A file of a bundle is missing or is not the one that was written."""


class EngineMismatchError(BundleError):
    """A bundle's engines are missing, or were built for another device, library or graph."""


class BackendError(EscNetError):
    """A backend is not installed, cannot run a graph, or failed while running one."""


class DeviceError(EscNetError):
    """The GPU, its driver or its compiler failed, or there is none."""


class OutOfDeviceMemory(DeviceError):
    """The GPU has less memory free than was asked for."""
