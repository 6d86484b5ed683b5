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
    const std::vector<Entry> entries = sorted(codes, n, order);
    levels_.resize(depth + 1);
    levels_[0].begin = {0};
    levels_[0].byte = {0};
    levels_[0].child = {0};
    codes_.resize(n * M_);
    uint8_t* out = codes_.data();
    for (size_t i = 0; i < n; ++i) {
      rows_[i] = entries[i].row;
      const size_t same = i ? common(codes, order, entries[i - 1], entries[i]) : 0;
      if (i && same == M_) continue;
      const uint8_t* row = codes + size_t(entries[i].row) * M_;
      for (size_t p = 0; p < M_; ++p) out[p] = p < 2 * kKey ? entries[i].part(p) : row[order[p]];
      out += M_;
      add_to_tree(uint32_t(start_.size()), same, depth);
      start_.push_back(uint32_t(i));
    }
    codes_.resize(size_t(out - codes_.data()));
    start_.push_back(uint32_t(n));
    for (size_t l = 0; l <= depth; ++l) {
      levels_[l].begin.push_back(uint32_t(size()));
      if (l < depth) levels_[l].child.push_back(uint32_t(levels_[l + 1].byte.size()));
    }
  }

  // Gives row ``i`` the number ``names[i]``; names ascend.
  void rename(const std::vector<uint32_t>& names) {
    for (uint32_t& row : rows_) row = names[row];
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
  static constexpr size_t kKey = 8, kBuckets = 1 << 16;

  // A row with its first sixteen parts, so that others are read from the codes, which are anywhere
  // in memory, only where these are equal.
  struct Entry {
    uint64_t key, more;
    uint32_t row;

    uint8_t part(size_t p) const {
      return uint8_t((p < kKey ? key : more) >> (8 * (kKey - 1 - p % kKey)));
    }
  };

  // Rows by code, and rows with one code in order: into buckets by their first two parts, each of
  // which is then sorted.
  std::vector<Entry> sorted(const uint8_t* codes, size_t n, const std::vector<size_t>& order) const {
    auto key_of = [&](const uint8_t* row, size_t from) {
      uint64_t key = 0;
      for (size_t p = from; p < from + kKey; ++p) key = key << 8 | (p < M_ ? row[order[p]] : 0);
      return key;
    };
    std::vector<uint32_t> start(kBuckets + 1, 0);
    for (size_t i = 0; i < n; ++i) {
      const uint8_t* row = codes + i * M_;
      ++start[(size_t(row[order[0]]) << 8 | (M_ > 1 ? row[order[1]] : 0)) + 1];
    }
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<uint32_t> next(start.begin(), start.end() - 1);
    std::vector<Entry> entries(n);
    for (size_t i = 0; i < n; ++i) {
      const uint8_t* row = codes + i * M_;
      const uint64_t key = key_of(row, 0);
      entries[next[key >> 48]++] = {key, key_of(row, kKey), uint32_t(i)};
    }
    auto less = [&](const Entry& a, const Entry& b) {
      if (a.key != b.key) return a.key < b.key;
      if (a.more != b.more) return a.more < b.more;
      const uint8_t *x = codes + size_t(a.row) * M_, *y = codes + size_t(b.row) * M_;
      for (size_t p = 2 * kKey; p < M_; ++p)
        if (x[order[p]] != y[order[p]]) return x[order[p]] < y[order[p]];
      return a.row < b.row;
    };
    for (size_t k = 0; k < kBuckets; ++k)
      std::sort(entries.begin() + start[k], entries.begin() + start[k + 1], less);
    return entries;
  }

  // Number of first parts that two codes have in common; M if all are.
  size_t common(const uint8_t* codes, const std::vector<size_t>& order, const Entry& a,
                const Entry& b) const {
    if (const uint64_t differs = a.key ^ b.key) return size_t(__builtin_clzll(differs)) / 8;
    if (const uint64_t differs = a.more ^ b.more)
      return kKey + size_t(__builtin_clzll(differs)) / 8;
    const uint8_t *x = codes + size_t(a.row) * M_, *y = codes + size_t(b.row) * M_;
    for (size_t p = 2 * kKey; p < M_; ++p)
      if (x[order[p]] != y[order[p]]) return p;
    return M_;
  }

  // Adds the prefixes of code ``u`` that are longer than those it has in common with the last one.
  void add_to_tree(uint32_t u, size_t same, size_t depth) {
    if (!u) same = 0;
    for (size_t l = same + 1; l <= depth; ++l) {
      Level& level = levels_[l];
      level.begin.push_back(u);
      level.byte.push_back(code(u)[l - 1]);
      if (l < depth) level.child.push_back(uint32_t(levels_[l + 1].byte.size()));
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
