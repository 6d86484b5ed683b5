// What classification keeps for each row of a block: every class that its bounds cannot yet exclude
// from the k best. As Shortlist, but made for many rows with few candidates each: a push is an
// append, and thresholds move now and then, for all rows in their order: the lists do not fit the
// cache, and in order they can be asked for ahead.
//
// Of each candidate a lower bound is kept, which may be only likely (the caller checks target()
// against the truth); its upper bound is that plus the ``reach`` of its tile. ``theta`` is the k-th best
// lower bound; what cannot reach theta − slack is dropped. slack covers the rounding to float32 of
// scores and of these bounds, where unequal scores may tie and the lower index wins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "support.hpp"

namespace raypq {

class Candidates {
 public:
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  // Room for a row's candidates: bounded, however many tie.
  static size_t room(size_t k) { return (6 * k + 32 + 31) / 32 * 32; }
  static size_t bytes(size_t k) { return room(k) * (sizeof(float) + sizeof(uint32_t)); }

  Candidates(const Isa& isa, size_t rows, size_t k)
      : isa_(isa), k_(k), room_(room(k)), state_(rows),
        kept_(rows * room_ * 2), target_(rows, kLowest), slack_(rows) {}

  // reach[tile]: how far an upper bound may lie above a lower one.
  void restart(std::vector<double> reach) { reach_ = std::move(reach); }

  // Forgets a row's candidates. What cannot reach ``target`` is not asked for.
  void reset(size_t row, double slack, double target) {
    state_[row] = {0, 0};
    target_[row] = target;
    slack_[row] = slack;
  }

  // theta − slack of every row, or what it was reset to where that is more.
  const double* target() const { return target_.data(); }
  double slack(size_t row) const { return slack_[row]; }

  size_t count(size_t row) const { return state_[row].count; }
  float* values(size_t row) const { return kept_.data() + row * room_ * 2; }
  uint32_t* lanes(size_t row) const { return reinterpret_cast<uint32_t*>(values(row) + room_); }

  bool fits(size_t row, size_t n) const { return state_[row].count + n < room_; }

  // Takes n lanes that fit; their values go where it points.
  float* append(size_t row, const uint32_t* lane, size_t n) {
    const size_t from = state_[row].count;
    std::copy_n(lane, n, lanes(row) + from);
    state_[row].count += uint32_t(n);
    return values(row) + from;
  }

  // resolve(row) is called where the bounds leave too many: it must leave the k best, with their
  // exact scores as lower bounds.
  template <class Resolve>
  void push(size_t row, float lower, uint32_t lane, Resolve&& resolve) {
    State& s = state_[row];
    values(row)[s.count] = lower;
    lanes(row)[s.count] = lane;
    if (__builtin_expect(++s.count < room_, 1)) return;
    compact(row);
    if (s.count <= room_ - room_ / 8) return;
    resolve(row);
    s.count = uint32_t(k_);
  }

  // Raises the thresholds of rows [first, last) that have new candidates.
  void sweep(size_t first, size_t last) {
    constexpr size_t kAhead = 8;
    for (size_t row = first; row < last; ++row) {
      if (row + kAhead < last) prefetch(row + kAhead);
      const State& s = state_[row];
      if (s.count >= std::max<size_t>(k_, s.left + kFew)) compact(row);
    }
  }

  // Raises theta and drops what it excludes.
  void compact(size_t row) {
    State& s = state_[row];
    const size_t n = s.count;
    float* value = values(row);
    uint32_t* lane = lanes(row);
    if (n >= k_) target_[row] = std::max(target_[row], double(kth(value, n)) - slack_[row]);
    const double bar = target_[row];
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) {  // as moves, not jumps: which ones stay is a surprise
      const float x = value[i];
      const uint32_t at = lane[i];
      value[left] = x, lane[left] = at;
      left += upper(x, at) >= bar;
    }
    s.count = s.left = uint32_t(left);
  }

  // Puts those in front that reach the k-th best lower bound raised by ``eager``; how many they are.
  // The others stay behind them.
  size_t settle(size_t row, double eager) {
    const size_t n = state_[row].count;
    if (n <= k_) return n;
    float* value = values(row);
    uint32_t* lane = lanes(row);
    const double bar = double(kth(value, n)) + eager - slack_[row];
    size_t front = 0;
    for (size_t i = 0; i < n; ++i) {  // as moves, not jumps
      const float x = value[i];
      const uint32_t at = lane[i];
      value[i] = value[front], lane[i] = lane[front];
      value[front] = x, lane[front] = at;
      front += upper(x, at) >= bar;
    }
    return front;
  }

  // A candidate's upper bound.
  double upper(float lower, uint32_t lane) const { return double(lower) + reach_[lane / kLanes]; }

 private:
  static constexpr size_t kFew = 3;  // not worth a look

  struct State {
    uint32_t count, left;  // candidates, and how many the last look left
  };

  void prefetch(size_t row) const {
    const size_t n = state_[row].count;
    for (size_t i = 0; i < n; i += 16) {
      __builtin_prefetch(values(row) + i, 1);
      __builtin_prefetch(lanes(row) + i, 1);
    }
  }

  float kth(const float* value, size_t n) {
    if (n <= kMostCounted) return isa_.kth_largest(value, n, k_);
    copy_.assign(value, value + n);
    std::nth_element(copy_.begin(), copy_.begin() + (k_ - 1), copy_.end(), std::greater<float>());
    return copy_[k_ - 1];
  }

  const Isa& isa_;
  size_t k_, room_;
  std::vector<State> state_;
  Array<float> kept_;  // [rows][values, lanes][room]
  std::vector<double> target_, slack_, reach_;
  std::vector<float> copy_;
};

}  // namespace raypq
