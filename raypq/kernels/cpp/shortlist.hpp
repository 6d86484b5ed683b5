// What a search keeps for each query: every row that its bounds cannot yet exclude from the k best.
//
// Of each candidate a lower and an upper bound of its score are given. ``theta`` is the k-th best
// lower bound; nothing whose upper bound is below theta − slack can be among the k best. slack
// covers the rounding to float32 of scores and of these bounds, where unequal scores may tie and the
// lower index wins.
//
// A push is an append: theta is found anew only once some more candidates have come, which costs
// fewer steps a candidate than keeping the k best lower bounds in order does, though a target that
// lags lets more of them in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "support.hpp"

namespace raypq {

struct Candidate {
  float value;     // the exact score
  uint32_t other;  // class or row
};

// Best first; ties to the lower index.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.other < b.other;
}

class Shortlist {
 public:
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  // Room for an owner's candidates: bounded, however many of the N rows tie. In whole blocks, more
  // than there are rows, so that it is never full where it holds them all.
  static size_t room(size_t k, size_t N) {
    return (std::min(6 * k + kWhole, N) / kWhole + 1) * kWhole;
  }
  static size_t bytes(size_t k, size_t N) { return room(k, N) * kParts * sizeof(float); }

  Shortlist(const Isa& isa, size_t owners, size_t k, size_t N)
      : isa_(isa), k_(k), room_(room(k, N)), few_(std::max<size_t>(1, k / 2)), state_(owners),
        kept_(owners * room_ * kParts), target_(owners, kLowest) {}

  // Forgets an owner's candidates.
  void reset(size_t owner, double slack) {
    state_[owner] = {slack, kNothing, 0, uint32_t(std::max(k_, few_))};
    target_[owner] = kLowest;
  }

  size_t owners() const { return state_.size(); }

  // theta − slack, from all candidates but the last few.
  double target(size_t owner) {
    if (state_[owner].count >= state_[owner].next) raise(owner);
    return target_[owner];
  }

  // resolve(owner) replaces the upper bounds by exact scores; it is called where the bounds leave
  // too many, and then only the k best of them stay.
  template <class Resolve>
  void push(size_t owner, float lower, float upper, uint32_t other, Resolve&& resolve) {
    if (upper < target_[owner]) return;
    State& s = state_[owner];
    lowers(owner)[s.count] = lower;
    uppers(owner)[s.count] = upper;
    others(owner)[s.count] = other;
    if (__builtin_expect(++s.count == room_, 0)) shrink(owner, resolve);
  }

  // Takes over what another list (of the same k) kept for its owner ``there``.
  template <class Resolve>
  void merge(size_t owner, const Shortlist& from, size_t there, Resolve&& resolve) {
    for (size_t i = 0; i < from.count(there); ++i)
      push(owner, from.lowers(there)[i], from.uppers(there)[i], from.others(there)[i], resolve);
  }

  // Drops what theta excludes by now.
  void prune(size_t owner) {
    if (state_[owner].count >= k_) raise(owner);
    drop(owner);
  }

  size_t count(size_t owner) const { return state_[owner].count; }
  float* lowers(size_t owner) const { return kept_.data() + owner * room_ * kParts; }
  float* uppers(size_t owner) const { return lowers(owner) + room_; }
  uint32_t* others(size_t owner) const {
    return reinterpret_cast<uint32_t*>(lowers(owner) + 2 * room_);
  }

 private:
  static constexpr size_t kWhole = 32;  // near_kth takes whole blocks of that many
  static constexpr size_t kParts = 3;   // lower bounds, upper bounds and rows
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();

  struct State {
    double slack;
    float theta;
    uint32_t count, next;  // candidates, and how many there must be for the next look at them
  };

  // Raises theta, and drops what it excludes where there is much.
  void raise(size_t owner) {
    State& s = state_[owner];
    float* lower = lowers(owner);
    if (s.theta == kNothing) s.theta = *std::min_element(lower, lower + s.count);
    const size_t whole = (s.count + kWhole - 1) / kWhole * kWhole;
    std::fill(lower + s.count, lower + whole, kNothing);
    s.theta = isa_.near_kth(lower, whole, k_, s.theta);
    target_[owner] = std::max(target_[owner], double(s.theta) - s.slack);
    if (s.count > room_ / 2) drop(owner);
    s.next = uint32_t(std::max(k_, s.count + few_));
  }

  void drop(size_t owner) {
    State& s = state_[owner];
    float *lower = lowers(owner), *upper = uppers(owner);
    uint32_t* other = others(owner);
    const double bar = target_[owner];
    size_t left = 0;
    for (size_t i = 0; i < s.count; ++i) {  // as moves, not jumps: which ones stay is a surprise
      const float low = lower[i], high = upper[i];
      const uint32_t at = other[i];
      lower[left] = low, upper[left] = high, other[left] = at;
      left += !(high < bar);
    }
    s.count = uint32_t(left);
  }

  template <class Resolve>
  void shrink(size_t owner, Resolve&& resolve) {
    raise(owner);
    if (state_[owner].count <= room_ - room_ / 8) return;
    resolve(owner);
    keep_best(owner);
  }

  void keep_best(size_t owner) {
    State& s = state_[owner];
    float *lower = lowers(owner), *upper = uppers(owner);
    uint32_t* other = others(owner);
    std::vector<std::pair<Candidate, float>> all(s.count);
    for (size_t i = 0; i < s.count; ++i) all[i] = {{upper[i], other[i]}, lower[i]};
    std::nth_element(all.begin(), all.begin() + (k_ - 1), all.end(),
                     [](const auto& a, const auto& b) { return better(a.first, b.first); });
    for (size_t i = 0; i < k_; ++i) {
      lower[i] = all[i].second, other[i] = all[i].first.other;
      upper[i] = -kNothing;  // stays, whatever theta becomes
    }
    s.count = uint32_t(k_);
    s.next = uint32_t(k_ + few_);
  }

  const Isa& isa_;
  size_t k_, room_, few_;
  std::vector<State> state_;
  Array<float> kept_;  // [owners][parts][room]
  std::vector<double> target_;
};

}  // namespace raypq
