// Searches of codes: the uint8 scan filters, and survivors get exact scores. Results equal the
// NumPy reference bit for bit, order included. ``tables`` of topk_per_code are made with
// across_rows = false, those of the other functions with true.
#pragma once

#include "tables.hpp"

namespace raypq {

// The k best classes of each code B [N, M]: scores and classes [N, k], k ≤ T.
void topk_per_code(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                   float* scores, int64_t* classes);

// The k best rows of B [N, M] for each query: scores and rows [T, k], k ≤ N.
void topk_per_query(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                    float* scores, int64_t* rows);

// All scores [T, N] of B [N, M].
void all_scores(const ScanTables& tables, const uint8_t* B, size_t N, size_t threads,
                float* scores);

// A result of range_search.
struct Match {
  uint32_t query, row;
  float score;
};

// All (query, row) of B [N, M] with a score of at least ``threshold``, for each tile of queries,
// sorted by query, then by row. upper_triangle: only pairs with row > query.
std::vector<std::vector<Match>> range_search(const ScanTables& tables, const uint8_t* B, size_t N,
                                             float threshold, bool upper_triangle,
                                             size_t threads);

// Reads a tile sequentially, at the full bandwidth of memory, before it is accessed at random.
inline void touch(const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) (void)*static_cast<const volatile uint8_t*>(data + i);
}

}  // namespace raypq
