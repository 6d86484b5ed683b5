#include "join.hpp"

#include <cstring>
#include <numeric>

#include "support.hpp"

namespace raypq {

namespace {

constexpr size_t kFewPairs = 16;      // pairs of codes below two prefixes, checked one by one
constexpr size_t kFewChildren = 64;   // pairs of children that are compared one by one
constexpr size_t kDepth = 6;          // longest prefix in the tree
constexpr uint64_t kReport = 1 << 16; // steps after which a thread adds its work to the total

// The order of parts: those of the group first, then the others, ascending.
std::vector<size_t> order_of(const JoinPlan& plan) {
  std::vector<size_t> order;
  for (size_t m = plan.first[plan.group]; m < plan.first[plan.group + 1]; ++m) order.push_back(m);
  for (size_t m = 0; m < plan.M; ++m)
    if (m < plan.first[plan.group] || m >= plan.first[plan.group + 1]) order.push_back(m);
  return order;
}

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

// Rows of a code that take part in its pairs.
size_t taken(const Side& side, size_t u, bool once) { return once ? 1 : side.count(u); }

class Join {
 public:
  Join(const JoinPlan& plan, const Side& a, const Side& b, size_t depth, bool once)
      : plan_(plan), order_(order_of(plan)), a_(a), b_(b), same_(&a == &b), once_(once),
        depth_(depth),
        grouped_(plan.first[plan.group + 1] - plan.first[plan.group]) {
    for (size_t p = 0; p < depth; ++p)
      neighbours_.emplace_back(plan.T + order_[p] * plan.K * plan.K, plan.K);
    // Where, among the other parts, each earlier group ends.
    size_t p = grouped_;
    for (size_t h = 0; h < plan.group; ++h)
      ends_.push_back(p += plan.first[h + 1] - plan.first[h]);
  }

  size_t tasks() const { return a_.level(1).byte.size(); }
  bool gave_up() const { return work_ > plan_.most_work; }
  bool too_many() const { return plan_.most_pairs && total_ > plan_.most_pairs; }
  uint64_t total() const { return total_; }

  struct Worker {
    std::vector<RowPair> found;  // distinct codes, unless pairs are only counted
    std::vector<std::vector<uint16_t>> place;
    uint64_t visited = 0, checked = 0, reported = 0;
    uint64_t total = 0, counted = 0;  // pairs of rows
  };

  Worker worker() const {
    Worker worker;
    worker.place.assign(depth_ + 1, std::vector<uint16_t>(256, 0));
    return worker;
  }

  // Adds what a worker has done to the total; the pairs of its last task included.
  void finish(Worker& w) { add(w); }

  // All pairs below one prefix of length 1 of the first side.
  void run(Worker& worker, uint32_t node) {
    const float* row = table(0) + a_.level(1).byte[node] * plan_.K;
    for (uint32_t other = same_ ? node : 0; other < b_.level(1).byte.size(); ++other) {
      const float sum = row[b_.level(1).byte[other]];
      if (sum <= group_limit()) walk(worker, 1, node, other, sum);
    }
  }

 private:
  const float* table(size_t p) const { return plan_.T + order_[p] * plan_.K * plan_.K; }
  float group_limit() const { return plan_.group_limit[plan_.group]; }

  // Pairs below two prefixes whose distance is ``sum``.
  void walk(Worker& w, size_t level, uint32_t a, uint32_t b, float sum) {
    ++w.visited;
    if (report(w)) return;
    const Side::Level &A = a_.level(level), &B = b_.level(level);
    const size_t n = A.begin[a + 1] - A.begin[a], m = B.begin[b + 1] - B.begin[b];
    const bool itself = same_ && a == b;
    if (level == depth_ || n * m <= kFewPairs) {
      check(w, {A.begin[a], A.begin[a + 1]}, {B.begin[b], B.begin[b + 1]}, itself, level, sum);
      return;
    }
    const uint32_t a1 = A.child[a + 1], b0 = B.child[b], b1 = B.child[b + 1];
    const uint8_t *byte_a = a_.level(level + 1).byte.data(), *byte_b = b_.level(level + 1).byte.data();
    const size_t K = plan_.K;
    if ((a1 - A.child[a]) * size_t(b1 - b0) <= kFewChildren) {
      for (uint32_t x = A.child[a]; x < a1; ++x) {
        const float* row = table(level) + byte_a[x] * K;
        for (uint32_t y = itself ? x : b0; y < b1; ++y)
          if (const float s = sum + row[byte_b[y]]; s <= group_limit()) walk(w, level + 1, x, y, s);
      }
      return;
    }
    std::vector<uint16_t>& place = w.place[level];  // of a codeword among the children, from 1
    for (uint32_t y = b0; y < b1; ++y) place[byte_b[y]] = uint16_t(y - b0 + 1);
    const Neighbours& near = neighbours_[level];
    for (uint32_t x = A.child[a]; x < a1; ++x) {
      const size_t row = byte_a[x] * K;
      for (size_t k = row; k < row + K; ++k) {
        const float s = sum + near.distance[k];
        if (!(s <= group_limit())) break;
        const uint16_t at = place[near.codeword[k]];
        if (!at) continue;
        const uint32_t y = b0 + at - 1;
        if (!itself || y >= x) walk(w, level + 1, x, y, s);
      }
    }
    for (uint32_t y = b0; y < b1; ++y) place[byte_b[y]] = 0;
  }

