// Building tables: a small matrix product for each sub-codebook, 64 columns wide, then rounding.

namespace RAYPQ_NS {

constexpr size_t kTileRegs = kTileWidth / kFloats;
constexpr size_t kHeldRegs = kTileRegs < 8 ? kTileRegs : 8;  // registers of columns held at once

// One codeword against kHeldRegs registers of columns.
inline void products(const float* c, size_t d, const float* w, F32* sum) {
  for (size_t v = 0; v < kHeldRegs; ++v) sum[v] = F32{};
  for (size_t j = 0; j < d; ++j)
    for (size_t v = 0; v < kHeldRegs; ++v)
      sum[v] += c[j] * *reinterpret_cast<const F32*>(w + j * kTileWidth + v * kFloats);
}

void lut(const Shape& shape, const float* C, const float* w, const float* fold, const Lut& out) {
  const size_t K = shape.K, d = shape.d;
  for (size_t m = 0; m < shape.M; ++m)
    for (size_t first = 0; first < kTileWidth; first += kHeldRegs * kFloats) {
      F32 least[kHeldRegs], most[kHeldRegs];
      for (size_t k = 0; k < K; ++k) {
        F32 sum[kHeldRegs];
        products(C + (m * K + k) * d, d, w + m * d * kTileWidth + first, sum);
        F32 shift = splat(fold ? fold[m * K + k] : 0.0f);
        F32* row = reinterpret_cast<F32*>(out.values + (m * K + k) * kTileWidth + first);
        for (size_t v = 0; v < kHeldRegs; ++v) {
          F32 x = row[v] = sum[v] - shift;
          least[v] = k ? smaller(least[v], x) : x;
          most[v] = k ? larger(most[v], x) : x;
        }
      }
      memcpy(out.low + m * kTileWidth + first, least, sizeof least);
      memcpy(out.high + m * kTileWidth + first, most, sizeof most);
    }
}

void quantise(const Shape& shape, const Lut& lut, const float* inverse, int top, uint8_t* table) {
  for (size_t m = 0; m < shape.M; ++m)
    for (size_t k = 0; k < shape.K; ++k) {
      const float* low = lut.low + m * kTileWidth;
      const float* x = lut.values + (m * shape.K + k) * kTileWidth;
      uint8_t* y = table + (m * shape.K + k) * kTileWidth;
      for (size_t c = 0; c < kTileWidth; ++c) {
        int32_t value = int32_t((x[c] - low[c]) * inverse[c] + 0.5f);
        y[c] = uint8_t(value < top ? value : top);
      }
    }
}

}  // namespace RAYPQ_NS
