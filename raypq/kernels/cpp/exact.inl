// Inner products in the canonical arithmetic of ``raypq.kernels.tables``: eight float64
// accumulators, of which accumulator a sums the dimensions a, a+8, … in order; they are added as
// ((0+4)+(2+6)) + ((1+5)+(3+7)).

namespace RAYPQ_NS {

// q(code) → out [D]. Copies whole registers, of which the next part overwrites the excess; may
// write up to 15 floats beyond D.
inline void decode(const Shape& shape, const float* C, const uint8_t* code, float* out) {
  const size_t d = shape.d;
  for (size_t m = 0; m < shape.M; ++m) {
    const float* c = C + (m * shape.K + code[m]) * d;
    for (size_t j = 0; j < d; j += kFloats)
      *reinterpret_cast<F32u*>(out + m * d + j) = *reinterpret_cast<const F32u*>(c + j);
  }
}

// Prefetches the codewords of a row.
inline void prefetch(const Shape& shape, const float* C, const uint8_t* code) {
  for (size_t m = 0; m < shape.M; ++m)
    for (size_t j = 0; j < shape.d; j += 16)
      __builtin_prefetch(C + (m * shape.K + code[m]) * shape.d + j);
}

inline F64 widen(const float* x) {
// GCC compiles the portable form to conversions of halves, and moves.
#if defined(__AVX512F__)
  return (F64)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(x));
#elif defined(__AVX2__)
  return (F64)_mm256_cvtps_pd(_mm_loadu_ps(x));
#else
  return __builtin_convertvector(*reinterpret_cast<const HalfF32u*>(x), F64);
#endif
}

inline Double8 widen_eight(const float* x) {
  Double8 result;
  for (size_t p = 0; p < 8 / kDoubles; ++p) result.part[p] = widen(x + p * kDoubles);
  return result;
}

// sum += q·x, of eight dimensions.
__attribute__((always_inline)) inline void add_products(Double8& sum, const float* q,
                                                        const Double8& x) {
  for (size_t p = 0; p < 8 / kDoubles; ++p) sum.part[p] += widen(q + p * kDoubles) * x.part[p];
}

// Adds ⟨q_r, w⟩ of kRows rows; several rows hide the latency of the additions.
template <size_t kRows>
inline void dots(const float* q, size_t stride, const float* w, size_t D, Double8* sums) {
  Double8 sum[kRows];
  for (size_t r = 0; r < kRows; ++r) sum[r] = sums[r];
  const size_t whole = D & ~size_t(7);
  for (size_t j = 0; j < whole; j += 8) {
    const Double8 x = widen_eight(w + j);
    for (size_t r = 0; r < kRows; ++r) add_products(sum[r], q + r * stride + j, x);
  }
  if (whole < D) {
    float tail[8] = {}, part[8] = {};
    memcpy(tail, w + whole, (D - whole) * sizeof(float));
    const Double8 x = widen_eight(tail);
    for (size_t r = 0; r < kRows; ++r) {
      memcpy(part, q + r * stride + whole, (D - whole) * sizeof(float));
      add_products(sum[r], part, x);
    }
  }
  for (size_t r = 0; r < kRows; ++r) sums[r] = sum[r];
}

// Long parts (d ≥ kLongPart) are not decoded: their codewords are read in place, in steps of eight
// that begin at a dimension of accumulator 0. What a step reads before and after its part is
// multiplied by zero, which does not change the sums.
//
// Writes w as float64, part by part, with zeros in front (d·m mod 8 of them) and behind: at most
// seven each, as weight_doubles counts them.
inline void pad_weights(const Shape& shape, const float* w, double* out) {
  const size_t d = shape.d, whole = d & ~size_t(7);
  for (size_t m = 0; m < shape.M; ++m, w += d) {
    const size_t front = m * d % 8, length = (front + d + 7) & ~size_t(7);
    for (size_t j = 0; j < 8; ++j) out[j] = out[length - 8 + j] = 0.0;
    for (size_t j = 0; j < whole; j += kDoubles)
      *reinterpret_cast<F64u*>(out + front + j) = widen(w + j);
    for (size_t j = whole; j < d; ++j) out[front + j] = w[j];
    out += length;
  }
}

