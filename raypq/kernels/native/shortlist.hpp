// What a filter keeps for each owner (an image, or a query): everything that its bounds cannot yet
// exclude from the k best.
//
// Of each candidate a lower and an upper bound of its score are known. The k-th best lower bound is
// ``theta``; nothing whose upper bound is below theta − slack can be among the k best. slack covers
// the rounding of scores to float32, where unequal scores may tie and the lower index wins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace raypq {

struct Candidate {
  double value;    // upper bound; at the end the exact float32 score
  uint32_t other;  // class or row
};

// Best first; ties to the lower index.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.other < b.other;
}

class Shortlist {
 public:
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  // Room for an owner's candidates: bounded, however many tie.
  static size_t room(size_t k) { return 4 * k + 32; }

  Shortlist(size_t owners, size_t k)
      : k_(k), room_(room(k)), lowers_(owners * k), count_(owners), seen_(owners),
        kept_(owners * room_), target_(owners, kLowest), slack_(owners) {}

  // Forgets an owner's candidates.
  void reset(size_t owner, double slack) {
    count_[owner] = seen_[owner] = 0;
    target_[owner] = kLowest;
    slack_[owner] = slack;
  }

  // theta − slack of every owner.
  const double* target() const { return target_.data(); }

  // resolve(owner, first, last) replaces the values in [first, last) by exact scores; it is called
  // where the bounds leave too many, and then only the k best of them stay.
  template <class Resolve>
  void push(size_t owner, double lower, double upper, uint32_t other, Resolve&& resolve) {
    if (upper < target_[owner]) return;
    raise(owner, lower);
    keep(owner, upper, other, resolve);
  }

  // Takes over what another list (of the same k) kept for its owner ``there``.
  template <class Resolve>
  void merge(size_t owner, Shortlist& from, size_t there, Resolve&& resolve) {
    for (size_t i = 0; i < from.seen_[there]; ++i) raise(owner, from.lowers_[there * k_ + i]);
    for (auto c = from.begin(there); c != from.end(there); ++c)
      keep(owner, c->value, c->other, resolve);
  }

  // Drops what theta excludes by now.
  void prune(size_t owner) {
    const double target = target_[owner];
    Candidate* last = std::remove_if(begin(owner), end(owner),
                                     [=](const Candidate& c) { return c.value < target; });
    count_[owner] = uint32_t(last - begin(owner));
  }

  Candidate* begin(size_t owner) { return kept_.data() + owner * room_; }
  Candidate* end(size_t owner) { return begin(owner) + count_[owner]; }
  size_t owners() const { return count_.size(); }

 private:
  template <class Resolve>
  void keep(size_t owner, double upper, uint32_t other, Resolve&& resolve) {
    if (upper < target_[owner]) return;
    if (count_[owner] == room_) shrink(owner, resolve);
    kept_[owner * room_ + count_[owner]++] = {upper, other};
  }

  // A min-heap of the k best lower bounds.
  void raise(size_t owner, double lower) {
    double* heap = lowers_.data() + owner * k_;
    uint32_t& seen = seen_[owner];
    if (seen < k_) {
      heap[seen++] = lower;
      std::push_heap(heap, heap + seen, std::greater<>());
      if (seen < k_) return;
    } else if (lower > heap[0]) {
      sift_down(heap, lower);
    } else {
      return;
    }
    target_[owner] = heap[0] - slack_[owner];
  }

  void sift_down(double* heap, double x) const {
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < k_; at = child) {
      if (child + 1 < k_ && heap[child + 1] < heap[child]) ++child;
      if (heap[child] >= x) break;
      heap[at] = heap[child];
    }
    heap[at] = x;
  }

  template <class Resolve>
  void shrink(size_t owner, Resolve&& resolve) {
    prune(owner);
    if (count_[owner] <= room_ / 2) return;
    resolve(owner, begin(owner), end(owner));
    std::nth_element(begin(owner), begin(owner) + (k_ - 1), end(owner), better);
    count_[owner] = uint32_t(k_);
    for (Candidate* c = begin(owner); c != end(owner); ++c)
      c->value = std::numeric_limits<double>::infinity();  // stays, whatever theta becomes
  }

  size_t k_, room_;
  std::vector<double> lowers_;          // [owners, k]
  std::vector<uint32_t> count_, seen_;  // candidates, lower bounds
  std::vector<Candidate> kept_;         // [owners, room]
  std::vector<double> target_, slack_;
};

}  // namespace raypq
