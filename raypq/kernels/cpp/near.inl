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
  U8 part[kParts] = {};
};

// kK: K, if it is known here, so that the places of lines are constants; or 0.
template <size_t kK>
__attribute__((always_inline)) inline NearSums near_sums(const Shape& shape, const uint8_t* table,
                                                         const uint8_t* code) {
  NearSums sums;
  const size_t step = (kK ? kK : shape.K) * kTileWidth;
  auto add = [&](const uint8_t* at) {
    for (size_t p = 0; p < kParts; ++p) sums.part[p] = add_saturated(sums.part[p], line(at, p));
  };
  size_t m = 0;
  for (; m + 8 <= shape.M; m += 8, table += 8 * step)  // as in gather
    for (size_t j = 0; j < 8; ++j) add(table + size_t(code[m + j]) * kTileWidth + j * step);
  for (; m < shape.M; ++m, table += step) add(table + size_t(code[m]) * kTileWidth);
  return sums;
}

template <size_t kK>
inline size_t columns_within(
    const Shape& shape, const uint8_t* table, const PickedRows& picked, const uint8_t* limit,
    const uint8_t* column_limit, NearHit* hits) {
  constexpr size_t kAhead = 16;
  const auto [codes, stride, rows, n] = picked;
  U8 columns_most[kParts];
  memcpy(columns_most, column_limit, sizeof columns_most);
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(codes + size_t(rows[i + kAhead]) * stride);
    const NearSums sums = near_sums<kK>(shape, table, codes + size_t(rows[i]) * stride);
    const U8 own = limit[rows[i]] - U8{};
    uint64_t columns = 0;
    for (size_t p = 0; p < kParts; ++p) {
      const U8 most = own > columns_most[p] ? own : columns_most[p];
      columns |= at_most(sums.part[p], most) << (p * kBytes % 64);
    }
    hits[count] = {columns, rows[i]};
    count += columns != 0;
  }
  return count;
}

size_t near_columns(const Shape& shape, const uint8_t* table, const PickedRows& rows,
                    const uint8_t* limit, const uint8_t* column_limit, NearHit* hits) {
  auto scan = shape.K == 256 ? columns_within<256> : columns_within<0>;
  return scan(shape, table, rows, limit, column_limit, hits);
}

void column_sums(const Shape& shape, const uint8_t* table, const uint8_t* codes, size_t n,
                 size_t stride, uint8_t* out) {
  for (size_t i = 0; i < n; ++i) {
    const NearSums sums = near_sums<0>(shape, table, codes + i * shape.M);
    memcpy(out + i * stride, sums.part, kTileWidth);
  }
}

#if defined(__SSE2__)
typedef __m128i Sixteen;
inline Sixteen sixteen(const uint8_t* at) { return _mm_loadu_si128((const __m128i*)at); }
inline Sixteen least_of(Sixteen a, Sixteen b) { return _mm_min_epu8(a, b); }

// Transposes 16 × 16 bytes of x to lines of out, 64 bytes apart.
inline void transpose(const Sixteen* from, size_t lines, uint8_t* out) {
  __m128i x[16], y[16];
  for (size_t i = 0; i < 16; ++i) x[i] = from[i];
  for (size_t round = 0; round < 4; ++round) {
    for (size_t i = 0; i < 8; ++i) {
      y[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
      y[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
    }
    for (size_t i = 0; i < 16; ++i) x[i] = y[i];
  }
  for (size_t i = 0; i < lines; ++i) _mm_storeu_si128((__m128i*)(out + i * kTileWidth), x[i]);
}
#else
typedef uint8_t Sixteen __attribute__((vector_size(16), aligned(1)));
inline Sixteen sixteen(const uint8_t* at) { return *(const Sixteen*)at; }
inline Sixteen least_of(Sixteen a, Sixteen b) { return a < b ? a : b; }

inline void transpose(const Sixteen* from, size_t lines, uint8_t* out) {
  for (size_t i = 0; i < lines; ++i)
    for (size_t j = 0; j < 16; ++j) out[i * kTileWidth + j] = from[j][i];
}
#endif

template <size_t kRows>
inline void near_table_of(const Shape& shape, const uint8_t* entries, size_t stride,
                          const uint8_t* codes, uint8_t* out) {
  const size_t M = shape.M, K = shape.K;
  for (size_t m = 0; m < M; ++m, entries += K * stride, out += K * kTileWidth)
    for (size_t c = 0; c < kTileWidth; c += 16) {
      const uint8_t* from[16 * kRows];
      for (size_t i = 0; i < 16 * kRows; ++i)
        from[i] = entries + codes[(c * kRows + i) * M + m] * stride;
      for (size_t k = 0; k < K; k += 16) {
        Sixteen x[16];
        for (size_t i = 0; i < 16; ++i) {
          x[i] = sixteen(from[i * kRows] + k);
          for (size_t r = 1; r < kRows; ++r)
            x[i] = least_of(x[i], sixteen(from[i * kRows + r] + k));
        }
        transpose(x, K - k < 16 ? K - k : 16, out + k * kTileWidth + c);
      }
    }
}

void near_table(const Shape& shape, const uint8_t* entries, size_t stride, const uint8_t* codes,
                bool blocks, uint8_t* out) {
  auto make = blocks ? near_table_of<kBlockRows> : near_table_of<1>;
  make(shape, entries, stride, codes, out);
}

}  // namespace RAYPQ_NS
