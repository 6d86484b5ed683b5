// The candidates of each row of a block in classification: all classes that its bounds cannot
// exclude from the k best (see bounds.hpp).
//
// Like Shortlist, but for many rows with few candidates each. The lists together do not fit the
// cache, so cutoffs are raised from time to time for all rows in order, which can be prefetched.
// Only a lower bound of each candidate is stored; it may be too high, and the caller checks
// cutoff() against the exact scores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "bounds.hpp"
#include "support.hpp"

namespace raypq {

class Candidates {
 public:
  static constexpr size_t kAhead = 8;  // rows between the prefetch of a list and its use

  // A class, by its slot, and its lower bound.
  struct Entry {
    float lower;
    uint32_t slot;
  };

  // Capacity of a row's list: bounded, however many of the T classes tie. Whole blocks of kWhole,
  // and more than T if it may hold all classes, so that it is never full then.
  static size_t capacity(size_t k, size_t T) {
    return (std::min(6 * k + kWhole - 1, T) / kWhole + 1) * kWhole;
  }
  static size_t bytes(size_t k, size_t T) { return capacity(k, T) * sizeof(Entry); }

  Candidates(const Isa& isa, size_t rows, size_t k, size_t T)
      : isa_(isa), k_(k), capacity_(capacity(k, T)), count_(rows), compacted_(rows),
        entries_(rows * capacity_), cutoff_(rows, kNoCutoff), tie_margin_(rows),
        values_(capacity_) {}

  // Sets the bound width of each tile.
  void restart(std::vector<double> bound_width) { bound_width_ = std::move(bound_width); }

  // Empties a row's list and sets its first cutoff.
  void reset(size_t row, double tie_margin, double cutoff) {
    count_[row] = compacted_[row] = 0;
    cutoff_[row] = cutoff;
    tie_margin_[row] = tie_margin;
  }

  // The cutoff of each row: of ``reset``, or kth_lower − tie_margin once that is more.
  const double* cutoff() const { return cutoff_.data(); }
  double tie_margin(size_t row) const { return tie_margin_[row]; }

  size_t count(size_t row) const { return count_[row]; }
  Entry* begin(size_t row) const { return entries_.data() + row * capacity_; }
  Entry* end(size_t row) const { return begin(row) + count(row); }

  // The upper bound of a candidate.
  double upper(Entry c) const { return double(c.lower) + bound_width_[c.slot / kTileWidth]; }

  // Whether n more candidates fit; the caller writes them to end(), then calls grow.
  bool fits(size_t row, size_t n) const { return count(row) + n < capacity_; }
  void grow(size_t row, size_t n) { count_[row] += uint32_t(n); }

  // Prefetches the place of the next push, or the whole list.
  void prefetch_end(size_t row) const { __builtin_prefetch(end(row), 1); }
  void prefetch(size_t row) const {
    for (const Entry* c = begin(row); c < end(row); c += 64 / sizeof(Entry))
      __builtin_prefetch(c, 1);
  }

  // Appends a candidate. Where bounds alone leave too many, resolve(row) is called: it must move
  // the k best to the front, with their exact scores as lower bounds.
  template <class Resolve>
  void push(size_t row, Entry c, Resolve&& resolve) {
    uint32_t& count = count_[row];
    begin(row)[count] = c;
    if (__builtin_expect(++count < capacity_, 1)) return;
    compact(row);
    if (count <= capacity_ - capacity_ / 8) return;
    resolve(row);
    count = uint32_t(k_);
  }

  // Raises the cutoffs of rows [first, last) that have new candidates.
  void sweep(size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) {
      if (row + kAhead < last) prefetch(row + kAhead);
      if (count(row) >= std::max<size_t>(k_, compacted_[row] + kFew)) compact(row);
    }
  }

  // Raises a row's cutoff and drops what it excludes.
  void compact(size_t row) {
    const size_t n = count(row);
    if (n >= k_) cutoff_[row] = std::max(cutoff_[row], kth_lower(row) - tie_margin_[row]);
    const double cutoff = cutoff_[row];
    Entry* const entries = begin(row);
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) {  // branchless: the predicate is unpredictable
      const Entry c = entries[i];
      entries[left] = c;
      left += upper(c) >= cutoff;
    }
    count_[row] = compacted_[row] = uint32_t(left);
  }

  // The number of candidates picked, and the largest upper bound of the others.
  struct Picked {
    uint32_t count;
    float rest_upper;
  };

  // Moves to the front the candidates that reach kth_lower + pick_raise − tie_margin.
  Picked pick(size_t row, double pick_raise) {
    const size_t n = count(row);
    if (n <= k_) return {uint32_t(n), float(kNoCutoff)};
    const double least = kth_lower(row) + pick_raise - tie_margin_[row];
    Entry* const entries = begin(row);
    size_t front = 0;
    double rest_upper = kNoCutoff;
    for (size_t i = 0; i < n; ++i) {  // branchless
      const Entry c = entries[i];
      const double upper_bound = upper(c);
      entries[i] = entries[front];
      entries[front] = c;
      front += upper_bound >= least;
      rest_upper = std::max(rest_upper, upper_bound >= least ? kNoCutoff : upper_bound);
    }
    return {uint32_t(front), round_up(rest_upper)};
  }

 private:
  static constexpr size_t kFew = 3;  // new candidates for which a compaction does not pay
  static constexpr size_t kWhole = 32;  // kth_largest reads whole blocks of that many

  double kth_lower(size_t row) {
    const size_t n = count(row);
    const Entry* entries = begin(row);
    for (size_t i = 0; i < n; ++i) values_[i] = entries[i].lower;
    if (n <= kMostCounted) return isa_.kth_largest(values_.data(), n, k_);
    std::nth_element(values_.data(), values_.data() + (k_ - 1), values_.data() + n,
                     std::greater<float>());
    return values_[k_ - 1];
  }

  const Isa& isa_;
  size_t k_, capacity_;
  std::vector<uint32_t> count_, compacted_;  // candidates now, and after the last compaction
  Array<Entry> entries_;  // [rows][capacity]
  std::vector<double> cutoff_, tie_margin_, bound_width_;
  Array<float> values_;
};

}  // namespace raypq
