// Logits of the crops of a sliding window, joined on one grid, the canvas.
//
// The specification is escnet_runtime/windows.py (LogitCanvas): the result is the same bit for bit, as
// long as crops are added in its order. One thread a cell of the canvas and category; grid * block
// covers them. floats.cuh and bilinear.cuh stand before this file.

namespace {

// Windows that cover a row or a column of the canvas: two begin at 0 and at `side - window`.
__device__ int windows_over(int cell, int window, int side) {
  return cell >= side - window && cell < window ? 2 : 1;
}

}  // namespace

// logits:      [categories,window,window] of logit_type, a FloatType: a chunk of one crop
// active:      categories in use of all chunks together, one int in device memory; null if all are
// canvas:      float32 [categories,side,side], of the same categories
// first:       the number of the chunk's first category
// start:       1 for the first crop, which starts the canvas anew
// whole:       1 for the whole image, whose logits are enlarged to the canvas; else they belong at
//              (top, left)
// scale:       window / side
// What a category that is not in use has on the canvas is left as it is.
extern "C" __global__ void __launch_bounds__(256)
    escnet_canvas(const void* logits, const int* active, float* canvas, int logit_type,
                  int categories, int first, int start, int whole, int window, int side, int top,
                  int left, double scale) {
  const long long index =
      static_cast<long long>(blockIdx.x) * blockDim.x + static_cast<long long>(threadIdx.x);
  const long long area = static_cast<long long>(side) * side;
  const int used = active == nullptr || *active - first > categories ? categories : *active - first;
  const long long category = index / area;
  if (category >= used) {
    return;
  }
  const int cell = static_cast<int>(index % area);
  const int y = cell / side, x = cell % side;
  const long long map = category * window * window;
  const float before = start ? 0.0f : canvas[index];
  if (whole) {
    const Tap row = bilinear_tap(y, window, scale), column = bilinear_tap(x, window, scale);
    const long long above = map + static_cast<long long>(row.lower) * window;
    const long long below = map + static_cast<long long>(row.upper) * window;
    const float upper_edge = between(load_float(logits, logit_type, above + column.lower),
                                     load_float(logits, logit_type, above + column.upper),
                                     column.weight);
    const float lower_edge = between(load_float(logits, logit_type, below + column.lower),
                                     load_float(logits, logit_type, below + column.upper),
                                     column.weight);
    canvas[index] = __fadd_rn(before, __fmul_rn(0.5f, between(upper_edge, lower_edge, row.weight)));
    return;
  }
  const int in_y = y - top, in_x = x - left;
  if (in_y < 0 || in_y >= window || in_x < 0 || in_x >= window) {
    if (start) {
      canvas[index] = 0.0f;
    }
    return;
  }
  const int cover = windows_over(y, window, side) * windows_over(x, window, side);
  const float share = __fdiv_rn(0.5f, static_cast<float>(cover));
  const float logit =
      load_float(logits, logit_type, map + static_cast<long long>(in_y) * window + in_x);
  canvas[index] = __fadd_rn(before, __fmul_rn(share, logit));
}
