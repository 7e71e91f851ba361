"""The runtime's two hot NumPy parts in C, compiled on the machine by the C compiler that is there.

NumPy is the specification, and what runs where there is no compiler: the prompt generator
(:mod:`escnet_runtime.ppg`) chooses the same pixels bit for bit, up-sampling
(:mod:`escnet_runtime.postprocess`) gives the same labels. The first use compiles, once on a
machine; the result is kept in the user's cache folder. ``ESCNET_NATIVE=0`` turns it off.
"""

from .library import NativeLibrary, NativeStatus, native_library, native_status

__all__ = ["NativeLibrary", "NativeStatus", "native_library", "native_status"]
