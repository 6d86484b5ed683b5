// Assignment: argmax_k of ⟨u, c_k⟩ − ½‖c_k‖², with SIMD lanes over rows.
//
// A block of rows is transposed, several sub-spaces at a time (each row may be on a page of its
// own, so short visits would miss the TLB). A coordinate of a codeword is broadcast to all rows,
// and the argmax stays in registers, without a reduction across lanes.
//
// The error of a float32 score of d terms is at most (d + 4)·2⁻²³·(‖u‖·max‖c‖ + max‖c‖²): twice the
// standard bound, plus room for underflow. Where the second best score is within twice that of the
// best, the code is computed again in float64 over j in order, ties to the lower index.

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
#if defined(__clang__)
#define RAYPQ_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC has __builtin_shufflevector only since version 12
typedef int32_t Int4 __attribute__((vector_size(16)));
#define RAYPQ_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Int4{__VA_ARGS__})
#endif

// A 4 × 4 block at ``from``, transposed into out [d][kRows].
inline void transpose4(const float* from, size_t stride, float* out) {
  const Float4 a = *reinterpret_cast<const Float4*>(from);
  const Float4 b = *reinterpret_cast<const Float4*>(from + stride);
  const Float4 c = *reinterpret_cast<const Float4*>(from + 2 * stride);
  const Float4 e = *reinterpret_cast<const Float4*>(from + 3 * stride);
  const Float4 ab = RAYPQ_SHUFFLE(a, b, 0, 4, 1, 5);
  const Float4 AB = RAYPQ_SHUFFLE(a, b, 2, 6, 3, 7);
  const Float4 ce = RAYPQ_SHUFFLE(c, e, 0, 4, 1, 5);
  const Float4 CE = RAYPQ_SHUFFLE(c, e, 2, 6, 3, 7);
  *reinterpret_cast<Float4*>(out) = RAYPQ_SHUFFLE(ab, ce, 0, 1, 4, 5);
  *reinterpret_cast<Float4*>(out + kRows) = RAYPQ_SHUFFLE(ab, ce, 2, 3, 6, 7);
  *reinterpret_cast<Float4*>(out + 2 * kRows) = RAYPQ_SHUFFLE(AB, CE, 0, 1, 4, 5);
  *reinterpret_cast<Float4*>(out + 3 * kRows) = RAYPQ_SHUFFLE(AB, CE, 2, 3, 6, 7);
}

inline void transpose(const float* U, size_t stride, size_t n, size_t d, float* out) {
  const size_t rows = n & ~size_t(3), columns = d & ~size_t(3);
  for (size_t r = 0; r < rows; r += 4)
    for (size_t j = 0; j < columns; j += 4)
      transpose4(U + r * stride + j, stride, out + j * kRows + r);
  for (size_t r = 0; r < n; ++r)
    for (size_t j = r < rows ? columns : 0; j < d; ++j) out[j * kRows + r] = U[r * stride + j];
}

// Scores kCodewords codewords from k on. The loops over registers are unrolled explicitly: GCC
// would unroll them only after it has placed the sums in memory.
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
    I32 code = best.code[r], index = int32_t(k) - I32{};
#pragma GCC unroll 8
    for (size_t c = 0; c < kCodewords; ++c, index += 1) {
      F32 x = sum[c][r];
      second = larger(second, smaller(first, x));
      code = x > first ? index : code;
      first = larger(first, x);
    }
    best.first[r] = first, best.second[r] = second, best.code[r] = code;
  }
}

// The exact code of one row and sub-space in float64; like NumPy's argmax, the first NaN wins.
__attribute__((noinline)) uint8_t exact_code(const PackedCodebooks& books, size_t m,
                                             const float* u) {
  const Shape& s = books.shape;
  size_t best = 0;
  double top = 0;
  for (size_t k = 0; k < s.K; ++k) {
    const float* c = books.C + (m * s.K + k) * s.d;
    double sum = 0;
    for (size_t j = 0; j < s.d; ++j) sum += double(u[j]) * double(c[j]);
    sum -= books.half_exact[m * s.K + k];
    if (sum != sum) return uint8_t(k);
    if (k == 0 || sum > top) best = k, top = sum;
  }
  return uint8_t(best);
}

// For each row, the distance of best and second best score from which their float32 order is exact.
inline void margins(const PackedCodebooks& books, size_t m, const float* u, float* margin) {
  const size_t d = books.shape.d;
  float squared[kRows] = {};
  for (size_t j = 0; j < d; ++j)
    for (size_t r = 0; r < kRows; ++r) squared[r] += u[j * kRows + r] * u[j * kRows + r];
  const float longest = books.largest[m], eps = float(d + 4) * 0x1p-22f, lost = float(d) * 1e-19f;
  for (size_t r = 0; r < kRows; ++r)
    margin[r] = eps * ((__builtin_sqrtf(squared[r]) + lost) * longest + longest * longest) +
                float(d) * 0x1p-124f;
}

// Codes of one sub-space for a block of rows U, given its transpose u [d][kRows].
inline void encode_part(const PackedCodebooks& books, size_t m, const float* u, const float* U,
                        size_t rows, uint8_t* B) {
  const Shape& s = books.shape;
  Best best;
  for (size_t r = 0; r < kRowRegs; ++r) {
    best.first[r] = best.second[r] = splat(-__builtin_inff());
    best.code[r] = I32{};
  }
  const float* half = books.half + m * books.K_padded;
  for (size_t k = 0; k < books.K_padded; k += kCodewords)
    assign(books.packed + (m * books.K_padded + k) * s.d, half + k, s.d, u, k, best);
  alignas(64) float margin[kRows], first[kRows], second[kRows];
  alignas(64) int32_t code[kRows];
  margins(books, m, u, margin);
  memcpy(first, best.first, sizeof first);
  memcpy(second, best.second, sizeof second);
  memcpy(code, best.code, sizeof code);
  for (size_t r = 0; r < rows; ++r) {
    const bool sure = second[r] < first[r] - margin[r];
    B[r * s.M + m] = sure ? uint8_t(code[r]) : exact_code(books, m, U + r * s.D() + m * s.d);
  }
}

void encode(const PackedCodebooks& books, const float* U, size_t n, float* scratch, uint8_t* B) {
  const Shape& s = books.shape;
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
      encode_part(books, m, scratch + m % panel * s.d * kRows, block, rows, B + start * s.M);
    }
  }
}

}  // namespace RAYPQ_NS
