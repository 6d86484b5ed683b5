#include "join.hpp"

#include "pair_queue.hpp"
#include "prefix_tree.hpp"
#include "support.hpp"

namespace raypq {

namespace {

constexpr size_t kFewPairs = 16;      // pairs of codes below two prefixes, checked one by one
constexpr size_t kFewChildren = 64;   // pairs of children that are compared one by one
constexpr size_t kDepth = 6;          // longest prefix in the tree
constexpr uint64_t kReport = 1 << 16; // steps after which a thread adds its work to the total
constexpr size_t kMuchLarger = 4;       // rows of B for one of A, beyond which most may be left out
constexpr size_t kChunk = 1 << 17;    // pairs that are handed over at a time

// The order of parts: those of the group first, then the others, ascending.
std::vector<size_t> order_of(const JoinPlan& plan) {
  std::vector<size_t> order;
  for (size_t m = plan.first[plan.group]; m < plan.first[plan.group + 1]; ++m) order.push_back(m);
  for (size_t m = 0; m < plan.M; ++m)
    if (m < plan.first[plan.group] || m >= plan.first[plan.group + 1]) order.push_back(m);
  return order;
}

// Rows of a code that take part in its pairs.
size_t taken(const Side& side, size_t u, bool once) { return once ? 1 : side.count(u); }

class Join {
 public:
  // Without a queue, pairs are only counted.
  Join(const JoinPlan& plan, const Side& a, const Side& b, size_t depth, bool once,
       uint64_t most_steps, PairQueue* queue)
      : plan_(plan), order_(order_of(plan)), a_(a), b_(b), same_(&a == &b), once_(once),
        depth_(depth), most_steps_(most_steps), queue_(queue),
        grouped_(plan.first[plan.group + 1] - plan.first[plan.group]) {
    for (size_t p = 0; p < depth; ++p)
      neighbours_.emplace_back(plan.T.data() + order_[p] * plan.K * plan.K, plan.K);
    // Where, among the other parts, each earlier group ends.
    size_t p = grouped_;
    for (size_t h = 0; h < plan.group; ++h)
      ends_.push_back(p += plan.first[h + 1] - plan.first[h]);
  }

  // All pairs, by so many threads.
  JoinWork run(size_t threads) {
    // Pairs of equal codes are within every group's limit, so that the first group finds them.
    const size_t equal = plan_.group == 0 && same_ ? 1 : 0, nodes = a_.level(1).byte.size();
    std::vector<Worker> workers(threads);
    for (Worker& worker : workers)
      worker.place.assign(depth_ + 1, std::vector<uint16_t>(256, 0));
    parallel(nodes + equal, threads, [&](size_t thread, size_t task) {
      Worker& worker = workers[thread];
      if (task < nodes) {
        below(worker, uint32_t(task));
      } else {
        equal_codes(worker);
      }
    });
    JoinWork work;
    for (Worker& worker : workers) {
      report_all(worker);
      flush(worker);
      work.visited += worker.visited;
      work.checked += worker.checked;
      work.total += worker.total;
    }
    work.complete = steps_ <= most_steps_;
    return work;
  }

 private:
  struct Worker {
    std::vector<RowPair> found;
    std::vector<std::vector<uint16_t>> place;
    uint64_t visited = 0, checked = 0, reported = 0, total = 0;
  };

  const float* table(size_t p) const { return plan_.T.data() + order_[p] * plan_.K * plan_.K; }
  float group_limit() const { return plan_.group_limit[plan_.group]; }

  // All pairs below one prefix of length 1 of the first side.
  void below(Worker& worker, uint32_t node) {
    const float* row = table(0) + a_.level(1).byte[node] * plan_.K;
    for (uint32_t other = same_ ? node : 0; other < b_.level(1).byte.size(); ++other) {
      const float sum = row[b_.level(1).byte[other]];
      if (sum <= group_limit()) walk(worker, 1, node, other, sum);
    }
  }

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
        if (!add(w, i, j)) return;
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

  // Adds the pairs of rows of two codes; false if no more are wanted.
  bool add(Worker& w, uint32_t i, uint32_t j) {
    const size_t n = taken(a_, i, once_), m = taken(b_, j, once_);
    w.total += uint64_t(n) * m;
    if (!queue_) return true;
    for (size_t x = 0; x < n; ++x)
      for (size_t y = 0; y < m; ++y)
        if (!add_rows(w, a_.rows(i)[x], b_.rows(j)[y])) return false;
    return true;
  }

  // Pairs of rows with one code.
  void equal_codes(Worker& w) {
    for (size_t u = 0; u < a_.size(); ++u) {
      const uint64_t n = a_.count(u);
      w.total += once_ ? n - 1 : n * (n - 1) / 2;
      if (!queue_) continue;
      for (size_t i = 0; i < taken(a_, u, once_); ++i)
        for (size_t j = i + 1; j < n; ++j)
          if (!add_rows(w, a_.rows(u)[i], a_.rows(u)[j])) return;
    }
  }

  bool add_rows(Worker& w, uint32_t a, uint32_t b) {
    if (same_ && b < a) std::swap(a, b);
    w.found.push_back({a, b});
    return w.found.size() < kChunk || flush(w);
  }

  bool flush(Worker& w) {
    if (!queue_ || w.found.empty()) return true;
    if (!queue_->push(w.found)) stopped_ = true;
    return !stopped_;
  }

