// Sums over categories, in groups of a fixed number of them, and what a category weighs in one.
//
// The specification is escnet_runtime/groups.py: both are the same bit for bit. One thread an
// element; grid * block covers them. Both read the number of categories in use from device memory,
// so a captured launch serves every vocabulary up to its bucket.

namespace {

__device__ long long element_of_thread() {
  return static_cast<long long>(blockIdx.x) * blockDim.x + static_cast<long long>(threadIdx.x);
}

}  // namespace

// parts:   float32 [groups,elements], one chunk's sums
// active:  the categories in use of all chunks together, one int in device memory; null if all are
// sums:    float32 [elements], the sum of the groups so far
// group:   categories a group
// first:   the number of the chunk's first category
// start:   1 for the first chunk, which starts the sums anew
// A group without a category in use is not added and not even read.
extern "C" __global__ void __launch_bounds__(256)
    escnet_accumulate(const float* parts, const int* active, float* sums, int groups, int group,
                      int first, int start, int elements) {
  const long long element = element_of_thread();
  if (element >= elements) {
    return;
  }
  int used = groups;
  if (active != nullptr) {
    const int categories = *active > first ? *active - first : 0;
    const int begun = categories / group + (categories % group != 0);
    used = begun < groups ? begun : groups;
  }
  if (used == 0) {
    if (start) {
      sums[element] = 0.0f;
    }
    return;
  }
  float sum = parts[element];
  if (!start) {
    sum = __fadd_rn(sums[element], sum);
  }
  for (int k = 1; k < used; ++k) {
    sum = __fadd_rn(sum, parts[static_cast<long long>(k) * elements + element]);
  }
  sums[element] = sum;
}

// weights:     float32 [rows], 1 / (categories in use) for each of them, 0 behind them
// active:      the categories in use, one int in device memory; null if all are
// categories:  the most that can be in use
// together:    rows that lie one behind the other; those behind them begin anew, `step` floats
//              further, so that each chunk of a graph has its rows at an aligned place
extern "C" __global__ void __launch_bounds__(256)
    escnet_group_weights(float* weights, const int* active, int categories, int rows, int together,
                         int step) {
  const long long row = element_of_thread();
  if (row >= rows) {
    return;
  }
  const int used = active == nullptr || *active > categories ? categories : *active;
  // NumPy rounds the quotient to float64 and then to float32. A float32 quotient of such integers
  // is the same: float64 has more than twice as many digits, so rounding twice does no harm.
  const long long at = row / together * step + row % together;
  weights[at] = row < used ? __fdiv_rn(1.0f, static_cast<float>(used)) : 0.0f;
}
