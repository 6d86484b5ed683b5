// The candidates of each query in a search: all rows that its bounds cannot exclude from the k best
// (see bounds.hpp).
//
// A push is an append; kth_lower is computed again only after several pushes. That takes fewer
// steps per candidate than keeping the k best lower bounds sorted, though a cutoff that lags admits
// more candidates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "bounds.hpp"
#include "support.hpp"

namespace raypq {

struct Candidate {
  float value;     // the exact score
  uint32_t index;  // class or row
};

// Best first; ties to the lower index.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.index < b.index;
}

class Shortlist {
 public:
  // Capacity of a query's list: bounded, however many of the N rows tie. Whole blocks of kWhole,
  // and more than N if it may hold all rows, so that it is never full then.
  static size_t capacity(size_t k, size_t N) {
    return (std::min(6 * k + kWhole, N) / kWhole + 1) * kWhole;
  }
  static size_t bytes(size_t k, size_t N) { return capacity(k, N) * kParts * sizeof(float); }

  Shortlist(const Isa& isa, size_t queries, size_t k, size_t N)
      : isa_(isa), k_(k), capacity_(capacity(k, N)), step_(std::max<size_t>(1, k / 2)),
        state_(queries), data_(queries * capacity_ * kParts), cutoff_(queries, kNoCutoff) {}

  // Empties a query's list.
  void reset(size_t query, double tie_margin) {
    state_[query] = {tie_margin, kNothing, 0, uint32_t(std::max(k_, step_))};
    cutoff_[query] = kNoCutoff;
  }

  size_t queries() const { return state_.size(); }

  // The cutoff of a query, which may lag behind its last few candidates.
  double cutoff(size_t query) {
    if (state_[query].count >= state_[query].next) raise_cutoff(query);
    return cutoff_[query];
  }

  // Appends a candidate. Where bounds alone leave too many, resolve(query) is called, which must
  // replace the upper bounds by exact scores, and only the k best stay.
  template <class Resolve>
  void push(size_t query, float lower, float upper, uint32_t row, Resolve&& resolve) {
    if (upper < cutoff_[query]) return;
    State& s = state_[query];
    lowers(query)[s.count] = lower;
    uppers(query)[s.count] = upper;
    rows(query)[s.count] = row;
    if (__builtin_expect(++s.count == capacity_, 0)) shrink(query, resolve);
  }

  // Adds the candidates that another shortlist (of the same k) has for its query ``other``.
  template <class Resolve>
  void merge(size_t query, const Shortlist& from, size_t other, Resolve&& resolve) {
    for (size_t i = 0; i < from.count(other); ++i)
      push(query, from.lowers(other)[i], from.uppers(other)[i], from.rows(other)[i], resolve);
  }

  // Drops what the cutoff excludes by now.
  void prune(size_t query) {
    if (state_[query].count >= k_) raise_cutoff(query);
    drop(query);
  }

  size_t count(size_t query) const { return state_[query].count; }
  float* lowers(size_t query) const { return data_.data() + query * capacity_ * kParts; }
  float* uppers(size_t query) const { return lowers(query) + capacity_; }
  uint32_t* rows(size_t query) const {
    return reinterpret_cast<uint32_t*>(lowers(query) + 2 * capacity_);
  }

 private:
  static constexpr size_t kWhole = 32;  // near_kth reads whole blocks of that many
  static constexpr size_t kParts = 3;   // lower bounds, upper bounds and rows
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();

  struct State {
    double tie_margin;
    float kth_lower;
    uint32_t count, next;  // candidates, and how many there must be before the cutoff is raised
  };

  // Raises the cutoff; drops what it excludes if the list is more than half full.
  void raise_cutoff(size_t query) {
    State& s = state_[query];
    float* lower = lowers(query);
    if (s.kth_lower == kNothing) s.kth_lower = *std::min_element(lower, lower + s.count);
    const size_t whole = (s.count + kWhole - 1) / kWhole * kWhole;
    std::fill(lower + s.count, lower + whole, kNothing);
    s.kth_lower = isa_.near_kth(lower, whole, k_, s.kth_lower);
    cutoff_[query] = std::max(cutoff_[query], double(s.kth_lower) - s.tie_margin);
    if (s.count > capacity_ / 2) drop(query);
    s.next = uint32_t(std::max(k_, s.count + step_));
  }

  void drop(size_t query) {
    State& s = state_[query];
    float *lower = lowers(query), *upper = uppers(query);
    uint32_t* row = rows(query);
    const double cutoff = cutoff_[query];
    size_t left = 0;
    for (size_t i = 0; i < s.count; ++i) {  // branchless: the predicate is unpredictable
      const float low = lower[i], high = upper[i];
      const uint32_t at = row[i];
      lower[left] = low, upper[left] = high, row[left] = at;
      left += !(high < cutoff);
    }
    s.count = uint32_t(left);
  }

  template <class Resolve>
  void shrink(size_t query, Resolve&& resolve) {
    raise_cutoff(query);
    if (state_[query].count <= capacity_ - capacity_ / 8) return;
    resolve(query);
    keep_best(query);
  }

  void keep_best(size_t query) {
    State& s = state_[query];
    float *lower = lowers(query), *upper = uppers(query);
    uint32_t* row = rows(query);
    std::vector<std::pair<Candidate, float>> all(s.count);
    for (size_t i = 0; i < s.count; ++i) all[i] = {{upper[i], row[i]}, lower[i]};
    std::nth_element(all.begin(), all.begin() + (k_ - 1), all.end(),
                     [](const auto& a, const auto& b) { return better(a.first, b.first); });
    for (size_t i = 0; i < k_; ++i) {
      lower[i] = all[i].second, row[i] = all[i].first.index;
      upper[i] = -kNothing;  // stays, whatever the cutoff becomes
    }
    s.count = uint32_t(k_);
    s.next = uint32_t(k_ + step_);
  }

  const Isa& isa_;
  size_t k_, capacity_, step_;  // step_: new candidates before a cutoff is raised
  std::vector<State> state_;
  Array<float> data_;  // [queries][parts][capacity]
  std::vector<double> cutoff_;
};

}  // namespace raypq
