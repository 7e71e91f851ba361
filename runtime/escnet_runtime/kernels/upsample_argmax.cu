// From logits on a small grid to a label and a confidence for every pixel of the image.
//
// The specification is escnet_runtime/postprocess.py (UpsampleArgmax). Interpolated logits are the
// same bit for bit: products and sums are rounded one by one, never fused. So labels are equal,
// however the categories are cut into chunks; the confidence differs by float32 rounding.
//
// One thread a pixel of the image; grid * block covers them. A launch takes one chunk of categories,
// and what it knows of a pixel stays in device memory until the next one. No array of categories
// times pixels ever exists. floats.cuh and bilinear.cuh stand before this file.

namespace {

constexpr float kLargestLogit = 1e30f;  // keeps the difference of two logits finite

// A logit that interpolation and differences leave finite. NaN loses to everything.
__device__ float load_logit(const void* logits, int type, long long index) {
  const float value = load_float(logits, type, index);
  if (!(value > -kLargestLogit)) {
    return -kLargestLogit;
  }
  return value < kLargestLogit ? value : kLargestLogit;
}

// Round a number in (0, 1] to IEEE binary16, halves to even.
__device__ unsigned short half_of_fraction(float value) {
  const unsigned bits = __float_as_uint(value);
  if (value < 6.103515625e-5f) {  // below 2^-14 the spacing is 2^-24
    return static_cast<unsigned short>(__float2int_rn(value * 16777216.0f));
  }
  return static_cast<unsigned short>((bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13);
}

}  // namespace

// logits:      [categories,cells_y,cells_x] of logit_type, a FloatType: the chunk
// active:      categories in use of all chunks together, one int in device memory; null if all are
// best:        float32 [height,width], the largest logit so far
// total:       float32 [height,width], the sum of exp(logit - best) so far
// labels:      uint8 or uint16 (label_bytes) [height,width]
// confidence:  float16 [height,width], of the categories so far
// first:       the number of the chunk's first category
// start:       1 for the first chunk of an image, which starts best, total and labels anew
// scale_y, scale_x: cells / pixels
extern "C" __global__ void __launch_bounds__(256)
    escnet_upsample_argmax(const void* logits, const int* active, float* best, float* total,
                           void* labels, unsigned short* confidence, int logit_type,
                           int label_bytes, int categories, int first, int start, int cells_y,
                           int cells_x, int height, int width, double scale_y, double scale_x) {
  const long long pixel =
      static_cast<long long>(blockIdx.x) * blockDim.x + static_cast<long long>(threadIdx.x);
  if (pixel >= static_cast<long long>(height) * width) {
    return;
  }
  unsigned char* narrow = static_cast<unsigned char*>(labels);
  unsigned short* wide = static_cast<unsigned short*>(labels);
  float top = -__int_as_float(0x7f800000), sum = 0.0f;  // -inf
  int label = 0;
  if (!start) {
    top = best[pixel];
    sum = total[pixel];
    label = label_bytes == 1 ? narrow[pixel] : wide[pixel];
  }

  const Tap row = bilinear_tap(static_cast<int>(pixel / width), cells_y, scale_y);
  const Tap column = bilinear_tap(static_cast<int>(pixel % width), cells_x, scale_x);
  const long long cells = static_cast<long long>(cells_y) * cells_x;
  const long long above = static_cast<long long>(row.lower) * cells_x;
  const long long below = static_cast<long long>(row.upper) * cells_x;
  const int used = active == nullptr || *active - first > categories ? categories : *active - first;
  for (int k = 0; k < used; ++k) {
    const long long map = k * cells;
    const float upper_edge = between(load_logit(logits, logit_type, map + above + column.lower),
                                     load_logit(logits, logit_type, map + above + column.upper),
                                     column.weight);
    const float lower_edge = between(load_logit(logits, logit_type, map + below + column.lower),
                                     load_logit(logits, logit_type, map + below + column.upper),
                                     column.weight);
    const float value = between(upper_edge, lower_edge, row.weight);
    // Chunks may come in any order: of equal logits the lowest category wins.
    if (value > top || (value == top && first + k < label)) {
      label = first + k;
    }
    if (value > top) {
      sum = sum * expf(top - value) + 1.0f;
      top = value;
    } else {
      sum += expf(value - top);
    }
  }

  best[pixel] = top;
  total[pixel] = sum;
  if (label_bytes == 1) {
    narrow[pixel] = static_cast<unsigned char>(label);
  } else {
    wide[pixel] = static_cast<unsigned short>(label);
  }
  // Before the first category there is nothing to be confident of.
  confidence[pixel] = sum > 0.0f ? half_of_fraction(__fdiv_rn(1.0f, sum)) : 0;
}
