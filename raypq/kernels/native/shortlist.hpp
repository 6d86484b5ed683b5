// What a filter keeps for each owner (an image, or a query): everything that its bounds cannot yet
// exclude from the k best.
//
// Of each candidate a lower and an upper bound of its score are given. The k-th best lower bound is
// ``theta``; nothing whose upper bound is below theta − slack can be among the k best. slack covers
// the rounding to float32 of scores and of these bounds, where unequal scores may tie and the lower index wins. (A
// caller may give lower bounds that are only likely, if it checks theta against the truth.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "support.hpp"

namespace raypq {

struct Candidate {
  float value;     // upper bound, or the exact score
  uint32_t other;  // class or row
};

// Best first; ties to the lower index.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.other < b.other;
}

class Shortlist {
 public:
  static constexpr size_t kLinear = 64;  // up to this k looking at all of them is faster
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  // Room for an owner's candidates: bounded, however many tie.
  static size_t room(size_t k) { return 6 * k + 32; }

  Shortlist(size_t owners, size_t k)
      : k_(k), room_(room(k)), state_(owners), lowers_(owners * k), kept_(owners * room_),
        target_(owners, kLowest) {}

  // Forgets an owner's candidates.
  void reset(size_t owner, double slack) {
    state_[owner] = {slack, 0, 0, 0};
    target_[owner] = kLowest;
  }

  size_t owners() const { return state_.size(); }

  // theta − slack of every owner.
  const double* target() const { return target_.data(); }

  // The k-th best lower bound; lowest while fewer are known.
  double theta(size_t owner) const {
    const State& s = state_[owner];
    return s.seen < k_ ? kLowest : lowers_[owner * k_ + s.least];
  }

  // Owners come in no order that the hardware foresees.
  void prefetch(size_t owner) const {
    __builtin_prefetch(&lowers_[owner * k_], 1);
    __builtin_prefetch(&kept_[owner * room_ + state_[owner].count], 1);
  }

  // resolve(owner, first, last) replaces the values in [first, last) by exact scores; it is called
  // where the bounds leave too many, and then only the k best of them stay.
  template <class Resolve>
  void push(size_t owner, double lower, double upper, uint32_t other, Resolve&& resolve) {
    if (upper < target_[owner]) return;
    raise(owner, lower);
    keep(owner, float(upper), other, resolve);
  }

  // Takes over what another list (of the same k) kept for its owner ``there``.
  template <class Resolve>
  void merge(size_t owner, Shortlist& from, size_t there, Resolve&& resolve) {
    for (size_t i = 0; i < from.state_[there].seen; ++i) raise(owner, from.lowers_[there * k_ + i]);
    for (auto c = from.begin(there); c != from.end(there); ++c)
      keep(owner, c->value, c->other, resolve);
  }

  // Drops what theta excludes by now.
  void prune(size_t owner) { drop(owner, 0, target_[owner]); }

  // Drops what a better theta excludes, sparing the first ``spared``.
  void prune(size_t owner, size_t spared, double theta) {
    drop(owner, spared, std::max(theta - state_[owner].slack, target_[owner]));
  }

  Candidate* begin(size_t owner) const { return kept_.data() + owner * room_; }
  Candidate* end(size_t owner) const { return begin(owner) + state_[owner].count; }

 private:
  struct State {
    double slack;
    uint32_t count, seen, least;  // candidates; lower bounds, and where the least of them is
  };

  void drop(size_t owner, size_t spared, double target) {
    Candidate* last = std::remove_if(begin(owner) + spared, end(owner),
                                     [=](const Candidate& c) { return c.value < target; });
    state_[owner].count = uint32_t(last - begin(owner));
  }

  template <class Resolve>
  void keep(size_t owner, float upper, uint32_t other, Resolve&& resolve) {
    if (upper < target_[owner]) return;
    if (state_[owner].count == room_) shrink(owner, resolve);
    kept_[owner * room_ + state_[owner].count++] = {upper, other};
  }

  // Keeps the k best lower bounds: in no order where k is small, else as a heap with the least on
  // top.
  void raise(size_t owner, double lower) {
    double* known = &lowers_[owner * k_];
    State& s = state_[owner];
    if (s.seen == k_ && lower <= known[s.least]) return;
    const bool full = s.seen == k_;
    if (k_ > kLinear && full) {
      sink(known, lower);
    } else {
      known[full ? s.least : s.seen++] = lower;
      if (s.seen < k_) return;
      if (k_ <= kLinear) s.least = least_of(known);
      else if (!full) std::make_heap(known, known + k_, std::greater<>());
    }
    target_[owner] = known[s.least] - s.slack;
  }

  uint32_t least_of(const double* known) const {
    uint32_t at = 0;
    double least = known[0];
    for (uint32_t i = 1; i < k_; ++i) {  // as moves, not jumps: which one is least is a surprise
      at = known[i] < least ? i : at;
      least = known[i] < least ? known[i] : least;
    }
    return at;
  }

  // Puts a value in the place of the heap's top.
  void sink(double* heap, double value) const {
    size_t at = 0;
    for (size_t child = 1; child < k_; child = 2 * at + 1) {
      if (child + 1 < k_) child += heap[child + 1] < heap[child];
      if (!(heap[child] < value)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = value;
  }

  template <class Resolve>
  void shrink(size_t owner, Resolve&& resolve) {
    prune(owner);
    if (state_[owner].count <= room_ - room_ / 8) return;
    resolve(owner, begin(owner), end(owner));
    std::nth_element(begin(owner), begin(owner) + (k_ - 1), end(owner), better);
    state_[owner].count = uint32_t(k_);
    for (Candidate* c = begin(owner); c != end(owner); ++c)
      c->value = std::numeric_limits<float>::infinity();  // stays, whatever theta becomes
  }

  size_t k_, room_;
  std::vector<State> state_;
  Array<double> lowers_;        // [owners, k]
  Array<Candidate> kept_;       // [owners, room]
  std::vector<double> target_;  // apart, for the thresholds are computed from them in one go
};

}  // namespace raypq
