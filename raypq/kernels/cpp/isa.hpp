// The interface of an instruction set: leaf functions over plain arrays, reached by pointers.
// Shapes as in the Python package: U [N, D], C [M, K, d], B [N, M], D = M·d.
//
// Tables are cut into tiles of 64 classes (or queries). A class's place in its tile is its
// *column*; its place in all tiles, tile·64 + column, is its *slot*.
#pragma once

#include <cstddef>
#include <cstdint>

namespace raypq {

constexpr size_t kTileWidth = 64;   // columns of a tile: the bytes of one cache line
constexpr int kCoarse = 127;        // largest table entry whose double still fits a byte
constexpr int kFinest = 255;        // largest table entry where lines are widened one by one
constexpr size_t kNarrow = 128;     // most sub-codebooks with 16-bit sums: 128·127 + kRoom < 2^15
constexpr size_t kFine = 64;        // the same with entries up to kFinest: 64·255 + kRoom < 2^15
constexpr size_t kFineInParts = 24;  // less, measured, where lines take several registers
constexpr int kRoom = 16383;        // largest start value of a 16-bit sum
constexpr int kNever = 32767;       // a threshold above every 16-bit sum
constexpr size_t kChunk = 256;      // most rows of one call of a scan
constexpr size_t kMostCounted = 128;  // most values of kth_largest
constexpr size_t kMostRanked = 64;    // most keys for which ranks are faster than a sort
constexpr size_t kBlockRows = 4;    // codes of a block in the search of neighbours
constexpr size_t kCodePad = 64;     // floats beyond a codebook that a decode may read

// For functions in headers that every build of isa.cpp includes: always inlined, so that the linker
// cannot pick the body of another instruction set.
#define RAYPQ_SHARED [[gnu::always_inline]] inline

// Sub-codebook sizes.
struct Shape {
  size_t M, K, d;
  RAYPQ_SHARED size_t D() const { return M * d; }
};

// A row with at least one sum that reaches its threshold: the columns of these sums (bit c is
// column c), and the sums Σ_m of table entries of all columns. It is written without a loop over
// columns: how many columns of a row hit is unpredictable, and would cost branch misses.
struct Hit {
  uint64_t columns;
  uint32_t row;
  union alignas(64) {
    uint16_t narrow[kTileWidth];  // up to kNarrow sub-codebooks: even columns, then odd ones
    uint32_t wide[kTileWidth];
  };

  // The index of a column's sum in ``narrow`` or ``wide``.
  RAYPQ_SHARED static size_t index(size_t column, bool is_wide) {
    return is_wide ? column : column % 2 * (kTileWidth / 2) + column / 2;
  }
  RAYPQ_SHARED uint32_t sum(size_t column, bool is_wide) const {
    return is_wide ? wide[column] : narrow[index(column, false)];
  }
};

// A code of the search of neighbours with columns within its limit: bit c is column c.
struct NearHit {
  uint64_t columns;
  uint32_t row;
};

// An inner product in the canonical order: accumulator a adds the dimensions a, a+8, … in order.
struct alignas(64) ExactAccumulators {
  double sum[8];

  RAYPQ_SHARED double total() const {
    const double* s = sum;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  }
};

// Codebooks packed for assignment: [M][K/tile][d][tile]; padding codewords have half = +inf.
struct PackedCodebooks {
  Shape shape;
  size_t K_padded;
  const float* packed;
  const float* half;         // ½‖c‖² [M, K_padded], float32
  const double* half_exact;  // the same in float64
  const float* largest;      // max_k ‖c_mk‖ [M], rounded up
  const float* C;            // unpacked [M, K, d]
};

// Sub-spaces that encode transposes together, its most rows, and the floats of scratch it needs.
RAYPQ_SHARED size_t encode_panel(const Shape& shape) { return shape.d < 128 ? 256 / shape.d : 1; }
constexpr size_t kRowBlock = 64;
RAYPQ_SHARED size_t encode_floats(const Shape& shape, size_t rows) {
  return encode_panel(shape) * shape.d * rows;
}

// Scratch of exact scores. Short parts: kDecoded rows are decoded together, each into D floats and
// the padding that a decode may overwrite. Long parts (d ≥ kLongPart): the weights as float64, each
// part padded with zeros on both sides to whole steps of eight.
constexpr size_t kDecoded = 4, kLongPart = 16;
RAYPQ_SHARED size_t decoded_floats(const Shape& shape) { return shape.D() + kCodePad; }
RAYPQ_SHARED size_t weight_doubles(const Shape& shape) { return shape.M * (shape.d + 14); }
RAYPQ_SHARED size_t score_floats(const Shape& shape) {
  const size_t decoded = kDecoded * decoded_floats(shape);
  const size_t weights = shape.d >= kLongPart ? 2 * weight_doubles(shape) : 0;
  return decoded > weights ? decoded : weights;
}

// float32 scores of codewords [M][K][64], and their minima and maxima over k, both [M][64].
struct Lut {
  float *values, *low, *high;
};

// One tile of uint8 tables.
struct Tile {
  Shape shape;
  int top;               // largest table entry
  const uint8_t* table;  // [M][K][64]
  const int32_t* start;  // [64]: what the sum of each column begins with; unused by scan_columns
};

// The sums of a row over some sub-codebooks, in the form of the instruction set.
struct alignas(64) RowSums {
  uint16_t values[kTileWidth];
};

// Rows of a scan: n codes, ``stride`` bytes apart. before [n]: their sums over the sub-codebooks
// that precede the tile's, or null.
struct ScanRows {
  const uint8_t* codes;
  size_t n, stride;
  const RowSums* before = nullptr;
};

// Converts cutoffs of one tile to thresholds: (cutoff[i] − factor[i]·extra − base)·inverse, rounded
// down, within [0, limit].
struct ThresholdTerms {
  double extra, base, inverse;
  int32_t limit;
};

// Rows picked from an array of codes, ``stride`` bytes each.
struct PickedRows {
  const uint8_t* codes;
  size_t stride;
  const uint32_t* rows;
  size_t n;
};

struct Isa {
  const char* name;
  size_t codeword_tile;
  // Most sub-codebooks with entries up to kFinest: they leave fewer candidates, but are widened one
  // by one, which costs more where a line takes several registers.
  size_t most_fine;

