// What every instruction set provides: leaf functions over plain arrays, reached by pointers.
// Shapes as in the Python package: U [N, D], C [M, K, d], B [N, M], D = M·d.
#pragma once

#include <cstddef>
#include <cstdint>

namespace raypq {

constexpr size_t kLanes = 64;       // classes or queries in a tile: the bytes of one cache line
constexpr int kCoarse = 127;        // largest table entry: two of them still fit a byte
constexpr int kFinest = 255;        // the same where lines are widened one by one
constexpr size_t kNarrow = 128;     // sub-codebooks that 16-bit sums hold: 128·127 + kRoom < 2^15
constexpr size_t kFine = 64;        // the same for fine entries: 64·255 + kRoom < 2^15
constexpr int kRoom = 16383;        // largest start value of a 16-bit sum
constexpr int kNever = 32767;       // a threshold no 16-bit sum reaches
constexpr size_t kChunk = 256;      // rows that one call of a scan may take
constexpr size_t kMostCounted = 128;  // values that kth_largest takes
constexpr size_t kMostRanked = 64;    // keys for which ranks are faster than a sort
constexpr size_t kCodePad = 64;     // floats after a codebook that a decode may read

// Of functions that several builds of isa.cpp share: inlined, so that the linker never has to choose
// one of them.
#define RAYPQ_SHARED [[gnu::always_inline]] inline

// Sub-codebook sizes.
struct Shape {
  size_t M, K, d;
  RAYPQ_SHARED size_t D() const { return M * d; }
};

// A row of which some lanes reached their threshold: which (bit l is lane l), and all its sums
// Σ_m of table entries. Written without a loop: which rows hit is a surprise to the branch
// predictor already, how many of their lanes do must not be another.
struct Hit {
  uint64_t lanes;
  uint32_t row;
  union alignas(64) {
    uint16_t narrow[kLanes];  // up to kNarrow sub-codebooks: the even lanes, then the odd ones
    uint32_t wide[kLanes];
  };

  // Where a lane's sum stands.
  RAYPQ_SHARED static size_t place(size_t lane, bool is_wide) {
    return is_wide ? lane : lane % 2 * (kLanes / 2) + lane / 2;
  }
  RAYPQ_SHARED uint32_t sum(size_t lane, bool is_wide) const {
    return is_wide ? wide[lane] : narrow[place(lane, false)];
  }
};

// The canonical order of a score's sum: lane l adds the dimensions l, l+8, … up, in their order.
struct alignas(64) Lanes {
  double lane[8];

  RAYPQ_SHARED double total() const {
    const double* s = lane;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  }
};

// Codebooks packed for assignment: [M][K/tile][d][tile], padded codewords have half = +inf.
struct Book {
  Shape shape;
  size_t K_padded;
  const float* packed;
  const float* half;        // ½‖c‖² [M, K_padded], float32
  const double* half_exact;  // the same in float64
  const float* largest;     // max_k ‖c_mk‖ [M], rounded up
  const float* C;           // as given [M, K, d]
};

// Sub-spaces that are transposed together in encode, the most rows, and the floats that takes.
RAYPQ_SHARED size_t encode_panel(const Shape& shape) { return shape.d < 128 ? 256 / shape.d : 1; }
constexpr size_t kRowBlock = 64;
RAYPQ_SHARED size_t encode_floats(const Shape& shape, size_t rows) {
  return encode_panel(shape) * shape.d * rows;
}

// What scores need of memory. Rows that are decoded together, and the floats of each, of which a
// decode may write some beyond D; or the weights of long parts as float64, each part with zeros
// around it that fill it up to whole steps of eight.
constexpr size_t kDecoded = 4, kLongPart = 16;
RAYPQ_SHARED size_t decoded_floats(const Shape& shape) { return shape.D() + kCodePad; }
RAYPQ_SHARED size_t weight_doubles(const Shape& shape) { return shape.M * (shape.d + 14); }
RAYPQ_SHARED size_t score_floats(const Shape& shape) {
  const size_t decoded = kDecoded * decoded_floats(shape);
  const size_t weights = shape.d >= kLongPart ? 2 * weight_doubles(shape) : 0;
  return decoded > weights ? decoded : weights;
}

struct Isa {
  const char* name;
  size_t codeword_tile;

