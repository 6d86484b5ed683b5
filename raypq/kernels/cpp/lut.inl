// Building tables: a small matrix product for each sub-codebook, 64 lanes wide, then rounding.

namespace RAYPQ_NS {

constexpr size_t kLaneRegs = kLanes / kFloats;
constexpr size_t kColumns = kLaneRegs < 8 ? kLaneRegs : 8;  // registers of lanes held at once

// One codeword against kColumns registers of lanes.
inline void products(const float* c, size_t d, const float* w, F32* sum) {
  for (size_t v = 0; v < kColumns; ++v) sum[v] = F32{};
  for (size_t j = 0; j < d; ++j)
    for (size_t v = 0; v < kColumns; ++v)
      sum[v] += c[j] * *reinterpret_cast<const F32*>(w + j * kLanes + v * kFloats);
}

void lut(const Shape& shape, const float* C, const float* w, const float* fold, float* out,
         float* low, float* high) {
  const size_t K = shape.K, d = shape.d;
  for (size_t m = 0; m < shape.M; ++m)
    for (size_t first = 0; first < kLanes; first += kColumns * kFloats) {
      F32 least[kColumns], most[kColumns];
      for (size_t k = 0; k < K; ++k) {
        F32 sum[kColumns];
        products(C + (m * K + k) * d, d, w + m * d * kLanes + first, sum);
        F32 shift = splat(fold ? fold[m * K + k] : 0.0f);
        F32* row = reinterpret_cast<F32*>(out + (m * K + k) * kLanes + first);
        for (size_t v = 0; v < kColumns; ++v) {
          F32 x = row[v] = sum[v] - shift;
          least[v] = k ? smaller(least[v], x) : x;
          most[v] = k ? larger(most[v], x) : x;
        }
      }
      memcpy(low + m * kLanes + first, least, sizeof least);
      memcpy(high + m * kLanes + first, most, sizeof most);
    }
}

void quantise(const Shape& shape, const float* lut, const float* low, const float* inverse,
              int top, uint8_t* table) {
  for (size_t m = 0; m < shape.M; ++m)
    for (size_t k = 0; k < shape.K; ++k) {
      const float* x = lut + (m * shape.K + k) * kLanes;
      uint8_t* y = table + (m * shape.K + k) * kLanes;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        int32_t value = int32_t((x[lane] - low[m * kLanes + lane]) * inverse[lane] + 0.5f);
        y[lane] = uint8_t(value < top ? value : top);
      }
    }
}

}  // namespace RAYPQ_NS
