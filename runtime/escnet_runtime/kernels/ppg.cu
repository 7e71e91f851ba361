// Pseudo Prompt Generator: correlation maps to SAM prompts, all categories in one launch.
//
// The specification is escnet_runtime/ppg.py: points, point labels and regions are the same bit for
// bit. Everything a decision rests on is one float32 addition and exact integers, so neither the
// order of a reduction nor the GPU changes a pixel.
//
// One block a category, one thread a pixel:
//   grid  = categories (as many as the buffers hold, the bucket of a captured graph)
//   block = pixels rounded up to whole warps
// The number of categories in use is read from device memory, so a captured launch serves every
// vocabulary up to its bucket; the rest of the bucket gets "no prompt".
//
// floats.cuh stands before it (escnet_runtime.kernels.kernel_source joins the two).

namespace {

constexpr int kMaxRegions = 16;      // PpgConstants allows no more
constexpr unsigned kPixelBits = 10;  // a map has at most 1024 pixels
constexpr unsigned kLastPixel = (1u << kPixelBits) - 1;
constexpr unsigned kWholeWarp = 0xffffffffu;

// A centroid is the exact rational (sum_x / count, sum_y / count).
struct Centroid {
  int count;
  int sum_x;
  int sum_y;
};

// What the threads of a block share.
struct Shared {
  unsigned long long peak;
  unsigned farthest[kMaxRegions];
  unsigned long long best[kMaxRegions];
  Centroid centroid[kMaxRegions];
  Centroid moved[kMaxRegions];
};

// A key whose maximum is the largest value and, of equal ones, the lowest pixel; never 0.
__device__ unsigned long long value_key(float value, unsigned pixel) {
  unsigned bits = __float_as_uint(value);
  if (bits == 0x80000000u) {
    bits = 0;  // -0.0 equals 0.0
  }
  bits = (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);  // unsigned order is float order
  return (static_cast<unsigned long long>(bits) << kPixelBits) | (kLastPixel - pixel);
}

__device__ float value_of(unsigned long long key) {
  const unsigned bits = static_cast<unsigned>(key >> kPixelBits);
  return __uint_as_float((bits & 0x80000000u) ? (bits & 0x7fffffffu) : ~bits);
}

__device__ int pixel_of(unsigned long long key) {
  return static_cast<int>(kLastPixel - (static_cast<unsigned>(key) & kLastPixel));
}

// The maximum over the block goes to `result`, which holds 0 before. A barrier has to follow.
// All lanes of a warp have to call it; 0 takes part as "none".
template <class Key>
__device__ void block_max(Key key, Key* result) {
  if (__ballot_sync(kWholeWarp, key != 0) == 0) {
    return;  // most warps have no pixel of a region
  }
  for (int step = 16; step > 0; step /= 2) {
    const Key other = __shfl_xor_sync(kWholeWarp, key, step);
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) {
    atomicMax(result, key);
  }
}

// Add count and sums of the block's pixels that are `inside` to `total`. A barrier has to follow.
__device__ void block_add(bool inside, int x, int y, Centroid* total) {
  const unsigned lanes = __ballot_sync(kWholeWarp, inside);
  if (lanes == 0) {
    return;
  }
  // Both sums of a warp fit in 16 bits each: 32 * 1023 < 2^16.
  unsigned sums = inside ? (static_cast<unsigned>(y) << 16 | static_cast<unsigned>(x)) : 0u;
  for (int step = 16; step > 0; step /= 2) {
    sums += __shfl_xor_sync(kWholeWarp, sums, step);
  }
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&total->count, __popc(lanes));
    atomicAdd(&total->sum_x, static_cast<int>(sums & 0xffffu));
    atomicAdd(&total->sum_y, static_cast<int>(sums >> 16));
  }
}

// The peak, then the foreground pixel farthest from all seeds, as long as that distance is not 0.
// Returns the number of seeds; all threads return the same. Ends with the seeds visible to all.
__device__ int choose_seeds(Shared& shared, bool foreground, int x, int y, int width, int regions) {
  int seed = pixel_of(shared.peak);
  unsigned nearest = 0xffffffffu;
  int count = 0;
  for (;;) {
    const int seed_x = seed % width, seed_y = seed / width;
    if (threadIdx.x == 0) {
      shared.centroid[count] = {1, seed_x, seed_y};
    }
    ++count;
    if (count == regions) {
      break;
    }
    const int dx = x - seed_x, dy = y - seed_y;
    const unsigned distance = static_cast<unsigned>(dx * dx + dy * dy);
    nearest = distance < nearest ? distance : nearest;
    // A distance is below 2^20, so it shares 32 bits with the pixel.
    const unsigned key = nearest << kPixelBits | (kLastPixel - threadIdx.x);
    block_max(foreground ? key : 0u, &shared.farthest[count]);
    __syncthreads();  // the farthest pixel is known
    const unsigned farthest = shared.farthest[count];
    if (farthest >> kPixelBits == 0) {
      break;  // every foreground pixel is a seed
    }
    seed = pixel_of(farthest);
  }
  __syncthreads();  // the centroids are written
  return count;
}