  struct Range {
    uint32_t begin, end;
  };

  // Pairs of codes of two ranges whose first ``p`` parts have the distance ``sum``.
  void check(Worker& w, Range a, Range b, bool itself, size_t p, float sum) {
    for (uint32_t i = a.begin; i < a.end; ++i) {
      const uint32_t first = itself ? i + 1 : b.begin;
      for (uint32_t j = first; j < b.end; ++j) {
        if (!within(a_.code(i), b_.code(j), p, sum)) continue;
        w.total += uint64_t(taken(a_, i, once_)) * taken(b_, j, once_);
        if (plan_.most_pairs) w.found.push_back({i, j});
      }
      w.checked += b.end - first;
      if (report(w)) return;  // two prefixes alone may be all of the work
    }
  }

  bool within(const uint8_t* a, const uint8_t* b, size_t p, float sum) const {
    const size_t K = plan_.K;
    for (; p < grouped_; ++p) {
      sum += table(p)[a[p] * K + b[p]];
      if (!(sum <= group_limit())) return false;
    }
    float total = sum;
    // An earlier group that is within its limit has found the pair: its sum is in the same order.
    for (size_t h = 0; h < ends_.size(); ++h) {
      float part = 0;
      for (; p < ends_[h]; ++p) part += table(p)[a[p] * K + b[p]];
      if (part <= plan_.group_limit[h]) return false;
      total += part;
    }
    for (; p < plan_.M; ++p) {
      total += table(p)[a[p] * K + b[p]];
      if (!(total <= plan_.limit)) return false;
    }
    return total <= plan_.limit;
  }

  bool report(Worker& w) {
    if (w.visited + w.checked - w.reported >= kReport) add(w);
    return gave_up() || too_many();
  }

  void add(Worker& w) {
    const uint64_t done = w.visited + w.checked;
    work_ += done - w.reported;
    total_ += w.total - w.counted;
    w.reported = done;
    w.counted = w.total;
  }

  const JoinPlan& plan_;
  std::vector<size_t> order_, ends_;
  const Side &a_, &b_;
  bool same_, once_;
  size_t depth_, grouped_;
  std::vector<Neighbours> neighbours_;
  std::atomic<uint64_t> work_{0}, total_{0};
};

// The number of pairs of rows with one code.
uint64_t equal_pairs(const Side& a, bool once) {
  uint64_t total = 0;
  for (size_t u = 0; u < a.size(); ++u) {
    const uint64_t n = a.count(u);
    total += once ? n - 1 : n * (n - 1) / 2;
  }
  return total;
}

// The rows of pairs of distinct codes, and, where ``equal``, pairs of rows with one code. Where
// ``once``, only the first row of a code stands for it.
void expand(const Side& a, const Side& b, bool equal, bool once, const std::vector<RowPair>& codes,
            std::vector<RowPair>& out) {
  const bool same = &a == &b;
  auto add = [&](uint32_t x, uint32_t y) {
    out.push_back(same && y < x ? RowPair{y, x} : RowPair{x, y});
  };
  for (const RowPair& pair : codes)
    for (size_t i = 0; i < taken(a, pair.a, once); ++i)
      for (size_t j = 0; j < taken(b, pair.b, once); ++j)
        add(a.rows(pair.a)[i], b.rows(pair.b)[j]);
  for (size_t u = 0; equal && u < a.size(); ++u)
    for (size_t i = 0; i < taken(a, u, once); ++i)
      for (size_t j = i + 1; j < a.count(u); ++j) add(a.rows(u)[i], a.rows(u)[j]);
}

}  // namespace

JoinResult join(const JoinPlan& plan, const uint8_t* A, size_t n, const uint8_t* B, size_t m,
                bool once, size_t threads) {
  JoinResult result;
  if (!n || (B && !m)) return result;
  const std::vector<size_t> order = order_of(plan);
  const size_t depth = std::min(plan.first[plan.group + 1] - plan.first[plan.group], kDepth);
  const Side a(A, n, order, depth);
  std::vector<Side> other;
  if (B) other.emplace_back(B, m, order, depth);
  const Side& b = B ? other[0] : a;
  Join join(plan, a, b, depth, once);
  std::vector<Join::Worker> workers;
  for (size_t i = 0; i < threads; ++i) workers.push_back(join.worker());
  parallel(join.tasks(), threads,
           [&](size_t thread, size_t task) { join.run(workers[thread], uint32_t(task)); });
  for (Join::Worker& worker : workers) {
    join.finish(worker);
    result.visited += worker.visited;
    result.checked += worker.checked;
  }
  result.complete = !join.gave_up();
  // Pairs of equal codes are within every group's limit, so that the first group finds them.
  const bool equal = plan.group == 0 && !B;
  result.total = join.total() + (equal ? equal_pairs(a, once) : 0);
  if (!result.complete || !plan.most_pairs || result.total > plan.most_pairs) return result;
  result.pairs.reserve(result.total);
  for (size_t i = 0; i < workers.size(); ++i) {
    expand(a, b, equal && i == 0, once, workers[i].found, result.pairs);
    std::vector<RowPair>().swap(workers[i].found);
  }
  return result;
}

}  // namespace raypq
