/* The prompt generator: escnet_runtime/ppg.py, which is the specification, in C.

   Points, point labels and regions are the same bit for bit: decisions rest on one float32 addition
   and exact whole numbers. Compile without -ffast-math. For the probabilities, whose exp stays
   NumPy's, the exponents are left behind.

   How it stays fast: what is done for each pixel is done on a list of the foreground, in loops over
   lanes of one width that compilers vectorise. */

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic of a higher precision rounds differently"
#endif

enum { PIXELS = 1024, REGIONS = 16 }; /* the most of a map; ppg.py refuses more */

/* Sums of x and of y stay below 2^20, counts below 2^11: one number holds a pixel or a region. */
enum { X_BIT = 20, COUNT_BIT = 40 };
static const int64_t SUM = (1 << 20) - 1;

/* A centroid is the exact rational (x / count, y / count). */
typedef struct {
  int64_t count, x, y;
} Centroid;

/* The foreground of one map, in the order of pixels. */
typedef struct {
  int size, width;
  int32_t key[PIXELS];   /* order of the values: equal for equal ones, -0.0 and 0.0 too */
  int32_t pixel[PIXELS]; /* y * w + x */
  int32_t x[PIXELS], y[PIXELS];
  double real_x[PIXELS], real_y[PIXELS];
  int64_t packed[PIXELS]; /* 1, x and y, for sums */
  int64_t region[PIXELS];
} Foreground;

static inline int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

/* A whole number in the order of the values; NaN is -inf. */
static inline int32_t key_of(float score) {
  const int32_t bits = bits_of(score + 0.0f); /* -0.0 becomes 0.0 */
  const int32_t key = bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
  const int32_t nothing = (int32_t)0x807fffff; /* the key of -inf */
  return score == score ? key : nothing;
}

static float value_of(int32_t key) {
  const int32_t bits = key ^ (int32_t)((uint32_t)(key >> 31) >> 1);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static int32_t largest(const int32_t* keys, int count) {
  int32_t most = INT32_MIN;
  for (int i = 0; i < count; ++i) most = keys[i] > most ? keys[i] : most;
  return most;
}

/* List what reaches `lowest`. */
static void list_foreground(const int32_t* keys, int32_t lowest, int height, int width,
                            Foreground* found) {
  int size = 0;
  for (int y = 0, pixel = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x, ++pixel) {
      found->key[size] = keys[pixel]; /* written always, kept if it counts: no branch */
      found->pixel[size] = pixel;
      found->x[size] = x;
      found->y[size] = y;
      size += keys[pixel] >= lowest;
    }
  }
  found->size = size;
  found->width = width;
  for (int i = 0; i < size; ++i) {
    found->real_x[i] = found->x[i];
    found->real_y[i] = found->y[i];
  }
  for (int i = 0; i < size; ++i) {
    found->packed[i] = (int64_t)1 << COUNT_BIT | (int64_t)found->x[i] << X_BIT | found->y[i];
  }
}

/* The peak, then the foreground pixel farthest from all seeds, while that distance is not 0.
   Returns the number of seeds. */
static int choose_seeds(const Foreground* map, int32_t peak, int regions, Centroid* seeds) {
  int32_t nearest[PIXELS];
  int seed = 0, count = 0;
  while (map->key[seed] != peak) ++seed;
  for (int i = 0; i < map->size; ++i) nearest[i] = INT32_MAX >> 10;
  for (;;) {
    const int32_t seed_x = map->x[seed], seed_y = map->y[seed];
    seeds[count++] = (Centroid){1, seed_x, seed_y};
    if (count == regions) return count;
    int32_t farthest = 0;
    for (int i = 0; i < map->size; ++i) {
      const int32_t dx = map->x[i] - seed_x, dy = map->y[i] - seed_y;
      const int32_t distance = dx * dx + dy * dy; /* below 2^20 */
      nearest[i] = distance < nearest[i] ? distance : nearest[i];
      /* With the place in the list below it: the first one of equals is the largest. */
      const int32_t key = nearest[i] << 10 | (PIXELS - 1 - i);
      farthest = key > farthest ? key : farthest;
    }
    if (farthest >> 10 == 0) return count; /* every foreground pixel is a seed */
    seed = PIXELS - 1 - (farthest & (PIXELS - 1));
  }
}

/* The nearest centroid of one pixel, the lowest of equals. With D = |count p - sum|^2, the distance
   is D / count^2, and two of them compare by cross products. D is below 2^41, the product of it
   and a squared count below 2^61. */
static int64_t nearest_exact(int64_t x, int64_t y, const Centroid* centroids, int count) {
  int64_t nearest = 0, best = 0, square = 0;
  for (int k = 0; k < count; ++k) {
    const int64_t members = centroids[k].count;
    const int64_t dx = members * x - centroids[k].x, dy = members * y - centroids[k].y;
    const int64_t distance = dx * dx + dy * dy;
    if (k == 0 || distance * square < best * members * members) {
      nearest = k;
      best = distance;
      square = members * members;
    }
  }
  return nearest;
}

/* The nearest centroid of every pixel. float64 has D and squared counts exactly, and rounds their
   products, which keeps their order: where two of them differ, it is right. It has the products
   too up to 2^53, and they are at most size^4 (h^2 + w^2); beyond, those that come out equal are
   looked at again. */
