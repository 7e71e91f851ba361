// Bilinear interpolation as escnet_runtime/postprocess.py specifies it. Stands before the kernels that
// use it.
//
// Products and sums are rounded one by one, never fused, so values are the same bit for bit.

namespace {

// Where an output pixel lies between two cells of the grid.
struct Tap {
  int lower;
  int upper;
  float weight;  // of upper
};

__device__ Tap bilinear_tap(int pixel, int cells, double scale) {
  double position = __dadd_rn(__dmul_rn(pixel + 0.5, scale), -0.5);
  position = position < 0.0 ? 0.0 : position;
  position = position > cells - 1 ? cells - 1 : position;
  const int lower = static_cast<int>(position);
  const int upper = lower + 1 < cells ? lower + 1 : cells - 1;
  return {lower, upper, __double2float_rn(position - lower)};
}

__device__ float between(float a, float b, float weight) {
  return __fadd_rn(a, __fmul_rn(__fadd_rn(b, -a), weight));
}

}  // namespace
