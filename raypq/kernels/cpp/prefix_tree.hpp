// Sorted codes as a tree of their prefixes, and codewords by distance.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace raypq {

// Distinct codes in lexicographic order of their parts, the rows of each, and the tree of their
// prefixes.
class Side {
 public:
  Side(const uint8_t* codes, size_t n, const std::vector<size_t>& order, size_t depth)
      : M_(order.size()), rows_(n) {
    struct Entry {
      uint64_t key;  // the first eight parts
      uint32_t row;
    };
    std::vector<Entry> entries(n);
    std::vector<uint8_t> ordered(n * M_);
    for (size_t i = 0; i < n; ++i) {
      uint8_t* row = ordered.data() + i * M_;
      for (size_t p = 0; p < M_; ++p) row[p] = codes[i * M_ + order[p]];
      uint64_t key = 0;
      for (size_t p = 0; p < 8; ++p) key = key << 8 | (p < M_ ? row[p] : 0);
      entries[i] = {key, uint32_t(i)};
    }
    const size_t rest = M_ > 8 ? M_ - 8 : 0;
    auto compare = [&](uint32_t a, uint32_t b) {
      return rest ? std::memcmp(ordered.data() + a * M_ + 8, ordered.data() + b * M_ + 8, rest) : 0;
    };
    std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
      if (a.key != b.key) return a.key < b.key;
      const int c = compare(a.row, b.row);
      return c ? c < 0 : a.row < b.row;
    });
    for (size_t i = 0; i < n; ++i) {
      rows_[i] = entries[i].row;
      if (i && entries[i].key == entries[i - 1].key &&
          !compare(entries[i].row, entries[i - 1].row))
        continue;
      start_.push_back(uint32_t(i));
      const uint8_t* row = ordered.data() + size_t(entries[i].row) * M_;
      codes_.insert(codes_.end(), row, row + M_);
    }
    start_.push_back(uint32_t(n));
    build_tree(depth);
  }

  size_t size() const { return start_.size() - 1; }  // distinct codes
  const uint8_t* code(size_t u) const { return codes_.data() + u * M_; }
  const uint32_t* rows(size_t u) const { return rows_.data() + start_[u]; }
  size_t count(size_t u) const { return start_[u + 1] - start_[u]; }

  // Nodes of level l are the prefixes of length l; ``begin`` is the first code of each, ``child``
  // its first child; both have a last entry beyond them. ``byte`` is the last part of the prefix.
  struct Level {
    std::vector<uint32_t> begin, child;
    std::vector<uint8_t> byte;
  };
  const Level& level(size_t l) const { return levels_[l]; }

 private:
  void build_tree(size_t depth) {
    levels_.resize(depth + 1);
    levels_[0].begin = {0, uint32_t(size())};
    levels_[0].byte = {0};
    for (size_t l = 1; l <= depth; ++l) {
      Level &parents = levels_[l - 1], &nodes = levels_[l];
      for (size_t p = 0; p + 1 < parents.begin.size(); ++p) {
        parents.child.push_back(uint32_t(nodes.byte.size()));
        for (uint32_t u = parents.begin[p]; u < parents.begin[p + 1]; ++u) {
          const uint8_t byte = code(u)[l - 1];
          if (u > parents.begin[p] && byte == nodes.byte.back()) continue;
          nodes.begin.push_back(u);
          nodes.byte.push_back(byte);
        }
      }
      parents.child.push_back(uint32_t(nodes.byte.size()));
      nodes.begin.push_back(uint32_t(size()));
    }
  }

  size_t M_;
  std::vector<uint32_t> rows_, start_;
  std::vector<uint8_t> codes_;
  std::vector<Level> levels_;
};

// Codewords of a part in order of their distance from each.
struct Neighbours {
  std::vector<uint8_t> codeword;  // [K, K]
  std::vector<float> distance;

  Neighbours(const float* T, size_t K) : codeword(K * K), distance(K * K) {
    std::vector<uint8_t> order(K);
    for (size_t a = 0; a < K; ++a) {
      std::iota(order.begin(), order.end(), uint8_t(0));
      const float* row = T + a * K;
      std::stable_sort(order.begin(), order.end(),
                       [&](uint8_t x, uint8_t y) { return row[x] < row[y]; });
      for (size_t k = 0; k < K; ++k) {
        codeword[a * K + k] = order[k];
        distance[a * K + k] = row[order[k]];
      }
    }
  }
};

}  // namespace raypq
