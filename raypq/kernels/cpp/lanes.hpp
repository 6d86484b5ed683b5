// Rows of a store against tiles of 64 queries: what both ways of searching share.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "scan.hpp"

namespace raypq {

// Rows in the order they are scanned, with what they add.
struct Rows {
  size_t n;
  const uint8_t* codes;   // [n, M]
  const uint32_t* names;  // their numbers in the store; null: first + i
  uint32_t first;
  const RowTerms* terms;  // null: scale 1 for all

  uint32_t name(size_t i) const { return names ? names[i] : first + uint32_t(i); }
};

// One thread's scan. Scores are compared in the tables' units: score·down.
class LaneScan {
 public:
  // Rows whose codes stay in the cache while the query tiles take turns.
  static constexpr size_t kRows = 16384;

  LaneScan(const ScanTables& tables, const uint8_t* B)
      : t_(tables), B_(B), hits_(kChunk), scratch_(score_floats(tables.source.shape)) {}

  // How far below a query's limit a score may lie and still count, in the tables' units.
  double slack(size_t query) const {
    const Source& s = t_.source;
    double squared = 0;
    for (size_t j = 0; j < s.shape.D(); ++j) {
      const double w = s.W[query * s.shape.D() + j];
      squared += w * w;
    }
    const double reach = s.metric == Metric::kCosine ? 1.0 : t_.longest;
    const double offset = s.metric == Metric::kL2 ? t_.longest * t_.longest : 0.0;
    return t_.slack(reach * std::sqrt(squared) * (1 + 0x1p-40) + offset + std::fabs(s.bias[query]),
                    1.0);
  }

  // Store rows [at, at + n), n ≤ kRows; valid until the next call.
  Rows rows(size_t at, size_t n) {
    Rows found{n, B_ + at * t_.source.shape.M, nullptr, uint32_t(at), nullptr};
    if (t_.source.metric == Metric::kCosine) sort_by_norm(found);
    return found;
  }

  // Calls keep(query, lower, upper, row) for every row whose score can reach target(query), which
  // is asked for anew after ``chunk`` rows, then after twice as many, up to kChunk.
  template <class Target, class Keep>
  void scan(size_t tile, const Rows& rows, size_t chunk, Target target, Keep keep) {
    const Shape& shape = t_.source.shape;
    const uint8_t* table = t_.table(tile);
    const size_t lanes = tile * kLanes;
    const uint64_t real = ~uint64_t(0) >> (kLanes - t_.lanes(tile));
    const bool wide = shape.M > kNarrow;
    int32_t threshold[kLanes];
    touch(table, t_.tile_bytes());
    for (size_t first = 0; first < rows.n; first += chunk, chunk = std::min(2 * chunk, kChunk)) {
      const size_t n = std::min(chunk, rows.n - first);
      set_thresholds(tile, rows, first, n, target, threshold);
      const size_t found = t_.isa.scan_lanes(shape, t_.top, table, rows.codes + first * shape.M, n,
                                             threshold, hits_.data());
      for (size_t h = 0; h < found; ++h) {
        const size_t i = first + hits_[h].row;
        const double scale = rows.terms ? rows.terms[i].scale : 1.0;
        for (uint64_t left = hits_[h].lanes & real; left; left &= left - 1) {
          const size_t lane = size_t(__builtin_ctzll(left)), at = lanes + lane;
          const double value =
              (t_.base[at] + t_.unit[at] * hits_[h].sum(lane, wide)) * scale + t_.extra[at];
          const double error = t_.error[at] * scale;
          keep(at, value - error, value + error, rows.name(i));
        }
      }
      chunk = n;
    }
  }

  // The exact scores of n rows for one query.
  void exact(size_t query, const uint32_t* rows, size_t n, float* scores) {
    const Source& s = t_.source;
    dot_.resize(n);
    t_.isa.rescore(s.shape, t_.codebooks.data(), B_, rows, n, s.W + query * s.shape.D(),
                   scratch_.data(), dot_.data());
    for (size_t i = 0; i < n; ++i) {
      const RowTerms row = row_terms(s, B_ + size_t(rows[i]) * s.shape.M);
      scores[i] = float((dot_[i] * row.scale + row.offset) + s.bias[query]);
    }
  }

 private:
  // Under cosine a row's norm multiplies the threshold. Rows alike in it stand together, so that
  // one set of thresholds serves a chunk.
  void sort_by_norm(Rows& rows) {
    const size_t M = t_.source.shape.M;
    // The upper half of a norm's bits, which sort as it does whatever its magnitude, and the row.
    std::vector<uint64_t> by_norm(rows.n);
    std::vector<RowTerms> terms(rows.n);
    for (size_t i = 0; i < rows.n; ++i) {
      terms[i] = row_terms(t_.source, rows.codes + i * M);
      by_norm[i] = std::bit_cast<uint64_t>(terms[i].factor) >> 32 << 32 | i;
    }
    std::sort(by_norm.begin(), by_norm.end());
    codes_.resize(rows.n * M), names_.resize(rows.n), terms_.resize(rows.n);
    for (size_t i = 0; i < rows.n; ++i) {
      const uint32_t from = uint32_t(by_norm[i]);
      std::copy_n(rows.codes + from * M, M, codes_.data() + i * M);
      names_[i] = rows.first + from;
      terms_[i] = terms[from];
    }
    rows.codes = codes_.data(), rows.names = names_.data(), rows.terms = terms_.data();
  }

  template <class Target>
  void set_thresholds(size_t tile, const Rows& rows, size_t first, size_t n, Target& target,
                      int32_t* threshold) {
    double least = 1, most = 1;
    if (rows.terms)  // sorted by 20 bits of the mantissa, so the ends are off by one of them at most
      least = rows.terms[first].factor * (1 - 0x1p-20),
      most = rows.terms[first + n - 1].factor * (1 + 0x1p-20);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t at = tile * kLanes + lane;
      threshold[lane] = t_.limit;
      if (lane >= t_.lanes(tile)) continue;
      const double wanted = target(at) - t_.extra[at];
      const double low = std::min(wanted * least, wanted * most) - t_.base[at] - t_.error[at];
      const double x = low / t_.unit[at];
      threshold[lane] = x > 0 ? int32_t(std::min(x, double(t_.limit))) : 0;
    }
  }

  const ScanTables& t_;
  const uint8_t* B_;
  std::vector<Hit> hits_;
  Array<float> scratch_;
  std::vector<double> dot_;
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> names_;
  std::vector<RowTerms> terms_;
};

}  // namespace raypq
