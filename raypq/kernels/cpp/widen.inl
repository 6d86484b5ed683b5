// float16 to float32, exactly. Integer arithmetic that compilers vectorise for every instruction set:
// the instruction of F16C is not part of the baseline, and memory is the limit with either.

namespace RAYPQ_NS {

// Returns whether all n values are finite.
inline bool widen(const uint16_t* half, size_t n, float* out) {
  constexpr uint32_t kMagnitude = 0x7fff, kInfinity = 0x7c00, kLeastNormal = 0x0400;
  // The exponents' biases differ by 112. A subnormal has no implicit one: it is set, at the exponent
  // of the least normal number, and subtracted again.
  constexpr uint32_t kBias = 112u << 23, kLeast = 113u << 23;
  const uint32_t least_bits = kLeast;
  float least;
  std::memcpy(&least, &least_bits, sizeof least);
  uint32_t most = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t magnitude = half[i] & kMagnitude;
    const uint32_t sign = uint32_t(half[i] & ~kMagnitude) << 16;
    most = magnitude > most ? magnitude : most;
    const uint32_t shifted = magnitude << 13;
    const uint32_t with_one = shifted | kLeast;
    float small;
    std::memcpy(&small, &with_one, sizeof small);
    small -= least;
    uint32_t small_bits;
    std::memcpy(&small_bits, &small, sizeof small);
    const uint32_t normal = shifted + (magnitude >= kInfinity ? 2 * kBias : kBias);
    const uint32_t bits = (magnitude < kLeastNormal ? small_bits : normal) | sign;
    std::memcpy(out + i, &bits, sizeof bits);
  }
  return most < kInfinity;
}

}  // namespace RAYPQ_NS
