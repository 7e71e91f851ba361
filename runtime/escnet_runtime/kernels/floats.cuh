// Numbers of any type in memory as float32. Stands before the kernels that read them.
//
// No kernel includes a header: NVRTC compiles them where no CUDA toolkit is installed. Compile without
// --use_fast_math: the specifications include denormal numbers and correct rounding.

namespace {

enum FloatType { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

// IEEE binary16 to float32, exact for every bit pattern.
__device__ float float_of_half(unsigned bits) {
  const unsigned sign = (bits & 0x8000u) << 16;
  const unsigned exponent = (bits >> 10) & 31u;
  const unsigned fraction = bits & 1023u;
  if (exponent == 0) {  // zero or denormal: a multiple of 2^-24, a normal number in float32
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return __uint_as_float(__float_as_uint(magnitude) | sign);
  }
  const unsigned wide = exponent == 31 ? 255u : exponent + 112u;  // infinity and NaN stay themselves
  return __uint_as_float(sign | (wide << 23) | (fraction << 13));
}

__device__ float load_float(const void* values, int type, long long index) {
  if (type == kFloat32) {
    return static_cast<const float*>(values)[index];
  }
  const unsigned bits = static_cast<const unsigned short*>(values)[index];
  return type == kFloat16 ? float_of_half(bits) : __uint_as_float(bits << 16);
}

}  // namespace
