// Sums of 8-bit entries that saturate at 255, for the search of neighbours: a sum up to 254 is
// exact, and one of 255 is at least that. A table has a line of 64 columns for each codeword of
// each part, [M][K][64].

namespace RAYPQ_NS {

#if defined(__AVX512BW__)
inline U8 add_saturated(U8 a, U8 b) { return (U8)_mm512_adds_epu8((__m512i)a, (__m512i)b); }
inline uint64_t at_most(U8 a, U8 b) { return _mm512_cmple_epu8_mask((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
inline U8 add_saturated(U8 a, U8 b) { return (U8)_mm256_adds_epu8((__m256i)a, (__m256i)b); }
inline uint64_t at_most(U8 a, U8 b) {
  return uint32_t(_mm256_movemask_epi8(
      _mm256_cmpeq_epi8(_mm256_min_epu8((__m256i)a, (__m256i)b), (__m256i)a)));
}
#elif defined(__SSE2__)
inline U8 add_saturated(U8 a, U8 b) { return (U8)_mm_adds_epu8((__m128i)a, (__m128i)b); }
inline uint64_t at_most(U8 a, U8 b) {
  return uint32_t(
      _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8((__m128i)a, (__m128i)b), (__m128i)a)));
}
#else
inline U8 add_saturated(U8 a, U8 b) {
  const U8 sum = a + b;
  return sum | (U8)(sum < a);
}
inline uint64_t at_most(U8 a, U8 b) {
  uint64_t bits = 0;
  for (size_t e = 0; e < kBytes; ++e) bits |= uint64_t(a[e] <= b[e]) << e;
  return bits;
}
#endif

struct NearSums {
  U8 part[kParts];
};

__attribute__((always_inline)) inline NearSums near_sums(const Shape& shape, const uint8_t* table,
                                                         const uint8_t* code) {
  NearSums sums = {};
  const size_t step = shape.K * kTileWidth;
  auto add = [&](size_t m) {
    const uint8_t* at = table + m * step + size_t(code[m]) * kTileWidth;
    for (size_t p = 0; p < kParts; ++p) sums.part[p] = add_saturated(sums.part[p], line(at, p));
  };
  size_t m = 0;
  for (; m + 8 <= shape.M; m += 8)  // as in gather
    for (size_t j = 0; j < 8; ++j) add(m + j);
  for (; m < shape.M; ++m) add(m);
  return sums;
}

size_t near_columns(const Shape& shape, const uint8_t* table, const uint8_t* codes, size_t n,
                    const uint8_t* limit, NearHit* hits) {
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) {
    const NearSums sums = near_sums(shape, table, codes + i * shape.M);
    U8 most = limit[i] - U8{};
    uint64_t columns = 0;
    for (size_t p = 0; p < kParts; ++p)
      columns |= at_most(sums.part[p], most) << (p * kBytes % 64);
    hits[count] = {columns, uint32_t(i)};
    count += columns != 0;
  }
  return count;
}

void column_sums(const Shape& shape, const uint8_t* table, const uint8_t* codes, size_t n,
                 size_t stride, uint8_t* out) {
  for (size_t i = 0; i < n; ++i) {
    const NearSums sums = near_sums(shape, table, codes + i * shape.M);
    memcpy(out + i * stride, &sums, kTileWidth);
  }
}

// out [K][64] of 64 columns [K] each, of which 16 multiples of entries may be read.
inline void interleave(const uint8_t* const* column, size_t K, uint8_t* out) {
  for (size_t k = 0; k < K; k += 16)
    for (size_t c = 0; c < kTileWidth; c += 16) {
      const size_t lines = K - k < 16 ? K - k : 16;
#if defined(__SSE2__)
      __m128i x[16], y[16];
      for (size_t i = 0; i < 16; ++i) x[i] = _mm_loadu_si128((const __m128i*)(column[c + i] + k));
      for (size_t round = 0; round < 4; ++round) {
        for (size_t i = 0; i < 8; ++i) {
          y[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
          y[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
        }
        for (size_t i = 0; i < 16; ++i) x[i] = y[i];
      }
      for (size_t i = 0; i < lines; ++i)
        _mm_storeu_si128((__m128i*)(out + (k + i) * kTileWidth + c), x[i]);
#else
      for (size_t i = 0; i < lines; ++i)
        for (size_t j = 0; j < 16; ++j) out[(k + i) * kTileWidth + c + j] = column[c + j][k + i];
#endif
    }
}

void near_table(const Shape& shape, const uint8_t* entries, size_t stride, const uint8_t* codes,
                size_t rows, uint8_t* scratch, uint8_t* out) {
  const uint8_t* column[kTileWidth];
  for (size_t m = 0; m < shape.M; ++m, entries += shape.K * stride, out += shape.K * kTileWidth) {
    for (size_t c = 0; c < kTileWidth; ++c) {
      const uint8_t* code = codes + c * rows * shape.M + m;
      column[c] = entries + code[0] * stride;
      if (rows == 1) continue;
      uint8_t* least = scratch + c * stride;
      memcpy(least, column[c], stride);
      for (size_t r = 1; r < rows; ++r) {
        const uint8_t* other = entries + code[r * shape.M] * stride;
        for (size_t k = 0; k < stride; ++k) least[k] = other[k] < least[k] ? other[k] : least[k];
      }
      column[c] = least;
    }
    interleave(column, shape.K, out);
  }
}

}  // namespace RAYPQ_NS