template <size_t kRows>
inline void part_dots(const Shape& shape, const float* C, const uint8_t* const* codes,
                      const double* w, Double8* sums) {
  const size_t d = shape.d;
  Double8 sum[kRows];
  for (size_t r = 0; r < kRows; ++r) sum[r] = sums[r];
  for (size_t m = 0, front = 0; m < shape.M; ++m, C += shape.K * d) {
    const float* c[kRows];
    for (size_t r = 0; r < kRows; ++r) c[r] = C + size_t(codes[r][m]) * d - front;
    const size_t length = (front + d + 7) & ~size_t(7);
    for (size_t j = 0; j < length; j += 8) {
      const Double8 x = *reinterpret_cast<const Double8*>(w + j);
      for (size_t r = 0; r < kRows; ++r) add_products(sum[r], c[r] + j, x);
    }
    w += length;
    front = (front + d) % 8;
  }
  for (size_t r = 0; r < kRows; ++r) sums[r] = sum[r];
}

inline void long_parts(const Shape& shape, const float* C, const PickedRows& picked, const float* w,
                       double* scratch, Double8* sums) {
  constexpr size_t kRows = kDecoded, kAhead = 16;
  const auto [codes, stride, rows, n] = picked;
  pad_weights(shape, w, scratch);
  for (size_t i = 0; i < n; i += kRows) {
    const size_t count = n - i < kRows ? n - i : kRows;
    const uint8_t* of[kRows];
    for (size_t r = 0; r < count; ++r) of[r] = codes + size_t(rows[i + r]) * stride;
    for (size_t r = i + kAhead; r < n && r < i + kAhead + kRows; ++r)
      __builtin_prefetch(codes + size_t(rows[r]) * stride);
    auto dot = count == 1   ? part_dots<1>
               : count == 2 ? part_dots<2>
               : count == 3 ? part_dots<3>
                            : part_dots<4>;
    dot(shape, C, of, scratch, sums + i);
  }
}

inline void short_parts(const Shape& shape, const float* C, const PickedRows& picked,
                        const float* w, float* scratch, Double8* sums) {
  constexpr size_t kRows = kDecoded;
  const auto [codes, stride, rows, n] = picked;
  const size_t D = shape.D(), room = decoded_floats(shape);
  for (size_t i = 0; i < n; i += kRows) {
    const size_t count = n - i < kRows ? n - i : kRows;
    for (size_t r = 0; r < count; ++r)
      decode(shape, C, codes + size_t(rows[i + r]) * stride, scratch + r * room);
    for (size_t r = i + count; r < n && r < i + 2 * kRows; ++r)
      prefetch(shape, C, codes + size_t(rows[r]) * stride);
    auto dot = count == 1   ? dots<1>
               : count == 2 ? dots<2>
               : count == 3 ? dots<3>
                            : dots<4>;
    dot(scratch, room, w, D, sums + i);
  }
}

void add_parts(const Shape& parts, const float* C, const PickedRows& rows, const float* w,
               float* scratch, ExactAccumulators* sums) {
  Double8* into = reinterpret_cast<Double8*>(sums);
  if (parts.d >= kLongPart)
    long_parts(parts, C, rows, w, reinterpret_cast<double*>(scratch), into);
  else
    short_parts(parts, C, rows, w, scratch, into);
}

void rescore(const Shape& shape, const float* C, const PickedRows& rows, const float* w,
             float* scratch, double* out) {
  constexpr size_t kBatch = 64;
  for (size_t i = 0; i < rows.n; i += kBatch) {
    const size_t count = rows.n - i < kBatch ? rows.n - i : kBatch;
    ExactAccumulators sums[kBatch] = {};
    add_parts(shape, C, {rows.codes, rows.stride, rows.rows + i, count}, w, scratch, sums);
    for (size_t r = 0; r < count; ++r) out[i + r] = sums[r].total();
  }
}

}  // namespace RAYPQ_NS
