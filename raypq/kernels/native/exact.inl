// Scores in the canonical arithmetic of ``raypq.kernels.tables``: eight float64 lanes, lane l sums
// the dimensions l, l+8, … in order; the lanes are added as ((0+4)+(2+6)) + ((1+5)+(3+7)).

namespace RAYPQ_NS {

// q(code) → out [D]; may write up to 15 floats more. Whole registers are copied, and what is too
// much is overwritten by the next part.
inline void decode(const Shape& shape, const float* C, const uint8_t* code, float* out) {
  const size_t d = shape.d;
  for (size_t m = 0; m < shape.M; ++m) {
    const float* c = C + (m * shape.K + code[m]) * d;
    for (size_t j = 0; j < d; j += kFloats)
      *reinterpret_cast<F32u*>(out + m * d + j) = *reinterpret_cast<const F32u*>(c + j);
  }
}

// Asks for the codewords of a row that is decoded next.
inline void prefetch(const Shape& shape, const float* C, const uint8_t* code) {
  for (size_t m = 0; m < shape.M; ++m)
    for (size_t j = 0; j < shape.d; j += 16)
      __builtin_prefetch(C + (m * shape.K + code[m]) * shape.d + j);
}

inline Double8 widen(const float* x) {
  return __builtin_convertvector(*reinterpret_cast<const Float8*>(x), Double8);
}

inline double add_lanes(Double8 s) {
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// kRows rows at once: one sum alone would wait for each addition before the next.
template <size_t kRows>
inline void dots(const float* q, size_t stride, const float* w, size_t D, double* out) {
  Double8 sum[kRows] = {};
  const size_t whole = D & ~size_t(7);
  for (size_t j = 0; j < whole; j += 8) {
    Double8 x = widen(w + j);
    for (size_t r = 0; r < kRows; ++r) sum[r] += widen(q + r * stride + j) * x;
  }
  if (whole < D) {
    float rest[8] = {}, part[8] = {};
    memcpy(rest, w + whole, (D - whole) * sizeof(float));
    for (size_t r = 0; r < kRows; ++r) {
      memcpy(part, q + r * stride + whole, (D - whole) * sizeof(float));
      sum[r] += widen(part) * widen(rest);
    }
  }
  for (size_t r = 0; r < kRows; ++r) out[r] = add_lanes(sum[r]);
}

void rescore(const Shape& shape, const float* C, const uint8_t* codes, const uint32_t* rows,
             size_t n, const float* w, float* scratch, double* out) {
  constexpr size_t kRows = 4;
  const size_t D = shape.D(), stride = D + kCodePad;
  for (size_t i = 0; i < n; i += kRows) {
    const size_t count = n - i < kRows ? n - i : kRows;
    for (size_t r = 0; r < count; ++r)
      decode(shape, C, codes + size_t(rows[i + r]) * shape.M, scratch + r * stride);
    for (size_t r = i + count; r < n && r < i + 2 * kRows; ++r)
      prefetch(shape, C, codes + size_t(rows[r]) * shape.M);
    auto dot = count == 1   ? dots<1>
               : count == 2 ? dots<2>
               : count == 3 ? dots<3>
                            : dots<4>;
    dot(scratch, stride, w, D, out + i);
  }
}

}  // namespace RAYPQ_NS
