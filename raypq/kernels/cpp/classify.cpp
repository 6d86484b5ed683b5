// Classification: the rows of a call, in blocks, over its threads.
#include <algorithm>
#include <memory>
#include <mutex>

#include "block.hpp"

namespace raypq {

namespace {

// Most rows of a block: many, because every block reads all tiles; bounded by the memory of its
// candidates.
constexpr size_t kRows = 65536, kCandidateBytes = size_t(48) << 20;

// Rows that are classified first where there is no trend yet, in calls of at least kMany rows.
constexpr size_t kPilot = 512, kMany = 16 * kPilot;

// Classifies a few rows without a forecast if there is no trend yet, then all others, then those
// again whose cutoff was too high.
class Classification {
 public:
  Classification(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
       const TopK& out)
      : t_(tables), B_(B), N_(N), k_(k), out_(out), blocks_(threads) {
    const size_t fit = kCandidateBytes / Candidates::bytes(k, tables.source.T);
    const size_t most = std::clamp<size_t>(fit, 1, kRows) * threads;
    rows_ = share(N, share(N, most) * threads);
  }

  void run() {
    const size_t first = Forecast::possible(t_) && !trend().k && N_ >= kMany ? kPilot : 0;
    if (first) scan(0, first);
    scan(first, N_);
    scan_again();
  }

 private:
  static size_t share(size_t n, size_t shares) { return (n + shares - 1) / shares; }

  // The trend of earlier calls with the same k.
  Trend trend() const {
    const std::lock_guard<std::mutex> lock(t_.guard);
    return t_.trend.k == k_ ? t_.trend : Trend{};
  }

  Block& block(size_t thread) {
    if (!blocks_[thread]) blocks_[thread] = std::make_unique<Block>(t_, rows_, k_);
    return *blocks_[thread];
  }

  void count(const Block& worker) const {
    t_.candidates += worker.candidates, t_.exact_scores += worker.exact_scores;
  }

  // Rows of a task out of n: as many as a block has room for, or fewer, so that every thread gets
  // some.
  size_t task_rows(size_t n) const { return std::min(rows_, share(n, blocks_.size())); }

  // Rows [first, last).
  void scan(size_t first, size_t last) {
    const size_t rows = task_rows(last - first);
    const Trend trend = this->trend();
    parallel(share(last - first, rows), blocks_.size(), [&](size_t thread, size_t task) {
      const size_t at = first + task * rows, n = std::min(rows, last - at);
      Block& worker = block(thread);
      const FirstCutoff begin = trend.k ? FirstCutoff::kForecast : FirstCutoff::kNone;
      worker.run(B_ + at * t_.source.shape.M, n, begin, trend,
                 {out_.scores + at * k_, out_.classes + at * k_});
      count(worker);
      for (uint32_t& row : worker.failed) row += uint32_t(at);
      const std::lock_guard<std::mutex> lock(guard_);
      failed_.insert(failed_.end(), worker.failed.begin(), worker.failed.end());
      observed_.insert(observed_.end(), worker.observed.begin(), worker.observed.end());
    });
    if (observed_.size() >= kPilot / 2) {
      const Trend fitted = Forecast::fit(observed_, k_);
      const std::lock_guard<std::mutex> lock(t_.guard);
      t_.trend = fitted;
    }
    observed_.clear();
  }

  // Classifies all failed rows in one more pass over the tables, with cutoffs from their first
  // scan.
  void scan_again() {
    if (failed_.empty()) return;
    t_.rescans += failed_.size();
    const size_t M = t_.source.shape.M;
    const size_t rows = task_rows(failed_.size());
    parallel(share(failed_.size(), rows), blocks_.size(), [&](size_t thread, size_t task) {
      const size_t at = task * rows, n = std::min(rows, failed_.size() - at);
      const uint32_t* row = failed_.data() + at;
      std::vector<uint8_t> codes(n * M);
      std::vector<float> scores(n * k_);
      std::vector<int64_t> classes(n * k_);
      for (size_t i = 0; i < n; ++i) {
        std::copy_n(B_ + row[i] * M, M, codes.data() + i * M);
        std::copy_n(out_.scores + row[i] * k_, k_, scores.data() + i * k_);
      }
      Block& worker = block(thread);
      worker.run(codes.data(), n, FirstCutoff::kKnown, {}, {scores.data(), classes.data()});
      count(worker);
      for (size_t i = 0; i < n; ++i) {
        std::copy_n(scores.data() + i * k_, k_, out_.scores + row[i] * k_);
        std::copy_n(classes.data() + i * k_, k_, out_.classes + row[i] * k_);
      }
    });
  }

  const ScanTables& t_;
  const uint8_t* B_;
  const size_t N_, k_;
  const TopK out_;
  size_t rows_;  // of a block at most
  std::vector<std::unique_ptr<Block>> blocks_;  // by thread
  std::mutex guard_;
  std::vector<uint32_t> failed_;
  std::vector<Observed> observed_;
};

}  // namespace

void topk_per_code(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                   float* scores, int64_t* classes) {
  if (N && k) Classification(tables, B, N, k, threads, {scores, classes}).run();
}

}  // namespace raypq