  // B [n, M] of U [n, D]; exact (see encode.inl). scratch: encode_floats of kRowBlock rows,
  // aligned.
  void (*encode)(const PackedCodebooks& books, const float* U, size_t n, float* scratch,
                 uint8_t* B);

  // The float32 values of n float16 values; returns whether all are finite.
  bool (*widen)(const uint16_t* half, size_t n, float* out);

  // lut = float32 ⟨c_mk, w⟩ − fold_mk of 64 weights w [D][64]. fold [M, K] may be null.
  void (*lut)(const Shape& shape, const float* C, const float* w, const float* fold,
              const Lut& lut);

  // table [M][K][64] = round((lut − low)·inverse), at most top.
  void (*quantise)(const Shape& shape, const Lut& lut, const float* inverse, int top,
                   uint8_t* table);

  void (*thresholds)(const double* cutoff, const double* factor, size_t n,
                     const ThresholdTerms& terms, int32_t* out);

  // Rows, n ≤ kChunk, against one tile: the rows with a column whose sum reaches
  // threshold[row] (scan_rows) or threshold[column] (scan_columns). Returns the number of hits;
  // hits[count, n) may be overwritten, too.
  size_t (*scan_rows)(const Tile& tile, const ScanRows& rows, const int32_t* threshold,
                      Hit* hits);
  size_t (*scan_columns)(const Tile& tile, const ScanRows& rows, const int32_t* threshold,
                         Hit* hits);

  // Adds a tile's entries to the sums before: what a scan of the sub-codebooks that follow takes.
  // Up to kNarrow sub-codebooks in all; sums may be rows.before.
  void (*add_rows)(const Tile& tile, const ScanRows& rows, RowSums* sums);

  // scan_rows of ``tile`` and the one that follows it, with thresholds, hits and counts of each.
  // Faster with few sub-codebooks: a code is read once, and more loads are in flight.
  void (*scan_two)(const Tile& tile, const ScanRows& rows, const int32_t* const* thresholds,
                   Hit* const* hits, size_t* count);

  // The k-th largest of n finite values, k ≤ n ≤ kMostCounted, by counting, which has no
  // unpredictable branches. May read up to a multiple of 32 values.
  float (*kth_largest)(const float* values, size_t n, size_t k);

  // A lower bound of the k-th largest of n values that few more than k reach, by bisection between
  // ``least``, a known lower bound, and the maximum. n is a multiple of 32.
  float (*near_kth)(const float* values, size_t n, size_t k, float least);

  // For each of n keys, the number of larger ones. Aligned, with room for a multiple of 8.
  void (*ranks)(const uint64_t* keys, size_t n, uint64_t* rank);

  // Mean and variance over the columns of each hit of offset + sum; offset is indexed as the sums.
  void (*moments)(const Hit* hits, size_t n, bool wide, const float* offset, float* mean,
                  float* variance);

  // ⟨q_i, w⟩ of the rows picked, in the canonical order, float64. scratch: score_floats.
  void (*rescore)(const Shape& shape, const float* C, const PickedRows& rows, const float* w,
                  float* scratch, double* out);

  // The same of some sub-codebooks only: adds their products to the sums of each row. C, codes and
  // w point at the first of them, which begins at a dimension of accumulator 0.
  void (*add_parts)(const Shape& parts, const float* C, const PickedRows& rows, const float* w,
                    float* scratch, ExactAccumulators* sums);

  // Codes against a table [M][K][64] of the search of neighbours, whose sums saturate at 255: the
  // rows with a column whose sum is at most limit[row] or column_limit[column]. Returns their
  // number; all n hits may be overwritten.
  size_t (*near_columns)(const Shape& shape, const uint8_t* table, const PickedRows& rows,
                         const uint8_t* limit, const uint8_t* column_limit, NearHit* hits);

  // The sums of codes [n, M] by such a table: 64 for each, at out + i·stride.
  void (*column_sums)(const Shape& shape, const uint8_t* table, const uint8_t* codes, size_t n,
                      size_t stride, uint8_t* out);

  // Such a table of 64 codes or, for each column, of the least entries of a block of kBlockRows.
  // entries: [M][K][stride], symmetric; stride is K, rounded up to 16.
  void (*near_table)(const Shape& shape, const uint8_t* entries, size_t stride,
                     const uint8_t* codes, bool blocks, uint8_t* out);
};

extern const Isa isa_baseline;
#if defined(__x86_64__)
extern const Isa isa_avx2, isa_avx512;
#endif

}  // namespace raypq