// The centroid nearest to a pixel, the lowest of equals. With D = |count * p - sum|^2, the distance
// to a centroid is D / count^2, and two of them compare by their cross products:
// count * p - sum is below 2^20 in length, so D < 2^40 and the product < 2^60.
__device__ int nearest_centroid(const Shared& shared, int count, int x, int y) {
  int nearest = 0;
  unsigned long long best = 0, best_square = 0;
  for (int k = 0; k < count; ++k) {
    const long long members = shared.centroid[k].count;
    const long long dx = members * x - shared.centroid[k].sum_x;
    const long long dy = members * y - shared.centroid[k].sum_y;
    const unsigned long long square = static_cast<unsigned long long>(members * members);
    const unsigned long long distance = static_cast<unsigned long long>(dx * dx + dy * dy);
    if (k == 0 || distance * best_square < best * square) {
      nearest = k;
      best = distance;
      best_square = square;
    }
  }
  return nearest;
}

// k-means on the foreground: the region of this thread's pixel, -1 for background.
__device__ int cluster(Shared& shared, bool foreground, int x, int y, int count, int iterations) {
  for (int iteration = 0;; ++iteration) {
    const int region = foreground ? nearest_centroid(shared, count, x, y) : -1;
    if (iteration == iterations) {
      return region;
    }
    for (int k = 0; k < count; ++k) {
      block_add(region == k, x, y, &shared.moved[k]);
    }
    __syncthreads();  // the sums are complete, and nobody reads the old centroids any more
    bool changed = false;
    if (static_cast<int>(threadIdx.x) < count) {
      Centroid& centroid = shared.centroid[threadIdx.x];
      Centroid& moved = shared.moved[threadIdx.x];
      // A region that lost all its pixels keeps its centroid.
      changed = moved.count > 0 && (moved.count != centroid.count ||
                                    moved.sum_x != centroid.sum_x || moved.sum_y != centroid.sum_y);
      if (changed) {
        centroid = moved;
      }
      moved = {0, 0, 0};
    }
    if (!__syncthreads_or(changed)) {
      return region;  // settled: further iterations would repeat this one
    }
  }
}

// exp((score - peak) / temperature): 1 at the peak, also an infinite one, 0 at NaN and -inf.
__device__ float probability(float usable, float peak, float temperature) {
  if (usable == -__int_as_float(0x7f800000)) {
    return 0.0f;
  }
  return usable == peak ? 1.0f : expf((usable - peak) / temperature);
}

}  // namespace

// scores:         [N,h,w] of score_type, a FloatType
// active:         the categories in use, one int in device memory; null if all are
// points:         float32 [N,regions,2], (x, y) in pixels; (0, 0) for an unused region
// point_labels:   int32 [N,regions], 1 for a point, -1 for an unused region
// region_map:     int32 [N,h,w], -1 for background
// probabilities:  float32 [N,h,w]
// threshold_offset, temperature, regions, iterations: of PpgConstants
// together:       categories that lie one behind the other; those behind them begin anew, so many
//                 elements of an array further: *_step. Chunks of graphs lie at aligned places so.
// One block of the largest size has to fit a multiprocessor: 64 registers a thread, not 32.
extern "C" __global__ void __launch_bounds__(1024, 1)
    escnet_ppg(const void* scores, const int* active, float* points, int* point_labels,
               int* region_map, float* probabilities, int score_type, int height, int width,
               int regions, int iterations, float threshold_offset, float temperature,
               int together, int scores_step, int points_step, int labels_step, int regions_step,
               int probabilities_step) {
  __shared__ Shared shared;
  const int pixels = height * width;
  const int pixel = static_cast<int>(threadIdx.x);
  const long long category = blockIdx.x;
  const long long part = category / together, row = category % together;
  const long long index = row * pixels + pixel;  // from where the part begins
  const bool inside = pixel < pixels;
  const int x = pixel % width, y = pixel / width;
  const float nothing = -__int_as_float(0x7f800000);  // -inf

  if (pixel < kMaxRegions) {
    shared.farthest[pixel] = 0;
    shared.best[pixel] = 0;
    shared.moved[pixel] = {0, 0, 0};
  }
  if (pixel == 0) {
    shared.peak = 0;
  }
  __syncthreads();  // the maxima and sums start at zero

  // NaN is as far from the foreground as -inf, and from here on the same.
  float usable = nothing;
  if (inside && (active == nullptr || category < *active)) {
    const float score = load_float(scores, score_type, part * scores_step + index);
    usable = score == score ? score : nothing;
  }
  block_max(usable > nothing ? value_key(usable, pixel) : 0ull, &shared.peak);
  __syncthreads();  // the peak is known

  int region = -1;
  float peak = nothing;
  if (shared.peak != 0) {  // the same for the whole block, which has barriers inside
    peak = value_of(shared.peak);
    // The one rounding that decides. Where it overflows to -inf, -inf is no foreground all the same.
    const bool foreground = usable > nothing && usable >= __fadd_rn(peak, threshold_offset);
    const int count = choose_seeds(shared, foreground, x, y, width, regions);
    region = cluster(shared, foreground, x, y, count, iterations);
    for (int k = 0; k < count; ++k) {
      block_max(region == k ? value_key(usable, pixel) : 0ull, &shared.best[k]);
    }
    __syncthreads();  // the best pixel of every region is known
  }

  if (inside) {
    region_map[part * regions_step + index] = region;
    probabilities[part * probabilities_step + index] = probability(usable, peak, temperature);
  }
  if (pixel < regions) {
    const unsigned long long best = shared.best[pixel];
    const int point = best != 0 ? pixel_of(best) : 0;
    const long long at = row * regions + pixel;
    points[part * points_step + 2 * at] = static_cast<float>(point % width);
    points[part * points_step + 2 * at + 1] = static_cast<float>(point / width);
    point_labels[part * labels_step + at] = best != 0 ? 1 : -1;
  }
}
