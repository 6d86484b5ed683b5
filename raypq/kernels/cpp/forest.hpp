// Minimum spanning forests of graphs with numbered nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace raypq {

struct Edge {
  uint32_t a, b;
};

// The edges of the minimum spanning forest, by number, in order of their weights; of equal weights,
// in order of a and b. Nodes are below ``n``.
std::vector<uint32_t> spanning_forest(size_t n, const Edge* edges, const float* weight, size_t e);

// For each of ``n`` nodes, the edge by which a forest reaches it from ``roots``; e for roots, and
// for nodes that they do not reach.
std::vector<uint32_t> edges_from(size_t n, const Edge* edges, size_t e, const uint32_t* roots,
                                 size_t r);

}  // namespace raypq
