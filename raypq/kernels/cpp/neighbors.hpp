// The k nearest of n codes to each of them, by symmetric squared distance, without a comparison of
// all pairs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "code_order.hpp"
#include "support.hpp"

namespace raypq {

// Codebooks and distances; the arrays are copied.
struct NeighborSource {
  Shape shape;
  const float* C;       // [M, K, d]
  const double* norms;  // ‖c‖² [M, K]
  const float* T;       // squared distances of codewords [M, K, K], symmetric
};

class NeighborSearch;

// What a search did: pairs of a query and 64 blocks whose bounds were compared, pairs of a query
// and 64 codes that were, and distances.
struct NeighborWork {
  uint64_t bounds = 0, compared = 0, scored = 0;
  void add(const NeighborWork& other) {
    bounds += other.bounds, compared += other.compared, scored += other.scored;
  }
};

// The distinct codes in an order of nearness. Their *place* is the place in it.
//
// S(a, b) = Σ_m T[m, a_m, b_m]. A block has four codes. Of a code and a block, the sum of the least
// T of each part is a lower bound, by which most blocks are left out. A table of 64 columns,
// [M][K][64], holds these least T of a tile of 64 blocks, or the T of 64 codes. Its entries are
// T / unit, rounded down to 8 bits, so that a sum is a lower bound, too; those that remain get
// their exact score, as ``raypq.kernels.tables`` has it.
class NeighborIndex {
 public:
  // codes [n, M].
  NeighborIndex(const NeighborSource& source, const uint8_t* codes, size_t n, const Isa& isa,
                size_t threads);
  ~NeighborIndex();

  // Searches for all codes, at about half the cost of as many searches for some of them; ``find``
  // for the same k then only looks up.
  NeighborWork search_all(size_t k, size_t threads);

  // The k best rows of n rows of the codes, k at most their number: scores (negative squared
  // distances) and rows [n, k], best first, ties to the lower row. Each row is among its own.
  NeighborWork find(const uint32_t* rows, size_t n, size_t k, size_t threads, float* scores,
                    int64_t* found) const;

  size_t size() const { return distinct.size(); }
  size_t tiles() const { return (size() + kTileRows - 1) / kTileRows; }
  const uint8_t* code(size_t place) const { return codes.data() + place * shape.M; }

  // A bound of symmetric distances, from one that was computed in another order and rounded.
  double bound_of(float score) const {
    return (score < 0 ? -double(score) : 0.0) * (1 + 0x1p-20) + margin;
  }

  Shape shape;
  const Isa& isa;
  DistinctCodes distinct;        // without ``codes``
  std::vector<uint32_t> number;  // by place: the code
  std::vector<uint32_t> place;   // by code
  std::vector<uint8_t> codes;    // by place, up to whole tiles: the last one is repeated
  std::vector<uint8_t> centers;  // by tile, up to whole tables: the code of its mean
  Array<float> codebooks;        // padded for decode
  std::vector<double> norms;
  Array<float> T;
  double margin;                 // of the rounding of scores
  double center_unit;            // of tables of the centers
  mutable std::atomic<float> searched{0};  // share of a search for all; read by other threads

 private:
  void set_centers(size_t threads);

  std::unique_ptr<const NeighborSearch> all_;
};

}  // namespace raypq
