// The search of NeighborIndex for some of its codes, or for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "neighbor_pools.hpp"
#include "neighbors.hpp"

namespace raypq {

constexpr uint32_t kNoLimit = 255;        // no sum is greater
constexpr double kUnits = 250;            // of the largest limit
constexpr size_t kQueriesTogether = 1024;  // compared with one table at a time

struct Neighbor {
  float score;  // negative squared distance
  uint32_t code;

  bool operator<(const Neighbor& other) const {  // better, ties to the lower code
    return score != other.score ? score > other.score : code < other.code;
  }
};

// T in units, rounded down to 8 bits: [M][K][stride], 255 where it is more.
struct NearEntries {
  double unit;
  size_t stride;  // K, rounded up to 16
  Array<uint8_t> values;

  NearEntries(const NeighborIndex& index, double unit);
};

// First each query is compared with the tiles whose centers are nearest to it. The distance of its
// k-th best is then its limit in the comparison with all blocks. In a search for all codes, a
// code and a block are compared once for the neighbours of both: by the larger limit.
class NeighborSearch {
 public:
  // Queries are codes at ``places`` [n], ascending. k: at most the number of codes.
  NeighborSearch(const NeighborIndex& index, std::vector<uint32_t> places, size_t k);

  void run(size_t threads);

  // The k best codes of some queries [n], best first, after run: calls take(i, best).
  template <class Take>
  void best(const uint32_t* queries, size_t n, Take take) const {
    Scratch scratch(*this);
    for (size_t i = 0; i < n; ++i) {
      score(queries[i], pools_.begin(queries[i]), pools_.count(queries[i]), scratch);
      std::sort(scratch.best.begin(), scratch.best.end());
      take(i, scratch.best.data());
    }
  }

  size_t k() const { return k_; }
  NeighborWork work() const { return work_; }

 private:
  using Queries = std::vector<uint32_t>;

  // Of one thread.
  struct Scratch {
    explicit Scratch(const NeighborSearch& search);

    Array<uint8_t> table;
    std::vector<NearHit> hits;
    std::vector<uint8_t> sums, codes;
    std::vector<Queries> parts;    // of a tile: queries to be compared with 64 codes
    std::vector<Queries> columns;  // of 64 codes: queries that may be near
    std::vector<float> distances;
    Array<float> decoded;
    std::vector<float> weights;
    std::vector<uint32_t> places;
    std::vector<double> dots;
    std::vector<Neighbor> best;
    NeighborWork work;
  };

  // What queries are compared with codes by.
  struct Comparison {
    const NearEntries& entries;
    bool both;   // codes are queries, too, with the same limits
    bool alone;  // no other thread uses the limits of these queries
  };

  const uint8_t* code_of(size_t query) const { return codes_ + query * index_.shape.M; }
  void set_limit(size_t query, double unit);
  float distance(size_t query, size_t place) const;
  double likely_bound() const;
  size_t near_tiles() const;
  void find_first(std::vector<Scratch>& scratch);
  void compare_own_tile(size_t first, size_t n, const NearEntries& entries, Scratch& scratch);
  void compare_near_tiles(const Queries& queries, const NearEntries& entries,
                          const NearEntries& centers, Scratch& scratch);
  void add_near_tiles(const uint32_t* queries, size_t n, const NearEntries& centers,
                      std::vector<Queries>& queries_of_tile, Scratch& scratch) const;
  void compare_blocks(const Queries& queries, bool both, std::vector<Scratch>& scratch);
  void compare_tile(size_t tile, const Queries& queries, Comparison by, Scratch& scratch);
  void compare(size_t first, const Queries& queries, Comparison by, Scratch& scratch);
  void compare_few(size_t first, const Queries& queries, const uint8_t* column_limit,
                   Comparison by, Scratch& scratch);
  void offer_columns(size_t first, Comparison by, Scratch& scratch);
  void offer(size_t query, NearCode code, Comparison by, Scratch& scratch);
  void add(size_t query, NearCode code, Scratch& scratch);
  void score(size_t query, const NearCode* codes, size_t n, Scratch& scratch) const;

  const NeighborIndex& index_;
  std::vector<uint32_t> places_;
  size_t n_, k_;
  NeighborWork work_;
  std::vector<uint8_t> own_;    // codes of the queries [n, M], where these are not all codes
  const uint8_t* codes_;        // of the queries
  NeighborPools pools_;
  std::vector<uint8_t> limit_;  // by query, in units; 255: none
};

}  // namespace raypq