static void assign(Foreground* map, int height, const Centroid* centroids, int count) {
  double best[PIXELS], square[PIXELS];
  int64_t unsure[PIXELS];
  const int size = map->size;
  const double* restrict x = map->real_x;
  const double* restrict y = map->real_y;
  int64_t* restrict region = map->region;
  for (int i = 0; i < size; ++i) {
    best[i] = DBL_MAX; /* no distance: the first centroid is nearer */
    square[i] = 1.0;
    region[i] = unsure[i] = 0;
  }
  for (int k = 0; k < count; ++k) {
    const double members = (double)centroids[k].count, members_2 = members * members;
    const double sum_x = (double)centroids[k].x, sum_y = (double)centroids[k].y;
    for (int i = 0; i < size; ++i) {
      const double dx = members * x[i] - sum_x, dy = members * y[i] - sum_y;
      const double distance = dx * dx + dy * dy;
      const double own = distance * square[i], other = best[i] * members_2;
      const int nearer = own < other;
      unsure[i] |= own == other;
      best[i] = nearer ? distance : best[i];
      square[i] = nearer ? members_2 : square[i];
      region[i] = nearer ? k : region[i];
    }
  }
  const double sides = (double)height * height + (double)map->width * map->width;
  const double members = size;
  if (members * members * members * members * sides <= 9007199254740992.0) return;
  for (int i = 0; i < size; ++i) {
    if (unsure[i]) region[i] = nearest_exact(map->x[i], map->y[i], centroids, count);
  }
}

/* One step of Lloyd's; false if nothing moves. A region that lost all its pixels keeps its
   centroid. */
static int move(const Foreground* map, Centroid* centroids, int count) {
  int moved = 0;
  for (int k = 0; k < count; ++k) {
    int64_t sum = 0;
    for (int i = 0; i < map->size; ++i) sum += map->region[i] == k ? map->packed[i] : 0;
    const Centroid now = {sum >> COUNT_BIT, sum >> X_BIT & SUM, sum & SUM};
    const Centroid was = centroids[k];
    if (now.count > 0 && (now.count != was.count || now.x != was.x || now.y != was.y)) {
      centroids[k] = now;
      moved = 1;
    }
  }
  return moved;
}

/* k-means from given centroids. */
static void cluster(Foreground* map, int height, Centroid* centroids, int count, int iterations) {
  assign(map, height, centroids, count);
  for (int i = 0; i < iterations && move(map, centroids, count); ++i) {
    assign(map, height, centroids, count);
  }
}

/* The best pixel of every region, and the map of regions. */
static void write_regions(const Foreground* map, int regions, float* points, int32_t* labels,
                          int32_t* region_map) {
  int32_t best[REGIONS], place[REGIONS];
  for (int k = 0; k < REGIONS; ++k) place[k] = -1;
  for (int i = 0; i < map->size; ++i) {
    const int64_t k = map->region[i];
    region_map[map->pixel[i]] = (int32_t)k;
    if (place[k] < 0 || map->key[i] > best[k]) {
      best[k] = map->key[i];
      place[k] = i;
    }
  }
  for (int k = 0; k < regions; ++k) {
    const int used = place[k] >= 0;
    points[2 * k] = used ? (float)map->x[place[k]] : 0.0f;
    points[2 * k + 1] = used ? (float)map->y[place[k]] : 0.0f;
    labels[k] = used ? 1 : -1;
  }
}

/* (score - peak) / temperature: 0 at the peak, also an infinite one, -inf at NaN and -inf. */
static void write_exponents(const float* restrict scores, float peak, float temperature, int count,
                            float* restrict exponents) {
  for (int i = 0; i < count; ++i) {
    const float exponent = (scores[i] - peak) / temperature;
    const float kept = scores[i] == peak ? 0.0f : exponent;
    exponents[i] = scores[i] >= -FLT_MAX ? kept : -__builtin_inff();
  }
}

/* Prompts of `maps` maps [maps,height,width]; outputs as in Prompts, `exponents` those of its
   probabilities. */
void escnet_prompts(const float* scores, int64_t maps, int32_t height, int32_t width,
                    int32_t regions, int32_t iterations, float threshold_offset, float temperature,
                    float* points, int32_t* labels, int32_t* region_map, float* exponents) {
  static const float lowest = -FLT_MAX; /* -inf is never foreground */
  const int pixels = height * width;
  int32_t keys[PIXELS];
  Foreground map;
  Centroid centroids[REGIONS];
  for (int64_t one = 0; one < maps; ++one) {
    for (int i = 0; i < pixels; ++i) keys[i] = key_of(scores[i]);
    const int32_t top = largest(keys, pixels);
    const float peak = value_of(top);
    write_exponents(scores, peak, temperature, pixels, exponents);
    const float threshold = peak + threshold_offset; /* the one rounding that decides */
    list_foreground(keys, key_of(threshold > lowest ? threshold : lowest), height, width, &map);
    memset(region_map, 0xff, sizeof(int32_t) * pixels);
    if (map.size > 0) {
      const int count = choose_seeds(&map, top, regions, centroids);
      cluster(&map, height, centroids, count, iterations);
    }
    write_regions(&map, regions, points, labels, region_map);
    scores += pixels;
    points += 2 * regions;
    labels += regions;
    region_map += pixels;
    exponents += pixels;
  }
}
