// Pairs of codes within a distance, without a comparison of all pairs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace raypq {

// How codes [n, M] are joined: S(a, b) = Σ_m T[m, a_m, b_m], T ≥ 0, is to be at most ``limit``.
// The parts are cut into consecutive groups; if S ≤ limit, the sum of some group is at most its
// share of it. The join of ``group`` finds the pairs whose first such group it is.
struct JoinPlan {
  size_t M, K;
  std::vector<float> T;            // [M, K, K], symmetric
  std::vector<size_t> first;       // first part of each group, and M
  std::vector<float> group_limit;  // by group
  float limit;
  size_t group;
};

// What is joined: pairs a < b of rows of A [n, M], or, where B [m, M] is given, all pairs of a row
// of A and one of B. Where ``once``, of rows with equal codes only the first stands for all, and has
// a pair with each of the others.
struct JoinSides {
  const uint8_t* A;
  size_t n;
  const uint8_t* B;
  size_t m;
  bool once;
};

struct JoinWork {
  uint64_t total = 0;    // number of pairs
  uint64_t visited = 0;  // pairs of prefixes that were compared
  uint64_t checked = 0;  // pairs of codes that were compared
  bool complete = true;  // false if it gave up
};

// Counts the pairs; gives up after so many visits and checks.
JoinWork count_pairs(const JoinPlan& plan, const JoinSides& sides, uint64_t most_steps,
                     size_t threads);

struct RowPair {
  uint32_t a, b;
};

// The pairs themselves, found by threads that wait while many are not taken yet.
class PairStream {
 public:
  PairStream(JoinPlan plan, const JoinSides& sides, size_t threads);  // copies the codes
  ~PairStream();

  // Pairs of rows that were not returned yet, in no order; none at the end.
  std::vector<RowPair> next();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace raypq
