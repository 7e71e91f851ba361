// From an 8-bit image of any size to the normalised input of the image encoder, in two launches.
//
// The specification is escnet_runtime/preprocess.py (and nv12.py): the result is the same bit for
// bit. A launch resizes one axis; between them lies an image of uint8, as in the specification. The
// host computes the filter once for a size of images, as whole numbers; a pixel is an exact sum.
//
// A table has, for each of `entries` pixels of the resized axis, the first pixel it sums, how many,
// and their weights in multiples of 2^-22:
//   int [2 + taps, entries]: row 0 first, row 1 count, from row 2 on the weights
// Sides are at most 2^20, so a sum fits 31 bits. One thread a pixel or an element of the output;
// grid * block covers them, the threads of a warp lie side by side in a row of it.

namespace {

constexpr int kWeightBits = 22;
constexpr int kColourBits = 20;

enum Layout { kRgb = 0, kBgr = 1, kRgba = 2, kBgra = 3, kNv12 = 4 };

struct Rgb {
  int r;
  int g;
  int b;
};

// As YuvCoefficients.
struct Colours {
  int black;
  int luma;
  int red_cr;
  int green_cb;
  int green_cr;
  int blue_cb;
};

__device__ int to_level(int sum, int bits) {
  const int level = sum >> bits;  // rounds down, negative numbers too
  return level < 0 ? 0 : (level > 255 ? 255 : level);
}

__device__ Rgb rgb_of_yuv(int luma, int cb, int cr, const Colours& by) {
  const int grey = by.luma * (luma - by.black) + (1 << (kColourBits - 1));
  const int u = cb - 128, v = cr - 128;
  return {to_level(grey + by.red_cr * v, kColourBits),
          to_level(grey + by.green_cb * u + by.green_cr * v, kColourBits),
          to_level(grey + by.blue_cb * u, kColourBits)};
}

__device__ Rgb load_packed(const unsigned char* row, int layout, int x) {
  const int channels = layout == kRgba || layout == kBgra ? 4 : 3;
  const unsigned char* pixel = row + static_cast<long long>(x) * channels;
  const bool swapped = layout == kBgr || layout == kBgra;
  return {pixel[swapped ? 2 : 0], pixel[1], pixel[swapped ? 0 : 2]};
}

}  // namespace

// pixels:        the image; luma if it is NV12
// chroma:        (Cb, Cr) of 2x2 pixels if it is NV12
// table:         of the axis that is resized first
// between:       uint8 [3,height,width]
// layout:        a Layout; the fourth channel is not read
// pitch, chroma_pitch: bytes from row to row
// vertical:      1 if rows are resized, then the image has `width` columns; else it has `height` rows
// black to blue_cb: YuvCoefficients
extern "C" __global__ void __launch_bounds__(256)
    escnet_resize(const unsigned char* pixels, const unsigned char* chroma, const int* table,
                  unsigned char* between, int layout, int pitch, int chroma_pitch, int vertical,
                  int height, int width, int black, int luma, int red_cr, int green_cb,
                  int green_cr, int blue_cb) {
  const long long index =
      static_cast<long long>(blockIdx.x) * blockDim.x + static_cast<long long>(threadIdx.x);
  const long long plane = static_cast<long long>(height) * width;
  if (index >= plane) {
    return;
  }
  const int out_y = static_cast<int>(index / width), out_x = static_cast<int>(index % width);
  const Colours colours{black, luma, red_cr, green_cb, green_cr, blue_cb};
  const int entries = vertical ? height : width;
  const int* entry = table + (vertical ? out_y : out_x);
  const int first = entry[0], count = entry[entries];
  const int half = 1 << (kWeightBits - 1);
  Rgb sum{half, half, half};
  for (int tap = 0; tap < count; ++tap) {
    const int weight = entry[static_cast<long long>(2 + tap) * entries];
    const int y = vertical ? first + tap : out_y;
    const int x = vertical ? out_x : first + tap;
    const unsigned char* row = pixels + static_cast<long long>(y) * pitch;
    Rgb pixel;
    if (layout == kNv12) {
      const unsigned char* pair = chroma + static_cast<long long>(y / 2) * chroma_pitch + x / 2 * 2;
      pixel = rgb_of_yuv(row[x], pair[0], pair[1], colours);
    } else {
      pixel = load_packed(row, layout, x);
    }
    sum.r += weight * pixel.r;
    sum.g += weight * pixel.g;
    sum.b += weight * pixel.b;
  }
  between[index] = static_cast<unsigned char>(to_level(sum.r, kWeightBits));
  between[plane + index] = static_cast<unsigned char>(to_level(sum.g, kWeightBits));
  between[2 * plane + index] = static_cast<unsigned char>(to_level(sum.b, kWeightBits));
}

// between:    uint8 [3,height,width]
// table:      of the axis that is resized now, with `entries` pixels
// levels:     float32 [3,256], what a level of a channel stands for
// tensor:     float32 [3,size,size], the part of the resized image that begins at (top, left)
// vertical:   1 if rows are resized
extern "C" __global__ void __launch_bounds__(256)
    escnet_normalise(const unsigned char* between, const int* table, const float* levels,
                     float* tensor, int vertical, int height, int width, int entries, int size,
                     int top, int left) {
  const long long index =
      static_cast<long long>(blockIdx.x) * blockDim.x + static_cast<long long>(threadIdx.x);
  const long long area = static_cast<long long>(size) * size;
  if (index >= 3 * area) {
    return;
  }
  const int channel = static_cast<int>(index / area);
  const int y = top + static_cast<int>(index % area / size);
  const int x = left + static_cast<int>(index % size);
  const int* entry = table + (vertical ? y : x);
  const int first = entry[0], count = entry[entries];
  const long long row = static_cast<long long>(channel) * height + (vertical ? first : y);
  const unsigned char* pixel = between + row * width + (vertical ? x : first);
  const long long step = vertical ? width : 1;
  int sum = 1 << (kWeightBits - 1);
  for (int tap = 0; tap < count; ++tap) {
    sum += entry[static_cast<long long>(2 + tap) * entries] * pixel[tap * step];
  }
  tensor[index] = levels[channel * 256 + to_level(sum, kWeightBits)];
}

// An image in NV12 as RGB, for who looks at the result.
// rgb:         uint8 [height,width,3]
// The rest as above.
extern "C" __global__ void __launch_bounds__(256)
    escnet_nv12_rgb(const unsigned char* pixels, const unsigned char* chroma, unsigned char* rgb,
                    int pitch, int chroma_pitch, int height, int width, int black, int luma,
                    int red_cr, int green_cb, int green_cr, int blue_cb) {
  const long long index =
      static_cast<long long>(blockIdx.x) * blockDim.x + static_cast<long long>(threadIdx.x);
  if (index >= static_cast<long long>(height) * width) {
    return;
  }
  const int y = static_cast<int>(index / width), x = static_cast<int>(index % width);
  const Colours colours{black, luma, red_cr, green_cb, green_cr, blue_cb};
  const unsigned char* pair = chroma + static_cast<long long>(y / 2) * chroma_pitch + x / 2 * 2;
  const int level = pixels[static_cast<long long>(y) * pitch + x];
  const Rgb pixel = rgb_of_yuv(level, pair[0], pair[1], colours);
  rgb[3 * index] = static_cast<unsigned char>(pixel.r);
  rgb[3 * index + 1] = static_cast<unsigned char>(pixel.g);
  rgb[3 * index + 2] = static_cast<unsigned char>(pixel.b);
}
