// Order statistics of few values, and mean and variance of a row's sums in a tile.

namespace RAYPQ_NS {

template <class Sum>
inline void moments_of(const Sum* sums, const float* offset, float* mean, float* variance) {
  F32 total = {}, squares = {};
  for (size_t i = 0; i < kTileWidth; i += kFloats) {
    F32 x = {};
    for (size_t e = 0; e < kFloats; ++e) x[e] = float(int32_t(sums[i + e]));
    x += *reinterpret_cast<const F32*>(offset + i);
    total += x;
    squares += x * x;
  }
  float first = 0, second = 0;
  for (size_t e = 0; e < kFloats; ++e) first += total[e], second += squares[e];
  *mean = first / kTileWidth;
  *variance = second / kTileWidth - *mean * *mean;
}

void moments(const Hit* hits, size_t n, bool wide, const float* offset, float* mean,
             float* variance) {
  for (size_t h = 0; h < n; ++h)
    if (wide)
      moments_of(hits[h].wide, offset, mean + h, variance + h);
    else
      moments_of(hits[h].narrow, offset, mean + h, variance + h);
}

// The least of the values x (kRegs registers) that fewer than k of ``values`` exceed.
template <size_t kRegs>
inline F32 least_of_best(const float* values, size_t n, int32_t k, const F32* x) {
  I32 above[kRegs] = {};
  for (size_t j = 0; j < n; ++j) {
    const F32 y = splat(values[j]);
    for (size_t r = 0; r < kRegs; ++r) above[r] = y > x[r] ? above[r] + 1 : above[r];
  }
  F32 least = splat(__builtin_inff());
  for (size_t r = 0; r < kRegs; ++r)
    least = smaller(least, above[r] < k ? x[r] : splat(__builtin_inff()));
  return least;
}

float kth_largest(const float* values, size_t n, size_t k) {
  constexpr size_t kRegs = 32 / kFloats;
  // A copy in whole registers: loops have few lengths, and loads do not wait for recent stores.
  alignas(64) float copy[kMostCounted];
  I32 index;
  for (size_t e = 0; e < kFloats; ++e) index[e] = int32_t(e);
  const size_t padded = (n + 31) & ~size_t(31);
  for (size_t i = 0; i < padded; i += kFloats) {
    const F32 x = *reinterpret_cast<const F32u*>(values + i);
    *reinterpret_cast<F32*>(copy + i) = index < int32_t(n - i) ? x : splat(-__builtin_inff());
  }
  F32 least = splat(__builtin_inff());
  for (size_t i = 0; i < padded; i += 32)
    least = smaller(least, least_of_best<kRegs>(copy, padded, int32_t(k),
                                                 reinterpret_cast<const F32*>(copy + i)));
  float result = least[0];
  for (size_t e = 1; e < kFloats; ++e) result = least[e] < result ? least[e] : result;
  return result;
}

// The number of values of at least ``least``; n is a multiple of 32.
inline size_t count_from(const float* values, size_t n, float least) {
  I32 counts = {};
  for (size_t i = 0; i < n; i += kFloats)
    counts -= *reinterpret_cast<const F32u*>(values + i) >= splat(least);
  size_t total = 0;
  for (size_t e = 0; e < kFloats; ++e) total += size_t(counts[e]);
  return total;
}

float near_kth(const float* values, size_t n, size_t k, float least) {
  F32 high = *reinterpret_cast<const F32u*>(values);
  for (size_t i = kFloats; i < n; i += kFloats)
    high = larger(high, *reinterpret_cast<const F32u*>(values + i));
  float most = high[0];
  for (size_t e = 1; e < kFloats; ++e) most = high[e] > most ? high[e] : most;
  for (int step = 0; step < 12; ++step) {
    const float middle = least + (most - least) * 0.5f;
    if (!(middle > least && middle < most)) break;
    const size_t count = count_from(values, n, middle);
    if (count < k) {
      most = middle;
    } else {
      least = middle;
      if (count <= k + k / 16) break;
    }
  }
  return least;
}

typedef uint64_t U64 __attribute__((vector_size(RAYPQ_BYTES), may_alias));

void ranks(const uint64_t* keys, size_t n, uint64_t* rank) {
  constexpr size_t kEach = kBytes / 8;
  for (size_t i = 0; i < n; i += kEach) {
    const U64 x = *reinterpret_cast<const U64*>(keys + i);
    U64 above = {};
    for (size_t j = 0; j < n; ++j) above -= (U64)(keys[j] - U64{} > x);
    *reinterpret_cast<U64*>(rank + i) = above;
  }
}

}  // namespace RAYPQ_NS
