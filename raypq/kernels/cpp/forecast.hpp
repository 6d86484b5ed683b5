// A forecast of a row's k-th best score before its scan. A cutoff that starts there avoids most of
// the candidates that a slowly rising one keeps and drops again.
//
// Within a data set the k-th best score is predicted well by the mean and the deviation of the
// scores of a few tiles: a linear model, fitted by least squares to rows classified before, and
// lowered until nearly all of them are above it. The caller compares the forecast with the exact
// scores, and scans a row again for which it was too high.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tables.hpp"

namespace raypq {

// A row, all divided by its length: the mean and deviation of some scores, and its k-th best score,
// infinite where it is not known.
struct Observed {
  float mean, deviation, best;

  bool known() const { return std::isfinite(mean + deviation + best); }
};

class Forecast {
 public:
  // With fewer tiles a sample costs more than it saves.
  static bool possible(const ScanTables& tables) { return tables.source.T / kTileWidth >= 8; }

  Forecast(const ScanTables& tables, size_t rows) : t_(tables) {
    if (!possible(t_)) return;
    // Tiles are sorted by their classes' norms, so the sample is spread evenly.
    const size_t whole = t_.source.T / kTileWidth;
    const size_t count = std::clamp<size_t>(whole / kOneIn, 1, kMost);
    for (size_t i = 0; i < count; ++i) tiles_.push_back((2 * i + 1) * whole / (2 * count));
    mean_.resize(rows), variance_.resize(rows), hits_.resize(kChunk), threshold_.resize(kChunk);
  }

  // Takes mean and deviation of rows codes [n, M] from the sampled tiles.
  void sample(const uint8_t* codes, const double* factor, size_t n) {
    std::fill_n(mean_.begin(), n, 0.0);
    std::fill_n(variance_.begin(), n, 0.0);
    for (size_t tile : tiles_) add(tile, codes, factor, n);
  }

  // The observation of a sampled row, given its length and its k-th best score in units.
  Observed observed(size_t row, double length, double best) const {
    const double deviation = std::sqrt(std::max(0.0, variance_[row] / double(tiles_.size())));
    return {float(mean_[row] / double(tiles_.size()) / length), float(deviation / length),
            float(best / length)};
  }

  // The forecast of a sampled row's k-th best score, in units.
  double kth_best(size_t row, double length, const Trend& trend) const {
    const Observed x = observed(row, length, 0);
    return length * (trend.level + trend.by_mean * x.mean + trend.by_deviation * x.deviation);
  }

  // Fits the model; its k is 0 where at most half of the rows are known. Reorders the rows.
  static Trend fit(std::vector<Observed>& rows, size_t k) {
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
    Trend fitted{k, 0, 0, 0};
    if (det > 1e-6 * mm * dd) {
      fitted.by_mean = (mb * dd - db * md) / det;
      fitted.by_deviation = (db * mm - mb * md) / det;
    }
    for (Observed& x : rows)
      x.best = x.known() ? float(x.best - fitted.by_mean * x.mean -
                                 fitted.by_deviation * x.deviation)
                         : float(kNoCutoff);
    const auto low = rows.begin() + size_t(double(rows.size()) * kTooHigh);
    std::nth_element(rows.begin(), low, rows.end(),
                     [](const Observed& x, const Observed& y) { return x.best < y.best; });
    fitted.level = low->best;
    return std::isfinite(fitted.level) ? fitted : Trend{};
  }

 private:
  // One tile in kOneIn is sampled, at most kMost; and the share of rows whose forecast may be too
  // high.
  static constexpr size_t kOneIn = 40, kMost = 8;
  static constexpr double kTooHigh = 0.001;

  void add(size_t tile, const uint8_t* codes, const double* factor, size_t n) {
    const Shape& shape = t_.source.shape;
    const bool wide = shape.M > kNarrow;
    const int32_t* start = t_.start.data() + tile * kTileWidth;
    const double unit = t_.unit[tile * kTileWidth];
    alignas(64) float offset[kTileWidth], mean[kChunk], variance[kChunk];
    for (size_t c = 0; c < kTileWidth; ++c) offset[Hit::index(c, wide)] = float(start[c]);
    for (size_t first = 0; first < n; first += kChunk) {
      const size_t rows = std::min(kChunk, n - first);
      t_.isa.scan_rows(t_.tile(tile), {codes + first * shape.M, rows, shape.M},
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
  std::vector<int32_t> threshold_;  // zeros, so that every row hits
};

}  // namespace raypq
