// What a scan needs of the classes or queries, made ready once: uint8 tables, tile by tile.
//
// Codebooks and weights are scaled by powers of two to lie within 1, so that scores of any magnitude
// stay within float32 while the tables are made; ``down`` takes a score to these units.
//
// The inner product of lane t and a code b is
//     base[t] + unit[t]·Σ_m table[m][b_m][t],  off by at most error[t],
// error = M·unit·(½ + 2⁻¹⁰) + (d + 6)·2⁻²³·Σ_m (max_k‖c_mk‖·‖w_tm‖ + max_k fold_mk): rounding to
// whole units, and float32 arithmetic while the table was made.
#pragma once

#include <limits>
#include <vector>

#include "isa.hpp"
#include "support.hpp"

namespace raypq {

enum class Metric { kL2, kCosine, kDot };

// The Python object's arrays; all C-contiguous and alive as long as they are used.
struct Source {
  Shape shape;
  size_t T;
  Metric metric;
  const float* C;       // [M, K, d]
  const float* W;       // [T, D]
  const double* bias;   // [T]
  const double* norms;  // [M, K]
};

// How the k-th best score of a row follows from the mean and the deviation of some of its scores, all
// in lengths of the row (see Forecast); k is 0 where nothing is known.
struct Trend {
  size_t k = 0;
  double level = 0, by_mean = 0, by_deviation = 0;
};

class ScanTables {
 public:
  // across_rows: for top-k over rows, where what a row adds to all its scores counts: under l2 the
  // tables then hold −‖c‖² too. Otherwise for top-k over lanes, where the lanes of a tile share
  // their unit, so that one number is the threshold of them all.
  ScanTables(const Source& source, bool across_rows, const Isa& isa, size_t threads);

  size_t tiles() const { return (source.T + kLanes - 1) / kLanes; }
  size_t tile_bytes() const { return source.shape.M * source.shape.K * kLanes; }
  const uint8_t* table(size_t tile) const { return data_.data() + tile * tile_bytes(); }
  size_t lanes(size_t tile) const {
    return tile + 1 < tiles() ? kLanes : source.T - tile * kLanes;
  }
  size_t bytes() const { return data_.size(); }

  // How far apart two scores may lie, in the tables' units, and still tie once they are rounded to
  // float32, as are the bounds that are kept of them. ``largest`` bounds the parts of a score;
  // ``factor`` takes it to the units, beside ``down``. Infinite where float32 overflows.
  double slack(double largest, double factor) const {
    if (!(largest < kOverflow)) return std::numeric_limits<double>::infinity();
    return (largest * 0x1p-21 + 0x1p-146) * factor * down + 0x1p-146;
  }

  Source source;
  const Isa& isa;
  bool across_rows;
  int top;      // largest table entry
  double down;  // from scores to the tables' units: a power of two
  double widest;  // max_t ‖w_t‖, as given
  double longest;  // an upper bound of ‖q(b)‖ over all codes, as given
  double strongest;  // max_t |bias_t|
  Array<float> codebooks;  // as given, padded for decode
  std::vector<uint32_t> order;  // which class lane (tile·64 + l) is
  // By lane (tile·64 + l). extra is bias where a row's norm multiplies it, see row_factor.
  std::vector<double> base, unit, error, extra;
  // By lane: where a 16-bit (or wide) sum starts. By tile: what a start of 0 stands for, the
  // largest error and the largest extra.
  std::vector<int32_t> start;
  std::vector<double> tile_base, tile_error, tile_extra;
  int32_t limit;  // a threshold that no sum reaches
  mutable std::atomic<size_t> rescans{0};  // rows of which a likely threshold was wrong
  mutable std::mutex guard;  // of the trend
  mutable Trend trend;       // of the rows classified last

 private:
  static constexpr double kOverflow = 0x1p126;  // a score below it is sure to fit float32
  struct Scratch;
  double fit(int units) const;
  void sort_lanes();
  void build(size_t tile, const float* scaled, const float* fold, const double* parts,
             const Scratch& scratch);
  void set_starts(size_t tile);
  double compact = 1;  // what ``down`` is multiplied by once the tables are made
  Array<uint8_t> data_;
};

// What a row of codes adds: score = scale·⟨q, w⟩ + offset + bias. factor is 1/scale, and 1 or 0
// where scale is.
struct RowTerms {
  double squared, scale, offset, factor;
};

RowTerms row_terms(const Source& source, const uint8_t* code);

}  // namespace raypq
