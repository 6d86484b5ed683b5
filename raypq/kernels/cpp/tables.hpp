// Classes or queries prepared for scans: uint8 tables, tile by tile.
//
// Codebooks and weights are scaled by powers of two to lie within 1, so that scores of any
// magnitude stay within float32 while the tables are built; ``down`` converts a score to these
// units.
//
// The inner product of slot t and a code b is
//     base[t] + unit[t]·Σ_m table[m][b_m][t],  with an error of at most error[t],
// error = M·unit·(½ + 2⁻¹⁰) + (d + 6)·2⁻²³·Σ_m (max_k‖c_mk‖·‖w_tm‖ + max_k fold_mk): rounding to
// whole units, and float32 arithmetic while the table was built.
#pragma once

#include <limits>
#include <vector>

#include "bounds.hpp"
#include "isa.hpp"
#include "support.hpp"

namespace raypq {

enum class Metric { kL2, kCosine, kDot };

// The arrays of the Python object, C-contiguous; they outlive the tables.
struct Source {
  Shape shape;
  size_t T;
  Metric metric;
  const float* C;       // [M, K, d]
  const float* W;       // [T, D]
  const double* bias;   // [T]
  const double* norms;  // [M, K]
  const double* radius = nullptr;  // [T]: added to a score, times ‖q‖ (leaves.hpp); or null
};

// A linear model of a row's k-th best score from the mean and the deviation of some of its scores,
// all divided by the row's length (see Forecast); k is 0 where there is none.
struct Trend {
  size_t k = 0;
  double level = 0, by_mean = 0, by_deviation = 0;
};

class ScanTables {
 public:
  // across_rows: for top-k over rows, where the offset of a row counts: for l2 the tables then
  // include −‖c‖². Otherwise for top-k over classes, where the columns of a tile share their unit,
  // so that a row has one threshold for all of them. keep_order: classes stay in their tiles.
  ScanTables(const Source& source, bool across_rows, const Isa& isa, size_t threads,
             bool keep_order = false);

  size_t tiles() const { return (source.T + kTileWidth - 1) / kTileWidth; }
  size_t tile_bytes() const { return source.shape.M * source.shape.K * kTileWidth; }
  const uint8_t* table(size_t tile) const { return data_.data() + tile * tile_bytes(); }
  Tile tile(size_t tile) const {
    return {source.shape, top, table(tile), start.data() + tile * kTileWidth};
  }
  // Classes in a tile: kTileWidth, or fewer in the last one.
  size_t width(size_t tile) const {
    return tile + 1 < tiles() ? kTileWidth : source.T - tile * kTileWidth;
  }
  size_t bytes() const { return data_.size(); }

  // The tie margin (bounds.hpp) of scores whose terms sum to at most ``largest`` in magnitude;
  // ``factor``·down converts it to units. Infinite where float32 overflows.
  double tie_margin(double largest, double factor) const {
    if (!(largest < kOverflow)) return std::numeric_limits<double>::infinity();
    return (largest * 0x1p-21 + 0x1p-146) * factor * down + 0x1p-146;
  }

  Source source;
  const Isa& isa;
  bool across_rows;
  int top;      // largest table entry
  double down;            // from scores to units: a power of two
  double longest_weight;  // max_t ‖w_t‖
  double longest_code;    // an upper bound of ‖q(b)‖ over all codes
  double largest_bias;    // max_t |bias_t|
  Array<float> codebooks;       // padded for decode
  std::vector<uint32_t> order;  // by slot: the class
  // By slot. extra is the bias if a row's factor multiplies it (cosine), or across rows; and the
  // radius, where there is one, which ‖q‖ multiplies.
  std::vector<double> base, unit, error, extra;
  // By slot: what a sum begins with. By tile: the base that a start of 0 stands for, the largest
  // error and the largest extra.
  std::vector<int32_t> start;
  std::vector<double> tile_base, tile_error, tile_extra;
  int32_t limit;  // a threshold that no sum reaches
  // Of all classifications so far: rows whose forecast or likely cutoff was too high; pairs of a row
  // and a class that the scans left, and scores computed exactly.
  mutable std::atomic<size_t> rescans{0}, candidates{0}, exact_scores{0};
  mutable std::mutex guard;  // of trend
  mutable Trend trend;       // of the rows classified last

 private:
  static constexpr double kOverflow = 0x1p126;  // scores below it cannot overflow float32
  struct Scratch;
  struct ScaledCodebooks;
  double fit_float32(int units) const;
  void sort_classes(bool keep_order);
  void build(size_t tile, const ScaledCodebooks& scaled, const Scratch& scratch);
  void set_starts(size_t tile);
  double refit = 1;  // multiplies ``down`` once the tables are built, see fit_float32
  Array<uint8_t> data_;
};

// The terms of a row: score = scale·⟨q, w⟩ + offset + bias. factor is 1/scale, or 0 where scale is
// 0; squared is ‖q‖².
struct RowTerms {
  double squared, scale, offset, factor;
};

RowTerms row_terms(const Source& source, const uint8_t* code);
RowTerms row_terms(Metric metric, double squared);

}  // namespace raypq
