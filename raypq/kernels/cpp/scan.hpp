// Top-k from codes: the uint8 scan as a filter, exact scores for what it keeps. Both answers equal
// the NumPy reference bit for bit, ids and order.
#pragma once

#include "tables.hpp"

namespace raypq {

// The k best classes of each code B [N, M]: scores and classes [N, k], k ≤ T. ``tables`` were made
// with across_rows = false.
void topk_per_code(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                   float* scores, int64_t* classes);

// The k best rows of B [N, M] for each query: scores and rows [T, k], k ≤ N. ``tables`` were made
// with across_rows = true.
void topk_per_query(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                    float* scores, int64_t* rows);

// All scores [T, N] of B [N, M], exact. ``tables`` were made with across_rows = true.
void all_scores(const ScanTables& tables, const uint8_t* B, size_t N, size_t threads,
                float* scores);

// A row that is near enough to a query.
struct Within {
  uint32_t query, row;
  float score;
};

// Every row of B [N, M] whose score for a query is at least ``least``, by tile of queries, in the
// order of queries and then of rows; ``after``: only rows whose number is above the query's.
// ``tables`` were made with across_rows = true.
std::vector<std::vector<Within>> within(const ScanTables& tables, const uint8_t* B, size_t N,
                                        float least, bool after, size_t threads);

// Reads a tile in order, so that it comes in at the memory's full speed, before random access.
inline void touch(const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) (void)*static_cast<const volatile uint8_t*>(data + i);
}

}  // namespace raypq
