/* Up-sampling and reducing logits: escnet_runtime/reduction.py, which is the specification, in C.

   Interpolated logits are the same bit for bit: products and sums are rounded one by one, in the
   same order, so labels are equal. Compile without -ffast-math and with -ffp-contract=off. The
   confidence differs by float32 rounding, as its sum runs in another order and with its own exp.

   How it stays fast: a tile of the image keeps what it knows of its pixels in the first-level
   cache while a block of categories passes over it, and every loop over pixels is written so that
   compilers vectorise it: 32-bit numbers throughout, no branch, whole groups of pixels. */

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic of a higher precision rounds differently"
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MULTIPLY_ADD(a, b, c) __builtin_fmaf(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

enum {
  LINE = 64,       /* bytes of a cache line, and of the widest vector */
  GROUP = 16,      /* pixels that fill it */
  COLUMNS = 128,   /* of a tile */
  ROWS = 8,        /* of a tile, of those between the same two rows of the grid */
  CATEGORIES = 64, /* of a block; 32 KiB of them, widened, are kept for the next rows */
};

static const float LARGEST_LOGIT = 1e30f; /* keeps differences finite; reduction.py has it too */

/* An image that is being reduced. `lower`, `upper` and `weight` are those of Taps, as 32-bit
   numbers. Mirrored by escnet_runtime/native/upsample.py. */
typedef struct {
  const int32_t* row_lower;
  const int32_t* row_upper;
  const float* row_weight;
  const int32_t* column_lower;
  const int32_t* column_upper;
  const float* column_weight;
  float* best;
  float* total;
  void* labels; /* uint8 or uint16 */
  int32_t label_bytes;
  int32_t cells_y;
  int32_t cells_x;
  int32_t width;
} Image;

/* What is known of the pixels of a tile. */
typedef struct {
  _Alignas(LINE) float best[ROWS][COLUMNS];
  _Alignas(LINE) float total[ROWS][COLUMNS];
  _Alignas(LINE) int32_t label[ROWS][COLUMNS];
} Tile;

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

/* All bits set where something is true. */
static inline uint32_t mask_of(int truth) { return 0u - (uint32_t)truth; }

/* A choice that no compiler takes for a branch, which would keep the loop from being vectorised, or
   have it wait for guesses that are often wrong. */
static inline uint32_t chosen(uint32_t mask, uint32_t yes, uint32_t no) {
  return (yes & mask) | (no & ~mask);
}

/* exp(-|x|), infinity included; past 86 it stays at exp(-86), which is 0 beside 1.

   |x| = r - n ln 2 with |r| <= ln(2) / 2, and exp(-r) is 1 - r + r^2 (a cubic polynomial): our own
   fit for the smallest relative error, 1.1e-7 in exact arithmetic and below 2.5e-7 in float32.
   exp(-0) is 1. */
static inline float exp_of_minus(float x) {
  const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
  const int32_t size = (int32_t)(bits_of(x) & 0x7fffffff), most = 0x42ac0000; /* 86; ordered */
  const float bounded = float_of((uint32_t)(size < most ? size : most));
  const float shifted = MULTIPLY_ADD(bounded, -1.44269504f, shift);
  const float n = shifted - shift; /* 0 to -124 */
  /* ln 2 in two parts; the first has 12 bits, so its product with n is exact. */
  const float r = MULTIPLY_ADD(n, -2.12194440e-4f, MULTIPLY_ADD(n, 0.693359375f, bounded));
  float tail = MULTIPLY_ADD(-0.00831243f, r, 0.041890986f);
  tail = MULTIPLY_ADD(tail, r, -0.16667119f);
  tail = MULTIPLY_ADD(tail, r, 0.49999225f);
  const float near = MULTIPLY_ADD(tail, r * r, 1.0f - r);
  return float_of(bits_of(near) + (bits_of(shifted) << 23)); /* times 2^n, which its low bits are */
}

/* NaN loses to everything; comparisons with it are false. */
static inline float cleaned(float logit) {
  const float bounded = logit > -LARGEST_LOGIT ? logit : -LARGEST_LOGIT;
  return bounded < LARGEST_LOGIT ? bounded : LARGEST_LOGIT;
}

/* A row of the grid at the columns of a tile. */
static inline void widen(const float* restrict cells, const int32_t* restrict lower,
                         const int32_t* restrict upper, const float* restrict weight, int count,
                         float* restrict wide) {
  for (int i = 0; i < count; ++i) {
    const float left = cleaned(cells[lower[i]]);
    const float step = cleaned(cells[upper[i]]) - left;
    wide[i] = left + step * weight[i];
  }
}

/* Merge one category into a row of a tile, `count` pixels rounded up to whole groups. Of equal
   logits the lowest category wins; `tied` says that one before may be higher than this. */
static inline void merge(int32_t category, int tied, unsigned count, const float* restrict lower,
                         const float* restrict step, float weight, float* restrict best,
                         float* restrict total, int32_t* restrict label) {
  const unsigned whole = (count + GROUP - 1) & ~(GROUP - 1u);
  for (unsigned i = 0; i < whole; ++i) {
    const float value = step[i] * weight + lower[i];
    const float top = best[i], sum = total[i];
    const float shrink = exp_of_minus(value - top);
    const uint32_t higher = mask_of(value > top);
    const uint32_t least = tied ? mask_of(value == top) & mask_of(category < label[i]) : 0;
    label[i] = (int32_t)chosen(higher | least, (uint32_t)category, (uint32_t)label[i]);
    best[i] = float_of(chosen(higher, bits_of(value), bits_of(top)));
    const float grown = MULTIPLY_ADD(sum, shrink, 1.0f);
    total[i] = float_of(chosen(higher, bits_of(grown), bits_of(sum + shrink)));
  }
}

/* What is known of a row; returns its highest label. Chunks of categories may come in any order. */
static int32_t load(const Image* image, int32_t row, int32_t column, int count, int line,
                    Tile* tile) {
  const int64_t at = (int64_t)row * image->width + column;
  memcpy(tile->best[line], image->best + at, sizeof(float) * count);
  memcpy(tile->total[line], image->total + at, sizeof(float) * count);
  int32_t* restrict label = tile->label[line];
  if (image->label_bytes == 1) {
    const uint8_t* restrict narrow = (const uint8_t*)image->labels + at;
    for (int i = 0; i < count; ++i) label[i] = narrow[i];
  } else {
    const uint16_t* restrict narrow = (const uint16_t*)image->labels + at;
    for (int i = 0; i < count; ++i) label[i] = narrow[i];
  }
  int32_t highest = 0;
  for (int i = 0; i < count; ++i) highest = label[i] > highest ? label[i] : highest;
  return highest;
}

static void store(const Image* image, int32_t row, int32_t column, int count, int line,
                  const Tile* tile) {
  const int64_t at = (int64_t)row * image->width + column;
  memcpy(image->best + at, tile->best[line], sizeof(float) * count);
  memcpy(image->total + at, tile->total[line], sizeof(float) * count);
  const int32_t* restrict label = tile->label[line];
  if (image->label_bytes == 1) {
    uint8_t* restrict narrow = (uint8_t*)image->labels + at;
    for (int i = 0; i < count; ++i) narrow[i] = (uint8_t)label[i];
  } else {
    uint16_t* restrict narrow = (uint16_t*)image->labels + at;
    for (int i = 0; i < count; ++i) narrow[i] = (uint16_t)label[i];
  }
}

/* Rows `begin` to `end` - 1 at the columns of a tile: a block of at most CATEGORIES. */
static void reduce_tile(const Image* image, const float* logits, int categories, int32_t first,
                        int32_t begin, int32_t end, int32_t column, int count) {
  const int64_t cells = (int64_t)image->cells_y * image->cells_x;
  const int32_t* lower = image->column_lower + column;
  const int32_t* upper = image->column_upper + column;
  const float* weight = image->column_weight + column;
  /* Past `count` there are zeros or what was there before: computed, and not kept. */
  static const Tile nothing;
  Tile tile = nothing;
  _Alignas(LINE) float above[COLUMNS] = {0};
  _Alignas(LINE) float step[COLUMNS] = {0};
  /* Of every category, the row of the grid that `held` says. */
  _Alignas(LINE) float kept[CATEGORIES][COLUMNS];
  int32_t held = -1;
  for (int32_t row = begin, stop; row < end; row = stop) {
    const int32_t top = image->row_lower[row], bottom = image->row_upper[row];
    /* Rows between the same two rows of the grid, as many as a tile holds. */
    for (stop = row + 1; stop < end && stop < row + ROWS && image->row_lower[stop] == top;) ++stop;
    const int last = stop == end || image->row_lower[stop] != top;
    int tied = 0;
    for (int32_t one = row; one < stop; ++one) {
      tied |= load(image, one, column, count, one - row, &tile) > first;
    }
    for (int k = 0; k < categories; ++k) {
      const float* map = logits + k * cells;
      if (held != top) {
        widen(map + (int64_t)top * image->cells_x, lower, upper, weight, count, kept[k]);
      }
      memcpy(above, kept[k], sizeof(float) * count);
      float* below = last ? kept[k] : step;
      widen(map + (int64_t)bottom * image->cells_x, lower, upper, weight, count, below);
      for (int i = 0; i < count; ++i) step[i] = below[i] - above[i];
      for (int line = 0; line < stop - row; ++line) {
        const float share = image->row_weight[row + line];
        float* best = tile.best[line];
        float* total = tile.total[line];
        int32_t* label = tile.label[line];
        if (tied) {
          merge(first + k, 1, count, above, step, share, best, total, label);
        } else {
          merge(first + k, 0, count, above, step, share, best, total, label);
        }
      }
    }
    held = last ? bottom : top;
    for (int32_t one = row; one < stop; ++one) store(image, one, column, count, one - row, &tile);
  }
}

/* Merge the logits [categories,cells_y,cells_x] of categories `first` and following into rows
   `begin` to `end` - 1 of the image. Threads may work on different rows at once. */
void escnet_upsample_rows(const Image* image, const float* logits, int32_t categories,
                          int32_t first, int32_t begin, int32_t end) {
  const int64_t cells = (int64_t)image->cells_y * image->cells_x;
  for (int32_t column = 0; column < image->width; column += COLUMNS) {
    const int32_t left = image->width - column;
    const int count = left < COLUMNS ? left : COLUMNS;
    for (int32_t start = 0; start < categories; start += CATEGORIES) {
      const int32_t more = categories - start;
      reduce_tile(image, logits + start * cells, more < CATEGORIES ? more : CATEGORIES,
                  first + start, begin, end, column, count);
    }
  }
}

/* The winner's share, exp(0) / total, as float16, halves to even: numbers in (0, 1]. */
void escnet_confidence(const float* restrict total, uint16_t* restrict confidence, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float share = 1.0f / total[i];
    const uint32_t bits = bits_of(share);
    const uint32_t normal = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    /* Below 2^-14 the spacing is 2^-24, as that of float32 is at 0.5. */
    const uint32_t denormal = bits_of(share + 0.5f) - bits_of(0.5f);
    const uint32_t small = mask_of(bits < 0x38800000);
    confidence[i] = (uint16_t)((denormal & small) | (normal & ~small));
  }
}