  // B [n, M] of U [n, D]; exact (see encode.inl). scratch: encode_floats of kRowBlock rows, aligned.
  void (*encode)(const Book& book, const float* U, size_t n, float* scratch, uint8_t* B);

  // float32 ⟨c_mk, w⟩ − fold_mk of 64 weights w [D][64] → lut [M][K][64], its minima and maxima
  // over k, both [M][64]. fold [M, K] may be null.
  void (*lut)(const Shape& shape, const float* C, const float* w, const float* fold, float* lut,
              float* low, float* high);

  // table [M][K][64] = round((lut − low)·inverse), at most top.
  void (*quantise)(const Shape& shape, const float* lut, const float* low, const float* inverse,
                   int top, uint8_t* table);

  // (target[i] − factor[i]·extra − base)·inverse, rounded down, within [0, limit].
  void (*thresholds)(const double* target, const double* factor, size_t n, double extra,
                     double base, double inverse, int32_t limit, int32_t* out);

  // Rows of codes [n, M], n ≤ kChunk, against one tile: every lane whose start + Σ_m table entry
  // reaches threshold[row] (scan_rows) or threshold[lane] (scan_lanes); returns the number of hits,
  // at most n. What lies beyond them, below n, may be written too.
  size_t (*scan_rows)(const Shape& shape, int top, const uint8_t* table, const int32_t* start,
                      const uint8_t* codes, size_t n, const int32_t* threshold, Hit* hits);
  size_t (*scan_lanes)(const Shape& shape, int top, const uint8_t* table, const uint8_t* codes,
                       size_t n, const int32_t* threshold, Hit* hits);

  // scan_rows of two tiles that follow each other, with thresholds and hits for each. In few
  // sub-codebooks that is faster: a code is looked at once, and there is more to do meanwhile.
  void (*scan_two)(const Shape& shape, int top, const uint8_t* table, const int32_t* start,
                   const uint8_t* codes, size_t n, const int32_t* const* thresholds,
                   Hit* const* hits, size_t* found);

  // The k-th largest of n finite values, k ≤ n ≤ kMostCounted, by counting: jumps that nobody
  // foresees cost more. May read up to a multiple of 32 values.
  float (*kth_largest)(const float* values, size_t n, size_t k);

  // A bound that at least k of n values reach and that few more do, found by halving what lies
  // between ``least``, which is known to be such a bound, and the largest. n is a multiple of 32.
  float (*near_kth)(const float* values, size_t n, size_t k, float least);

  // How many of n keys are larger than each. Aligned, with room for a multiple of 8.
  void (*ranks)(const uint64_t* keys, size_t n, uint64_t* rank);

  // Mean and variance over the lanes of each hit of offset + sum; offset in the order of its sums.
  void (*moments)(const Hit* hits, size_t n, bool wide, const float* offset, float* mean,
                  float* variance);

  // ⟨q_i, w⟩ of the rows listed, in the canonical order, float64. scratch: score_floats.
  void (*rescore)(const Shape& shape, const float* C, const uint8_t* codes, const uint32_t* rows,
                  size_t n, const float* w, float* scratch, double* out);

  // The same of some sub-codebooks only: adds their products to the sums of rows[i]. C, codes and w
  // point at the first of them, which begins at a dimension of lane 0; a code has stride bytes.
  void (*add_parts)(const Shape& parts, const float* C, const uint8_t* codes, size_t stride,
                    const uint32_t* rows, size_t n, const float* w, float* scratch, Lanes* sums);
};

extern const Isa isa_baseline;
#if defined(__x86_64__)
extern const Isa isa_avx2, isa_avx512;
#endif

}  // namespace raypq
