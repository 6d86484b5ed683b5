// The vector types of one instruction set. This header is compiled once for each, inside the
// namespace RAYPQ_NS, so that no two builds of a function share a name (the linker would keep one
// of them, and an AVX-512 body could run on a CPU without it). For the same reason the code in this
// namespace uses no templates of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "isa.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
#define RAYPQ_BYTES 64
#elif defined(__AVX2__)
#define RAYPQ_BYTES 32
#else
#define RAYPQ_BYTES 16
#endif

namespace RAYPQ_NS {

using namespace raypq;

constexpr size_t kBytes = RAYPQ_BYTES;
constexpr size_t kParts = 64 / kBytes;  // registers that hold one 64-byte line
constexpr size_t kFloats = kBytes / 4;
constexpr size_t kDoubles = kBytes / 8;

typedef uint8_t U8 __attribute__((vector_size(RAYPQ_BYTES), may_alias));
typedef uint16_t U16 __attribute__((vector_size(RAYPQ_BYTES), may_alias));
typedef uint16_t U16u __attribute__((vector_size(RAYPQ_BYTES), may_alias, aligned(4)));
typedef int16_t I16 __attribute__((vector_size(RAYPQ_BYTES), may_alias));
typedef int32_t I32 __attribute__((vector_size(RAYPQ_BYTES), may_alias));
typedef float F32 __attribute__((vector_size(RAYPQ_BYTES), may_alias));
typedef float F32u __attribute__((vector_size(RAYPQ_BYTES), may_alias, aligned(4)));
typedef double F64 __attribute__((vector_size(RAYPQ_BYTES), may_alias));
typedef double F64u __attribute__((vector_size(RAYPQ_BYTES), may_alias, aligned(8)));
typedef float HalfF32u __attribute__((vector_size(RAYPQ_BYTES / 2), may_alias, aligned(4)));

inline F32 splat(float x) { return x - F32{}; }
inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }
inline F32 smaller(F32 a, F32 b) { return a < b ? a : b; }

// Eight doubles in registers of the instruction set: a vector type of 64 bytes would be kept in
// memory where registers are shorter.
struct Double8 {
  F64 part[8 / kDoubles];
};

// all_set: whether every 16-bit element of a mask is set.
//
// The 16-bit elements of a that are at least b. ``reaches`` is a mask in the instruction set's own
// form, not 0 if there are any; ``expand`` turns it into two bits for each element, of which the
// lower is the result.
#if defined(__AVX512BW__)
inline bool all_set(I16 a) { return _mm512_movepi16_mask((__m512i)a) == 0xffffffffu; }
inline uint32_t reaches(I16 a, I16 b) {
  return _mm512_cmpge_epi16_mask((__m512i)a, (__m512i)b);
}
inline uint64_t expand(uint32_t bits) { return _pdep_u64(bits, 0x5555555555555555u); }
#elif defined(__AVX2__)
inline bool all_set(I16 a) { return _mm256_movemask_epi8((__m256i)a) == -1; }
inline uint32_t reaches(I16 a, I16 b) {
  return uint32_t(_mm256_movemask_epi8((__m256i)(a >= b)));
}
inline uint64_t expand(uint32_t bits) { return bits & 0x55555555u; }
#elif defined(__SSE2__)
inline bool all_set(I16 a) { return _mm_movemask_epi8((__m128i)a) == 0xffff; }
inline uint32_t reaches(I16 a, I16 b) { return uint32_t(_mm_movemask_epi8((__m128i)(a >= b))); }
inline uint64_t expand(uint32_t bits) { return bits & 0x5555u; }
#else
inline bool all_set(I16 a) {
  uint64_t half[2];
  memcpy(half, &a, sizeof half);
  return (half[0] & half[1]) == ~uint64_t(0);
}
inline uint32_t reaches(I16 a, I16 b) {
  I16 yes = a >= b;
  uint64_t half[2];
  memcpy(half, &yes, sizeof half);
  if (!(half[0] | half[1])) return 0;
  uint32_t bits = 0;
  for (unsigned e = 0; e < kBytes / 2; ++e) bits |= uint32_t(yes[e] & 1) << 2 * e;
  return bits;
}
inline uint64_t expand(uint32_t bits) { return bits; }
#endif

}  // namespace RAYPQ_NS
