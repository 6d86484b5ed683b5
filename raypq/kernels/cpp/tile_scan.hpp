// Scans of rows against tiles of 64 queries, for top-k and range search.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "scan.hpp"
#include "tile_parts.hpp"

namespace raypq {

// Rows in the order in which they are scanned, with their terms.
struct Rows {
  size_t n;
  const uint8_t* codes;   // [n, M]
  const uint32_t* numbers;  // row numbers in B; null: first + i
  uint32_t first;
  const RowTerms* terms;  // null: scale 1 for all

  uint32_t number(size_t i) const { return numbers ? numbers[i] : first + uint32_t(i); }
};

// One thread's scan; bounds are in units (bounds.hpp).
class TileScan {
 public:
  // Rows whose codes stay in the cache while they are scanned against all tiles.
  static constexpr size_t kRows = 16384;

  TileScan(const ScanTables& tables, const uint8_t* B)
      : t_(tables), B_(B), hits_(kChunk), scratch_(score_floats(tables.source.shape)),
        parts_(tables) {}

  // The tie margin of a query.
  double tie_margin(size_t query) const {
    const Source& s = t_.source;
    double squared = 0;
    for (size_t j = 0; j < s.shape.D(); ++j) {
      const double w = s.W[query * s.shape.D() + j];
      squared += w * w;
    }
    const double longest = s.metric == Metric::kCosine ? 1.0 : t_.longest_code;
    const double offset = s.metric == Metric::kL2 ? t_.longest_code * t_.longest_code : 0.0;
    const double product = longest * std::sqrt(squared) * (1 + 0x1p-40);
    return t_.tie_margin(product + offset + std::fabs(s.bias[query]), 1.0);
  }

  // Rows [at, at + n) of B, n ≤ kRows; valid until the next call.
  Rows rows(size_t at, size_t n) {
    Rows result{n, B_ + at * t_.source.shape.M, nullptr, uint32_t(at), nullptr};
    if (t_.source.metric == Metric::kCosine) sort_by_norm(result);
    return result;
  }

  // Calls add(query, lower, upper, row) for every row whose score can reach cutoff(query), which is
  // called again after ``chunk`` rows, then after twice as many, up to kChunk.
  template <class Cutoff, class Add>
  void run(size_t tile, const Rows& rows, size_t chunk, Cutoff cutoff, Add add) {
    const Shape& shape = t_.source.shape;
    const size_t slot0 = tile * kTileWidth;
    const uint64_t real = ~uint64_t(0) >> (kTileWidth - t_.width(tile));
    const bool wide = shape.M > kNarrow;
    int32_t threshold[kTileWidth];
    const size_t run = parts_.run(rows.n);
    for (size_t begin = 0; begin < rows.n; begin += run) {
      const size_t end = std::min(rows.n, begin + run);
      parts_.begin(tile, rows.codes + begin * shape.M, end - begin);
      for (size_t first = begin, n; first < end; first += n, chunk = std::min(2 * chunk, kChunk)) {
        n = std::min(chunk, end - first);
        set_thresholds(tile, rows, first, n, cutoff, threshold);
        const size_t n_hits = t_.isa.scan_columns(parts_.last(tile), parts_.rows(first - begin, n),
                                                  threshold, hits_.data());
        for (size_t h = 0; h < n_hits; ++h) {
          const size_t i = first + hits_[h].row;
          const double scale = rows.terms ? rows.terms[i].scale : 1.0;
          for (uint64_t left = hits_[h].columns & real; left; left &= left - 1) {
            const size_t column = size_t(__builtin_ctzll(left)), slot = slot0 + column;
            const double value =
                (t_.base[slot] + t_.unit[slot] * hits_[h].sum(column, wide)) * scale +
                t_.extra[slot];
            const double error = t_.error[slot] * scale;
            add(slot, value - error, value + error, rows.number(i));
          }
        }
      }
    }
  }

  // The exact scores of n rows for one query.
  void exact(size_t query, const uint32_t* rows, size_t n, float* scores) {
    const Source& s = t_.source;
    dot_.resize(n);
    t_.isa.rescore(s.shape, t_.codebooks.data(), {B_, s.shape.M, rows, n},
                   s.W + query * s.shape.D(), scratch_.data(), dot_.data());
    for (size_t i = 0; i < n; ++i) {
      const RowTerms row = row_terms(s, B_ + size_t(rows[i]) * s.shape.M);
      scores[i] = float((dot_[i] * row.scale + row.offset) + s.bias[query]);
    }
  }

 private:
  // With cosine a row's norm multiplies the threshold. Rows are sorted by it, so that one set of
  // thresholds holds for a chunk.
  void sort_by_norm(Rows& rows) {
    const size_t M = t_.source.shape.M;
    // The upper half of a norm's bits, whose order is that of norms, and the row.
    std::vector<uint64_t> by_norm(rows.n);
    std::vector<RowTerms> terms(rows.n);
    for (size_t i = 0; i < rows.n; ++i) {
      terms[i] = row_terms(t_.source, rows.codes + i * M);
      by_norm[i] = std::bit_cast<uint64_t>(terms[i].factor) >> 32 << 32 | i;
    }
    std::sort(by_norm.begin(), by_norm.end());
    codes_.resize(rows.n * M), numbers_.resize(rows.n), terms_.resize(rows.n);
    for (size_t i = 0; i < rows.n; ++i) {
      const uint32_t from = uint32_t(by_norm[i]);
      std::copy_n(rows.codes + from * M, M, codes_.data() + i * M);
      numbers_[i] = rows.first + from;
      terms_[i] = terms[from];
    }
    rows.codes = codes_.data(), rows.numbers = numbers_.data(), rows.terms = terms_.data();
  }

  template <class Cutoff>
  void set_thresholds(size_t tile, const Rows& rows, size_t first, size_t n, Cutoff& cutoff,
                      int32_t* threshold) {
    double least = 1, most = 1;
    if (rows.terms)  // sorted by 20 bits of the mantissa: the ends are off by at most one of them
      least = rows.terms[first].factor * (1 - 0x1p-20),
      most = rows.terms[first + n - 1].factor * (1 + 0x1p-20);
    for (size_t c = 0; c < kTileWidth; ++c) {
      const size_t slot = tile * kTileWidth + c;
      threshold[c] = t_.limit;
      if (c >= t_.width(tile)) continue;
      const double product = cutoff(slot) - t_.extra[slot];
      const double low =
          std::min(product * least, product * most) - t_.base[slot] - t_.error[slot];
      const double x = low / t_.unit[slot];
      threshold[c] = x > 0 ? int32_t(std::min(x, double(t_.limit))) : 0;
    }
  }

  const ScanTables& t_;
  const uint8_t* B_;
  std::vector<Hit> hits_;
  Array<float> scratch_;
  std::vector<double> dot_;
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> numbers_;
  std::vector<RowTerms> terms_;
  TileParts parts_;
};

}  // namespace raypq