  // Whether to stop: more steps than allowed, or no more pairs are wanted.
  bool report(Worker& w) {
    if (w.visited + w.checked - w.reported >= kReport) report_all(w);
    return stopped_ || steps_ > most_steps_;
  }

  void report_all(Worker& w) {
    const uint64_t done = w.visited + w.checked;
    steps_ += done - w.reported;
    w.reported = done;
  }

  const JoinPlan& plan_;
  std::vector<size_t> order_, ends_;
  const Side &a_, &b_;
  bool same_, once_;
  size_t depth_;
  uint64_t most_steps_;
  PairQueue* queue_;
  size_t grouped_;
  std::vector<Neighbours> neighbours_;
  std::atomic<uint64_t> steps_{0};
  std::atomic<bool> stopped_{false};
};

size_t depth_of(const JoinPlan& plan) {
  return std::min(plan.first[plan.group + 1] - plan.first[plan.group], kDepth);
}

// Which of the first parts of a group occur in a code that some code of A may be near to.
class Likely {
 public:
  // Of no use (``all``) where more would be marked than ``most`` times.
  Likely(const JoinPlan& plan, const Side& a, size_t depth, uint64_t most)
      : order_(order_of(plan)), length_(std::min(depth, kMarked)), left_(most),
        marked_(size_t(1) << (8 * length_), false) {
    for (size_t p = 0; p < length_; ++p)
      neighbours_.emplace_back(plan.T.data() + order_[p] * plan.K * plan.K, plan.K);
    const Side::Level& nodes = a.level(length_);
    for (size_t node = 0; node < nodes.byte.size() && left_; ++node)
      mark(a.code(nodes.begin[node]), plan.K, plan.group_limit[plan.group], 0, 0, 0.0f);
  }

  bool all() const { return !left_; }

  bool has(const uint8_t* code) const {
    size_t key = 0;
    for (size_t p = 0; p < length_; ++p) key = key << 8 | code[order_[p]];
    return marked_[key];
  }

 private:
  static constexpr size_t kMarked = 3;

  void mark(const uint8_t* code, size_t K, float limit, size_t p, size_t key, float sum) {
    if (p == length_) {
      marked_[key] = true;
      left_ -= left_ > 0;
      return;
    }
    const Neighbours& near = neighbours_[p];
    for (size_t k = code[p] * K; k < (size_t(code[p]) + 1) * K && left_; ++k) {
      const float s = sum + near.distance[k];
      if (!(s <= limit)) break;
      mark(code, K, limit, p + 1, key << 8 | near.codeword[k], s);
    }
  }

  std::vector<size_t> order_;
  size_t length_;
  uint64_t left_;
  std::vector<bool> marked_;
  std::vector<Neighbours> neighbours_;
};

// Both sides; within one, the second is the first.
struct SortedSides {
  Side a;
  std::unique_ptr<Side> other;

  SortedSides(const JoinPlan& plan, const JoinSides& sides)
      : a(sides.A, sides.n, order_of(plan), depth_of(plan)) {
    if (!sides.B) return;
    const std::vector<size_t> order = order_of(plan);
    // Where A is small, most of B may be far from all of it, and need not be sorted.
    if (sides.m / kMuchLarger > sides.n) {
      const Likely likely(plan, a, depth_of(plan), sides.m);
      if (!likely.all()) {
        std::vector<uint32_t> rows;
        std::vector<uint8_t> codes;
        for (size_t j = 0; j < sides.m; ++j) {
          const uint8_t* code = sides.B + j * plan.M;
          if (!likely.has(code)) continue;
          rows.push_back(uint32_t(j));
          codes.insert(codes.end(), code, code + plan.M);
        }
        other = std::make_unique<Side>(codes.data(), rows.size(), order, depth_of(plan));
        other->rename(rows);
        return;
      }
    }
    other = std::make_unique<Side>(sides.B, sides.m, order, depth_of(plan));
  }

  const Side& b() const { return other ? *other : a; }
};

bool empty(const JoinSides& sides) { return !sides.n || (sides.B && !sides.m); }

}  // namespace

JoinWork count_pairs(const JoinPlan& plan, const JoinSides& sides, uint64_t most_steps,
                     size_t threads) {
  if (empty(sides)) return {};
  const SortedSides sorted(plan, sides);
  Join join(plan, sorted.a, sorted.b(), depth_of(plan), sides.once, most_steps, nullptr);
  return join.run(threads);
}

class PairStream::State {
 public:
  State(JoinPlan plan, const JoinSides& sides, size_t threads)
      : plan_(std::move(plan)), sides_(plan_, sides),
        join_(plan_, sides_.a, sides_.b(), depth_of(plan_), sides.once, UINT64_MAX, &queue_),
        thread_([this, threads] {
          std::exception_ptr failure;
          try {
            join_.run(threads);
          } catch (...) {
            failure = std::current_exception();
          }
          queue_.finish(failure);
        }) {}

  ~State() {
    queue_.close();
    thread_.join();
  }

  std::vector<RowPair> next() { return queue_.pop(); }

 private:
  JoinPlan plan_;
  SortedSides sides_;
  PairQueue queue_;
  Join join_;
  std::thread thread_;
};

PairStream::PairStream(JoinPlan plan, const JoinSides& sides, size_t threads) {
  if (!empty(sides)) state_ = std::make_unique<State>(std::move(plan), sides, threads);
}

PairStream::~PairStream() = default;

std::vector<RowPair> PairStream::next() {
  return state_ ? state_->next() : std::vector<RowPair>();
}

}  // namespace raypq
