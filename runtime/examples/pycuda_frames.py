"""Share the GPU with PyCUDA: its arrays and its stream, our kernel, no copy and no waiting between.

    pip install "escnet-runtime[pycuda]"      # builds PyCUDA, which needs nvcc
    python pycuda_frames.py

PyCUDA makes scores of three categories on a coarse grid, our kernel turns them into a label map of
the frame's size, and PyCUDA reads that.
"""

import numpy as np
import pycuda.autoprimaryctx  # noqa: F401  (the primary context, which escnet_runtime works in)
import pycuda.driver as cuda
from pycuda import gpuarray

from escnet_runtime.device import Device, open_device
from escnet_runtime.device.arrays import DeviceArray, device_array, follow, user_stream
from escnet_runtime.kernels import UpsampleBuffers, upsample_argmax_launch

CATEGORIES, GRID, FRAME = 3, (24, 24), (480, 640)


def empty(device: Device, shape: tuple[int, ...], dtype: type) -> DeviceArray:
    """An array that is freed when nobody refers to it, PyCUDA included."""
    memory = device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return DeviceArray.of(device, memory, shape, dtype)


def main(frames: int = 3) -> None:
    """Print how many pixels each category has in each frame."""
    theirs = cuda.Stream()
    random = np.random.default_rng(0)
    with open_device() as device, device.stream() as ours:
        best, total = empty(device, FRAME, np.float32), empty(device, FRAME, np.float32)
        labels = empty(device, FRAME, np.uint8)
        confidence = empty(device, FRAME, np.float16)
        for frame in range(frames):
            scores = random.normal(size=(CATEGORIES, *GRID)).astype(np.float32)
            made = gpuarray.to_gpu_async(scores, stream=theirs)

            # In: our stream waits for theirs, and reads their memory.
            taken = device_array(made, device=device, reader=ours, stream=theirs, dtype=np.float32)
            launch = upsample_argmax_launch(
                UpsampleBuffers(
                    logits=taken.address,
                    active=0,
                    best=best.address,
                    total=total.address,
                    labels=labels.address,
                    confidence=confidence.address,
                ),
                (CATEGORIES, *GRID),
                "float32",
                first_category=0,
                start=True,
                classes=CATEGORIES,
                size=FRAME,
            )
            device.launch(launch, ours)

            # Out: their stream waits for ours, and reads our memory.
            follow(device, user_stream(device, theirs), ours)
            view = gpuarray.GPUArray(FRAME, np.uint8, gpudata=labels.address, base=labels)
            host = view.get_async(stream=theirs)
            theirs.synchronize()
            print(f"frame {frame}: {np.bincount(host.ravel(), minlength=CATEGORIES).tolist()}")


if __name__ == "__main__":
    main()
