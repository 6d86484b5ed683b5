// What classification keeps for each row of a block: every class that its bounds cannot yet exclude
// from the k best. As Shortlist, but made for many rows with few candidates each: thresholds move now
// and then for all rows in their order, for the lists do not fit the cache, and in order they can be
// asked for ahead.
//
// Of each candidate a lower bound is kept, which may be only likely (the caller checks target()
// against the truth); its upper bound is that plus the ``reach`` of its tile. ``theta`` is the k-th best
// lower bound; what cannot reach theta − slack is dropped. slack covers the rounding to float32 of
// scores and of these bounds, where unequal scores may tie and the lower index wins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "support.hpp"

namespace raypq {

// The least float not below x.
inline float round_up(double x) {
  const float y = float(x);
  return double(y) < x ? std::nextafter(y, std::numeric_limits<float>::infinity()) : y;
}

class Candidates {
 public:
  static constexpr size_t kAhead = 8;  // how many rows before it is used a list is asked for
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  // A class by its lane (tile·64 + l), and its lower bound.
  struct Kept {
    float lower;
    uint32_t lane;
  };

  // Room for a row's candidates: bounded, however many of the T classes tie. In whole blocks of
  // kWhole, more than there are classes, so that it is never full where it holds them all.
  static size_t room(size_t k, size_t T) {
    return (std::min(6 * k + kWhole - 1, T) / kWhole + 1) * kWhole;
  }
  static size_t bytes(size_t k, size_t T) { return room(k, T) * sizeof(Kept); }

  Candidates(const Isa& isa, size_t rows, size_t k, size_t T)
      : isa_(isa), k_(k), room_(room(k, T)), count_(rows), left_(rows), kept_(rows * room_),
        target_(rows, kLowest), slack_(rows), values_(room_) {}

  // reach[tile]: how far an upper bound may lie above a lower one.
  void restart(std::vector<double> reach) { reach_ = std::move(reach); }

  // Forgets a row's candidates. What cannot reach ``target`` is not asked for.
  void reset(size_t row, double slack, double target) {
    count_[row] = left_[row] = 0;
    target_[row] = target;
    slack_[row] = slack;
  }

  // theta − slack of every row, or what it was reset to where that is more.
  const double* target() const { return target_.data(); }
  double slack(size_t row) const { return slack_[row]; }

  size_t count(size_t row) const { return count_[row]; }
  Kept* begin(size_t row) const { return kept_.data() + row * room_; }
  Kept* end(size_t row) const { return begin(row) + count(row); }

  // A candidate's upper bound.
  double upper(Kept c) const { return double(c.lower) + reach_[c.lane / kLanes]; }

  // Whether it has room for n more; they go to its end.
  bool fits(size_t row, size_t n) const { return count(row) + n < room_; }
  void grow(size_t row, size_t n) { count_[row] += uint32_t(n); }

  // Asks for the place of the next push, or for all candidates.
  void prefetch_end(size_t row) const { __builtin_prefetch(end(row), 1); }
  void prefetch(size_t row) const {
    for (const Kept* c = begin(row); c < end(row); c += 64 / sizeof(Kept)) __builtin_prefetch(c, 1);
  }

  // resolve(row) is called where the bounds leave too many: it must leave the k best, with their
  // exact scores as lower bounds.
  template <class Resolve>
  void push(size_t row, Kept c, Resolve&& resolve) {
    uint32_t& count = count_[row];
    begin(row)[count] = c;
    if (__builtin_expect(++count < room_, 1)) return;
    compact(row);
    if (count <= room_ - room_ / 8) return;
    resolve(row);
    count = uint32_t(k_);
  }

  // Raises the thresholds of rows [first, last) that have new candidates.
  void sweep(size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) {
      if (row + kAhead < last) prefetch(row + kAhead);
      if (count(row) >= std::max<size_t>(k_, left_[row] + kFew)) compact(row);
    }
  }

  // Raises theta and drops what it excludes.
  void compact(size_t row) {
    const size_t n = count(row);
    if (n >= k_) target_[row] = std::max(target_[row], theta(row) - slack_[row]);
    const double bar = target_[row];
    Kept* const kept = begin(row);
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) {  // as moves, not jumps: which ones stay is a surprise
      const Kept c = kept[i];
      kept[left] = c;
      left += upper(c) >= bar;
    }
    count_[row] = left_[row] = uint32_t(left);
  }

  // How many stand in front, and the largest upper bound of the others.
  struct Settled {
    uint32_t count;
    float rest;
  };

  // Puts those in front that reach the k-th best lower bound raised by ``eager``.
  Settled settle(size_t row, double eager) {
    const size_t n = count(row);
    if (n <= k_) return {uint32_t(n), float(kLowest)};
    const double bar = theta(row) + eager - slack_[row];
    Kept* const kept = begin(row);
    size_t front = 0;
    double rest = kLowest;
    for (size_t i = 0; i < n; ++i) {  // as moves, not jumps
      const Kept c = kept[i];
      const double most = upper(c);
      kept[i] = kept[front];
      kept[front] = c;
      front += most >= bar;
      rest = std::max(rest, most >= bar ? kLowest : most);
    }
    return {uint32_t(front), round_up(rest)};
  }

 private:
  static constexpr size_t kFew = 3;  // not worth a look
  static constexpr size_t kWhole = 32;  // kth_largest reads whole blocks of that many

  // The k-th best lower bound.
  double theta(size_t row) {
    const size_t n = count(row);
    const Kept* kept = begin(row);
    for (size_t i = 0; i < n; ++i) values_[i] = kept[i].lower;
    if (n <= kMostCounted) return isa_.kth_largest(values_.data(), n, k_);
    std::nth_element(values_.data(), values_.data() + (k_ - 1), values_.data() + n,
                     std::greater<float>());
    return values_[k_ - 1];
  }

  const Isa& isa_;
  size_t k_, room_;
  std::vector<uint32_t> count_, left_;  // candidates, and how many the last look left
  Array<Kept> kept_;  // [rows][room]
  std::vector<double> target_, slack_, reach_;
  Array<float> values_;
};

}  // namespace raypq
