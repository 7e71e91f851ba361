"""A model's precision is that of its weights: cast the modules, and the exported graph is typed.

Casting and exporting always worked where rewriting an exported float32 graph did not
(onnxconverter-common and ModelOpt's AutoCast both broke on one of these graphs).
"""

import copy
from typing import Final

import torch

from escnet.model import EscNet
from escnet_runtime.manifest import Precision

__all__ = ["DTYPES", "cast_model"]

DTYPES: Final = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}

# Angles of the positional encoding reach tens of radians: they are computed in float32.
_ALWAYS_FP32: Final = "positional_encoding_gaussian_matrix"


def cast_model(model: EscNet, precision: Precision) -> EscNet:
    """A copy of ``model`` at ``precision``, in evaluation mode and without gradients.

    Every parameter and floating-point buffer is cast, except the frequencies of SAM's positional
    encoding. Sums over categories, scores, norms of embeddings and logits are float32 in the
    model's own code.
    """
    dtype = DTYPES[precision]
    cast = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for module in cast.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.is_floating_point() and name != _ALWAYS_FP32:
                    tensor.data = tensor.data.to(dtype)
    return cast
