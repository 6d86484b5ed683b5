// Assignment: argmax_k of ⟨u, c_k⟩ − ½‖c_k‖², the lanes running over rows.
//
// A block of rows is transposed some sub-spaces at a time (each row is on a page of its own: fewer
// would miss the TLB at every visit), so a codeword's coordinate is broadcast to all of them and the
// argmax stays in registers, with nothing to reduce across lanes at the end.
//
// The float32 score of d terms is off by at most (d + 4)·2⁻²³·(‖u‖·max‖c‖ + max‖c‖²) (twice what
// the standard bound asks, plus room for underflow). Where the second best is within twice that of
// the best, the row is decided again in float64 over j in order, ties to the lower index.

namespace RAYPQ_NS {

constexpr size_t kCodewords = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t kRowRegs = 4;  // 16 sums, 4 rows and a codeword in 32 registers
#else
constexpr size_t kRowRegs = 3;  // 12 + 3 + 1 in 16
#endif
constexpr size_t kRows = kRowRegs * kFloats;
static_assert(kRows <= kRowBlock);

struct Best {
  F32 first[kRowRegs], second[kRowRegs];
  I32 code[kRowRegs];
};

typedef float Float4 __attribute__((vector_size(16), may_alias, aligned(4)));
typedef int32_t Int4 __attribute__((vector_size(16)));

// Four rows from ``from`` on, columns j to j+3, to their place in out [d][kRows].
inline void transpose4(const float* from, size_t stride, float* out) {
  const Float4 a = *reinterpret_cast<const Float4*>(from);
  const Float4 b = *reinterpret_cast<const Float4*>(from + stride);
  const Float4 c = *reinterpret_cast<const Float4*>(from + 2 * stride);
  const Float4 e = *reinterpret_cast<const Float4*>(from + 3 * stride);
  const Float4 ab = __builtin_shuffle(a, b, Int4{0, 4, 1, 5});
  const Float4 AB = __builtin_shuffle(a, b, Int4{2, 6, 3, 7});
  const Float4 ce = __builtin_shuffle(c, e, Int4{0, 4, 1, 5});
  const Float4 CE = __builtin_shuffle(c, e, Int4{2, 6, 3, 7});
  *reinterpret_cast<Float4*>(out) = __builtin_shuffle(ab, ce, Int4{0, 1, 4, 5});
  *reinterpret_cast<Float4*>(out + kRows) = __builtin_shuffle(ab, ce, Int4{2, 3, 6, 7});
  *reinterpret_cast<Float4*>(out + 2 * kRows) = __builtin_shuffle(AB, CE, Int4{0, 1, 4, 5});
  *reinterpret_cast<Float4*>(out + 3 * kRows) = __builtin_shuffle(AB, CE, Int4{2, 3, 6, 7});
}

inline void transpose(const float* U, size_t stride, size_t n, size_t d, float* out) {
  const size_t rows = n & ~size_t(3), columns = d & ~size_t(3);
  for (size_t r = 0; r < rows; r += 4)
    for (size_t j = 0; j < columns; j += 4)
      transpose4(U + r * stride + j, stride, out + j * kRows + r);
  for (size_t r = 0; r < n; ++r)
    for (size_t j = r < rows ? columns : 0; j < d; ++j) out[j * kRows + r] = U[r * stride + j];
}

// kCodewords codewords from k on, against the block. The loops over registers are unrolled by order:
// left to itself GCC does it after it has decided to keep the sums in memory.
__attribute__((always_inline)) inline void assign(const float* book, const float* half, size_t d,
                                                  const float* u, size_t k, Best& best) {
  F32 sum[kCodewords][kRowRegs];
#pragma GCC unroll 8
  for (size_t c = 0; c < kCodewords; ++c)
#pragma GCC unroll 8
    for (size_t r = 0; r < kRowRegs; ++r) sum[c][r] = splat(-half[c]);
#pragma GCC unroll 1
  for (size_t j = 0; j < d; ++j) {
    F32 x[kRowRegs];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRowRegs; ++r)
      x[r] = *reinterpret_cast<const F32*>(u + j * kRows + r * kFloats);
#pragma GCC unroll 8
    for (size_t c = 0; c < kCodewords; ++c) {
      F32 y = splat(book[j * kCodewords + c]);
#pragma GCC unroll 8
      for (size_t r = 0; r < kRowRegs; ++r) sum[c][r] += x[r] * y;
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRowRegs; ++r) {
    F32 first = best.first[r], second = best.second[r];
    I32 code = best.code[r], name = int32_t(k) - I32{};
#pragma GCC unroll 8
    for (size_t c = 0; c < kCodewords; ++c, name += 1) {
      F32 x = sum[c][r];
      second = larger(second, smaller(first, x));
      code = x > first ? name : code;
      first = larger(first, x);
    }
    best.first[r] = first, best.second[r] = second, best.code[r] = code;
  }
}

// The canonical code of one row and sub-space; like NumPy's argmax, the first NaN wins.
__attribute__((noinline)) uint8_t decide(const Book& book, size_t m, const float* u) {
  const Shape& s = book.shape;
  size_t best = 0;
  double top = 0;
  for (size_t k = 0; k < s.K; ++k) {
    const float* c = book.C + (m * s.K + k) * s.d;
    double sum = 0;
    for (size_t j = 0; j < s.d; ++j) sum += double(u[j]) * double(c[j]);
    sum -= book.half_exact[m * s.K + k];
    if (sum != sum) return uint8_t(k);
    if (k == 0 || sum > top) best = k, top = sum;
  }
  return uint8_t(best);
}

// How far best and second best may be apart before the float32 order is sure; one for each row.
inline void margins(const Book& book, size_t m, const float* u, float* margin) {
  const size_t d = book.shape.d;
  float squared[kRows] = {};
  for (size_t j = 0; j < d; ++j)
    for (size_t r = 0; r < kRows; ++r) squared[r] += u[j * kRows + r] * u[j * kRows + r];
  const float wide = book.largest[m], eps = float(d + 4) * 0x1p-22f, lost = float(d) * 1e-19f;
  for (size_t r = 0; r < kRows; ++r)
    margin[r] = eps * ((__builtin_sqrtf(squared[r]) + lost) * wide + wide * wide) +
                float(d) * 0x1p-124f;
}

// The codes of one sub-space for a block of rows that stands transposed in u [d][kRows].
inline void encode_part(const Book& book, size_t m, const float* u, const float* U, size_t rows,
                        uint8_t* B) {
  const Shape& s = book.shape;
  Best best;
  for (size_t r = 0; r < kRowRegs; ++r) {
    best.first[r] = best.second[r] = splat(-__builtin_inff());
    best.code[r] = I32{};
  }
  const float* half = book.half + m * book.K_padded;
  for (size_t k = 0; k < book.K_padded; k += kCodewords)
    assign(book.packed + (m * book.K_padded + k) * s.d, half + k, s.d, u, k, best);
  alignas(64) float margin[kRows], first[kRows], second[kRows];
  alignas(64) int32_t code[kRows];
  margins(book, m, u, margin);
  memcpy(first, best.first, sizeof first);
  memcpy(second, best.second, sizeof second);
  memcpy(code, best.code, sizeof code);
  for (size_t r = 0; r < rows; ++r) {
    const bool sure = second[r] < first[r] - margin[r];
    B[r * s.M + m] = sure ? uint8_t(code[r]) : decide(book, m, U + r * s.D() + m * s.d);
  }
}

void encode(const Book& book, const float* U, size_t n, float* scratch, uint8_t* B) {
  const Shape& s = book.shape;
  const size_t D = s.D(), panel = encode_panel(s);
  memset(scratch, 0, encode_floats(s, kRows) * sizeof(float));
  for (size_t start = 0; start < n; start += kRows) {
    const size_t rows = n - start < kRows ? n - start : kRows;
    const float* block = U + start * D;
    for (size_t m = 0; m < s.M; ++m) {
      if (m % panel == 0) {
        const size_t parts = s.M - m < panel ? s.M - m : panel;
        transpose(block + m * s.d, D, rows, parts * s.d, scratch);
      }
      encode_part(book, m, scratch + m % panel * s.d * kRows, block, rows, B + start * s.M);
    }
  }
}

}  // namespace RAYPQ_NS
