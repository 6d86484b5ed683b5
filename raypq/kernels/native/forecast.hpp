// Where a row's k-th best score will lie, before its scan. A threshold that starts there spares
// most of what a rising one takes and drops again.
//
// Scores of a row over many classes have a mean and a deviation that a few tiles tell well. How many
// deviations the k-th best lies above the mean is much the same for all rows of a data set: nearly
// all of the rows before lay higher than ``height``. It is only a guess: whoever uses the forecast
// checks it against the truth, and scans a row again where it was too high.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tables.hpp"

namespace raypq {

class Forecast {
 public:
  // Fewer tiles are scanned sooner than sampled.
  static constexpr size_t kFewest = 8;

  Forecast(const ScanTables& tables, size_t rows)
      : t_(tables), mean_(rows), deviation_(rows), hits_(kChunk), threshold_(kChunk) {
    // Tiles are in order of their classes' largest parts: from all over.
    const size_t whole = t_.source.T / kLanes;
    const size_t count = std::clamp<size_t>(whole / kApart, 1, kMost);
    if (possible(t_))
      for (size_t i = 0; i < count; ++i) tiles_.push_back((2 * i + 1) * whole / (2 * count));
  }

  static bool possible(const ScanTables& tables) {
    return tables.source.T / kLanes >= kFewest;
  }

  // Samples rows codes [n, M] whose norms are factor[n].
  void sample(const uint8_t* codes, const double* factor, size_t n) {
    std::fill_n(mean_.begin(), n, 0.0);
    std::fill_n(deviation_.begin(), n, 0.0);
    for (size_t tile : tiles_) add(tile, codes, factor, n);
    for (size_t i = 0; i < n; ++i) {
      mean_[i] /= double(tiles_.size());
      deviation_[i] = std::sqrt(std::max(0.0, deviation_[i] / double(tiles_.size())));
    }
  }

  // A score, in the tables' units, at so many deviations.
  double at(size_t row, float height) const { return mean_[row] + height * deviation_[row]; }

  // How many deviations above the mean a score lies; lowest where that cannot be told.
  float height(size_t row, double score) const {
    const double x = (score - mean_[row]) / deviation_[row];
    return std::isfinite(x) ? float(x) : kUnknown;
  }

  // What nearly all of these lie above; reorders them.
  static float nearly_all_above(std::vector<float>& heights) {
    const auto at = heights.begin() + size_t(double(heights.size()) * kWrong);
    std::nth_element(heights.begin(), at, heights.end());
    return *at;
  }

  static constexpr float kUnknown = -std::numeric_limits<float>::infinity();

 private:
  // One tile of kApart is sampled, kMost at most; the share of rows that may be scanned again.
  static constexpr size_t kApart = 48, kMost = 6;
  static constexpr double kWrong = 0.003;

  void add(size_t tile, const uint8_t* codes, const double* factor, size_t n) {
    const Shape& shape = t_.source.shape;
    const bool wide = shape.M > kNarrow;
    const int32_t* start = t_.start.data() + tile * kLanes;
    const double unit = t_.unit[tile * kLanes];
    alignas(64) float offset[kLanes], mean[kChunk], variance[kChunk];
    for (size_t lane = 0; lane < kLanes; ++lane) offset[Hit::place(lane, wide)] = float(start[lane]);
    for (size_t first = 0; first < n; first += kChunk) {
      const size_t rows = std::min(kChunk, n - first);
      t_.isa.scan_rows(shape, t_.top, t_.table(tile), start, codes + first * shape.M, rows,
                       threshold_.data(), hits_.data());
      t_.isa.moments(hits_.data(), rows, wide, offset, mean, variance);
      for (size_t i = 0; i < rows; ++i) {
        mean_[first + i] +=
            t_.tile_base[tile] + unit * mean[i] + t_.tile_extra[tile] * factor[first + i];
        deviation_[first + i] += unit * unit * variance[i];
      }
    }
  }

  const ScanTables& t_;
  std::vector<size_t> tiles_;
  std::vector<double> mean_, deviation_;
  std::vector<Hit> hits_;
  std::vector<int32_t> threshold_;  // zeros: every row hits
};

}  // namespace raypq
