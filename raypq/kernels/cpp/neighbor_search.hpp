// The search of NeighborIndex for some of its codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "neighbors.hpp"

namespace raypq {

struct Neighbor {
  float score;  // negative squared distance
  uint32_t code;

  bool operator<(const Neighbor& other) const {  // better, ties to the lower code
    return score != other.score ? score > other.score : code < other.code;
  }
  bool operator==(const Neighbor& other) const = default;
};

// First each query is compared with the tiles whose centers are nearest to it. The distance of its
// k-th best is then its limit in the comparison with all blocks. It shrinks as better ones are
// found.
class NeighborSearch {
 public:
  // Queries are codes at ``places`` [n], ascending. k: at most the number of codes.
  NeighborSearch(const NeighborIndex& index, const uint32_t* places, size_t n, size_t k);

  void run();

  // The k best codes of a query, best first.
  const Neighbor* best(size_t query) const { return best_.data() + query * k_; }
  const NeighborWork& work() const { return work_; }

 private:
  using Queries = std::vector<uint32_t>;
  static constexpr size_t kPending = 6;

  const uint8_t* code_of(size_t query) const { return own_.data() + query * index_.shape.M; }
  double bound_of(size_t query) const { return index_.bound_of(best(query)[k_ - 1].score); }
  void set_unit(double unit);
  double distance(size_t query, size_t place) const;
  double likely_bound() const;
  size_t near_tiles() const;
  void compare_own_tiles();
  void compare_near_tiles();
  void add_near_tiles(size_t first, size_t n, std::vector<Queries>& queries_of_tile);
  void compare_blocks(const Queries& queries);
  void compare_tile(size_t tile, const Queries& queries);
  void compare(size_t first, const Queries& queries);
  uint32_t sum_of(size_t query, size_t place, uint32_t most) const;
  void compare_few(size_t first, const Queries& queries);
  void offer(size_t query, size_t first, uint64_t columns);
  void score(size_t query);
  void insert(size_t query, Neighbor neighbor);
  void set_limit(size_t query);

  const NeighborIndex& index_;
  const uint32_t* places_;
  size_t n_, k_, stride_;  // stride_: K, rounded up to 16
  NeighborWork work_;
  std::vector<uint8_t> own_;       // codes of the queries [n, M]
  std::vector<Neighbor> best_;     // [n, k]
  std::vector<uint32_t> count_;    // by query: number of its best so far
  std::vector<uint32_t> pending_;  // [n, kPending] places that have no score yet
  std::vector<uint8_t> pending_count_;
  std::vector<double> bias_;       // by query
  std::vector<uint8_t> limit_;     // by query, in units; 255: none
  double unit_ = 0;
  Array<uint8_t> entries_;         // T in units [M][K][stride]
  Array<uint8_t> table_;
  std::vector<NearHit> hits_;
  Array<float> scratch_;
  std::vector<float> weights_;
};

}  // namespace raypq
