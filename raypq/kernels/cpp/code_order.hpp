// Distinct codes, and an order in which near ones are neighbours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.hpp"

namespace raypq {

// The distinct codes among rows, numbered by their first row.
struct DistinctCodes {
  size_t M = 0;
  std::vector<uint8_t> codes;    // [size, M]
  std::vector<uint32_t> number;  // by row: its code
  std::vector<uint32_t> start;   // by code: its first place in ``rows``; and the number of rows
  std::vector<uint32_t> rows;    // by code, ascending

  DistinctCodes(const uint8_t* B, size_t n, size_t M);
  size_t size() const { return start.size() - 1; }
};

// Consecutive codes of the order: the blocks of one table.
constexpr size_t kTileRows = kBlockRows * kTileWidth;

// An order of n codes [n, M] of codebooks C [M, K, d]: halves of halves, each cut at the median
// along the direction in which its decoded codes spread most, so that blocks are of near codes.
// T: squared distances of codewords [M, K, K].
std::vector<uint32_t> order_by_nearness(const Shape& shape, const float* C, const float* T,
                                        const uint8_t* codes, size_t n, size_t threads);

}  // namespace raypq
