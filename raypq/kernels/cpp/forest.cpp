#include "forest.hpp"

#include <algorithm>
#include <numeric>

namespace raypq {

namespace {

// Sets of connected nodes.
class Sets {
 public:
  explicit Sets(size_t n) : parent_(n) { std::iota(parent_.begin(), parent_.end(), 0u); }

  uint32_t find(uint32_t x) {
    while (parent_[x] != x) x = parent_[x] = parent_[parent_[x]];
    return x;
  }

  // False if both are connected already.
  bool unite(uint32_t a, uint32_t b) {
    a = find(a);
    b = find(b);
    if (a == b) return false;
    parent_[std::max(a, b)] = std::min(a, b);
    return true;
  }

 private:
  std::vector<uint32_t> parent_;
};

}  // namespace

std::vector<uint32_t> spanning_forest(size_t n, const Edge* edges, const float* weight, size_t e) {
  std::vector<uint32_t> order(e), kept;
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t x, uint32_t y) {
    if (weight[x] != weight[y]) return weight[x] < weight[y];
    if (edges[x].a != edges[y].a) return edges[x].a < edges[y].a;
    return edges[x].b != edges[y].b ? edges[x].b < edges[y].b : x < y;
  });
  Sets sets(n);
  for (uint32_t edge : order)
    if (sets.unite(edges[edge].a, edges[edge].b)) kept.push_back(edge);
  return kept;
}

std::vector<uint32_t> edges_from(size_t n, const Edge* edges, size_t e, const uint32_t* roots,
                                 size_t r) {
  // The edges of each node, one after the other.
  std::vector<uint32_t> start(n + 1, 0), at(2 * e), found(n, uint32_t(e)), ahead;
  for (size_t i = 0; i < e; ++i) {
    ++start[edges[i].a + 1];
    ++start[edges[i].b + 1];
  }
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<uint32_t> next(start.begin(), start.end() - 1);
  for (size_t i = 0; i < e; ++i) {
    at[next[edges[i].a]++] = uint32_t(i);
    at[next[edges[i].b]++] = uint32_t(i);
  }
  std::vector<bool> reached(n, false);
  for (size_t i = 0; i < r; ++i) {
    if (reached[roots[i]]) continue;
    reached[roots[i]] = true;
    ahead.push_back(roots[i]);
  }
  for (size_t i = 0; i < ahead.size(); ++i) {
    const uint32_t x = ahead[i];
    for (uint32_t k = start[x]; k < start[x + 1]; ++k) {
      const Edge& edge = edges[at[k]];
      const uint32_t y = edge.a == x ? edge.b : edge.a;
      if (reached[y]) continue;
      reached[y] = true;
      found[y] = at[k];
      ahead.push_back(y);
    }
  }
  return found;
}

}  // namespace raypq
