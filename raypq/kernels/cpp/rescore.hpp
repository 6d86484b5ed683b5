// Exact inner products of many pairs of a row and a class.
//
// Pairs are sorted by class, so that a class's weights are read once for all its rows. Some
// sub-codebooks at a time are applied to many classes, so that codewords come from the L2 cache:
// all of them (1 MB at D = 1000) would not fit.
#pragma once

#include <numeric>
#include <vector>

#include "tables.hpp"

namespace raypq {

class Rescore {
 public:
  explicit Rescore(const ScanTables& tables)
      : t_(tables), sums_(kBatch), scratch_(score_floats(tables.source.shape)) {
    const Shape& s = t_.source.shape;
    const size_t bytes = s.M * s.K * s.d * sizeof(float);
    const size_t passes = (bytes + kPassBytes - 1) / kPassBytes;
    // Every pass begins at a dimension of accumulator 0.
    const size_t step = 8 / std::gcd(size_t(8), s.d);
    parts_ = ((s.M + passes - 1) / passes + step - 1) / step * step;
  }

  void clear() { row_.clear(), class_.clear(); }
  size_t size() const { return row_.size(); }

  void add(uint32_t row, uint32_t t) { row_.push_back(row), class_.push_back(t); }

  uint32_t class_of(size_t pair) const { return class_[pair]; }

  // The inner product of each pair added; codes [., M].
  const double* run(const uint8_t* codes) {
    sort_by_class();
    dot_.resize(size());
    const size_t T = t_.source.T;
    for (size_t first = 0, last = 0; first < T; first = last) {
      while (last < T && begin_[last] - begin_[first] < kBatch) ++last;
      add_up(codes, first, last);
    }
    return dot_.data();
  }

  // The inner product of one pair.
  double one(const uint8_t* codes, uint32_t row, size_t t) {
    const Source& s = t_.source;
    double dot;
    t_.isa.rescore(s.shape, t_.codebooks.data(), {codes, s.shape.M, &row, 1},
                   s.W + t * s.shape.D(), scratch_.data(), &dot);
    return dot;
  }

 private:
  static constexpr size_t kBatch = 16384, kPassBytes = size_t(256) << 10;

  void sort_by_class() {
    const size_t n = size(), T = t_.source.T;
    begin_.assign(T + 2, 0);
    for (uint32_t t : class_) ++begin_[t + 2];
    for (size_t t = 2; t < T + 2; ++t) begin_[t] += begin_[t - 1];
    sorted_.resize(n), pair_.resize(n);
    for (size_t i = 0; i < n; ++i) {
      const uint32_t to = begin_[class_[i] + 1]++;  // becomes the begin of the next class
      sorted_[to] = row_[i], pair_[to] = uint32_t(i);
    }
  }

  // Computes the products of classes [first, last).
  void add_up(const uint8_t* codes, size_t first, size_t last) {
    const Source& s = t_.source;
    const size_t from = begin_[first], n = begin_[last] - from;
    if (sums_.size() < n) sums_ = Array<ExactAccumulators>(n);
    std::fill_n(sums_.data(), n, ExactAccumulators{});
    for (size_t m = 0; m < s.shape.M; m += parts_) {
      const Shape parts{std::min(parts_, s.shape.M - m), s.shape.K, s.shape.d};
      const float* w = s.W + first * s.shape.D() + m * s.shape.d;
      for (size_t t = first; t < last; ++t, w += s.shape.D()) {
        if (t + 1 < last && begin_[t + 2] > begin_[t + 1])  // too short for the hardware prefetcher
          for (size_t j = 0; j < parts.D(); j += 16) __builtin_prefetch(w + s.shape.D() + j);
        const PickedRows rows{codes + m, s.shape.M, sorted_.data() + begin_[t],
                              begin_[t + 1] - begin_[t]};
        if (rows.n)
          t_.isa.add_parts(parts, t_.codebooks.data() + m * s.shape.K * s.shape.d, rows, w,
                           scratch_.data(), sums_.data() + (begin_[t] - from));
      }
    }
    for (size_t i = 0; i < n; ++i) dot_[pair_[from + i]] = sums_[i].total();
  }

  const ScanTables& t_;
  size_t parts_;  // sub-codebooks of one pass
  std::vector<uint32_t> row_, class_;            // of each pair
  std::vector<uint32_t> begin_, sorted_, pair_;  // by class: rows of its pairs, and their indices
  std::vector<double> dot_;
  Array<ExactAccumulators> sums_;
  Array<float> scratch_;
};

}  // namespace raypq
