// Where a row's k-th best score will lie at least, told before its scan. A threshold that starts
// there spares most of what a rising one takes and drops again.
//
// Among the rows of a data set it follows well from the mean and the deviation of the scores of a
// few tiles: a linear trend, by least squares over the rows classified before, lowered until nearly
// all of these rows are above it. That is a guess only: whoever uses it checks it against the truth,
// and scans a row again where it was too high.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tables.hpp"

namespace raypq {

// A row, all in its length: the mean and deviation of some scores, and its k-th best score; lowest
// where that is not known.
struct Observed {
  float mean, deviation, best;

  bool known() const { return std::isfinite(mean + deviation + best); }
};

class Forecast {
 public:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  // Fewer tiles are scanned sooner than sampled.
  static bool possible(const ScanTables& tables) { return tables.source.T / kLanes >= 8; }

  Forecast(const ScanTables& tables, size_t rows) : t_(tables) {
    if (!possible(t_)) return;
    // Tiles are in order of their classes' largest parts: from all over.
    const size_t whole = t_.source.T / kLanes;
    const size_t count = std::clamp<size_t>(whole / kApart, 1, kMost);
    for (size_t i = 0; i < count; ++i) tiles_.push_back((2 * i + 1) * whole / (2 * count));
    mean_.resize(rows), variance_.resize(rows), hits_.resize(kChunk), threshold_.resize(kChunk);
  }

  // Samples rows codes [n, M].
  void sample(const uint8_t* codes, const double* factor, size_t n) {
    std::fill_n(mean_.begin(), n, 0.0);
    std::fill_n(variance_.begin(), n, 0.0);
    for (size_t tile : tiles_) add(tile, codes, factor, n);
  }

  // What was observed of a row, given its length and its k-th best score in the tables' units.
  Observed observed(size_t row, double length, double best) const {
    const double deviation = std::sqrt(std::max(0.0, variance_[row] / double(tiles_.size())));
    return {float(mean_[row] / double(tiles_.size()) / length), float(deviation / length),
            float(best / length)};
  }

  // The forecast in the tables' units.
  double best(size_t row, double length, const Trend& trend) const {
    const Observed x = observed(row, length, 0);
    return length * (trend.level + trend.by_mean * x.mean + trend.by_deviation * x.deviation);
  }

  // k is 0 in the result where too little is known. Reorders the rows.
  static Trend trend(std::vector<Observed>& rows, size_t k) {
    const size_t n = size_t(std::partition(rows.begin(), rows.end(),
                                           [](const Observed& x) { return x.known(); }) -
                            rows.begin());
    if (n < rows.size() / 2 + 1) return {};
    double m = 0, d = 0, b = 0;
    for (size_t i = 0; i < n; ++i) m += rows[i].mean, d += rows[i].deviation, b += rows[i].best;
    m /= double(n), d /= double(n), b /= double(n);
    double mm = 0, md = 0, dd = 0, mb = 0, db = 0;
    for (size_t i = 0; i < n; ++i) {
      const double x = rows[i].mean - m, y = rows[i].deviation - d, z = rows[i].best - b;
      mm += x * x, md += x * y, dd += y * y, mb += x * z, db += y * z;
    }
    const double det = mm * dd - md * md;
    Trend found{k, 0, 0, 0};
    if (det > 1e-6 * mm * dd) {
      found.by_mean = (mb * dd - db * md) / det;
      found.by_deviation = (db * mm - mb * md) / det;
    }
    for (Observed& x : rows)
      x.best = x.known() ? float(x.best - found.by_mean * x.mean -
                                 found.by_deviation * x.deviation)
                         : kLowest;
    const auto low = rows.begin() + size_t(double(rows.size()) * kWrong);
    std::nth_element(rows.begin(), low, rows.end(),
                     [](const Observed& x, const Observed& y) { return x.best < y.best; });
    found.level = low->best;
    return std::isfinite(found.level) ? found : Trend{};
  }

 private:
  // One tile of kApart is sampled, kMost at most; the share of rows that may be scanned again.
  static constexpr size_t kApart = 40, kMost = 8;
  static constexpr double kWrong = 0.001;

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
        variance_[first + i] += unit * unit * variance[i];
      }
    }
  }

  const ScanTables& t_;
  std::vector<size_t> tiles_;
  std::vector<double> mean_, variance_;  // sums over the tiles
  std::vector<Hit> hits_;
  std::vector<int32_t> threshold_;  // zeros: every row hits
};

}  // namespace raypq
