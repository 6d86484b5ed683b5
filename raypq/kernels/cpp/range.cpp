#include <memory>

#include "lanes.hpp"

namespace raypq {

namespace {

constexpr size_t kBatch = 1024;  // candidates of a query that are scored together

// All rows within reach of the queries of one tile.
class Range {
 public:
  Range(const ScanTables& tables, const uint8_t* B, float least)
      : t_(tables), lanes_(tables, B), least_(least), waiting_(kLanes), limits_(kLanes) {}

  void run(size_t tile, size_t N, bool after, std::vector<Within>& out) {
    const size_t base = tile * kLanes, queries = t_.lanes(tile);
    for (size_t q = 0; q < queries; ++q)
      limits_[q] = double(least_) * t_.down - lanes_.slack(base + q);
    for (size_t at = after ? base : 0; at < N; at += LaneScan::kRows) {
      const Rows rows = lanes_.rows(at, std::min(LaneScan::kRows, N - at));
      lanes_.scan(
          tile, rows, kChunk, [&](size_t t) { return limits_[t - base]; },
          [&](size_t t, double, double upper, uint32_t row) {
            if (upper < limits_[t - base] || (after && row <= t)) return;
            waiting_[t - base].push_back(row);
            if (waiting_[t - base].size() == kBatch) flush(base, t - base, out);
          });
    }
    for (size_t q = 0; q < queries; ++q) flush(base, q, out);
    std::sort(out.begin(), out.end(), [](const Within& a, const Within& b) {
      return a.query != b.query ? a.query < b.query : a.row < b.row;
    });
  }

 private:
  void flush(size_t base, size_t query, std::vector<Within>& out) {
    std::vector<uint32_t>& rows = waiting_[query];
    scores_.resize(rows.size());
    lanes_.exact(base + query, rows.data(), rows.size(), scores_.data());
    for (size_t i = 0; i < rows.size(); ++i)
      if (scores_[i] >= least_) out.push_back({uint32_t(base + query), rows[i], scores_[i]});
    rows.clear();
  }

  const ScanTables& t_;
  LaneScan lanes_;
  float least_;
  std::vector<std::vector<uint32_t>> waiting_;
  std::vector<double> limits_;
  std::vector<float> scores_;
};

}  // namespace

void all_scores(const ScanTables& tables, const uint8_t* B, size_t N, size_t threads,
                float* scores) {
  std::vector<std::unique_ptr<LaneScan>> workers(threads);
  parallel(tables.source.T, threads, [&](size_t thread, size_t query) {
    if (!workers[thread]) workers[thread] = std::make_unique<LaneScan>(tables, B);
    std::vector<uint32_t> rows;
    for (size_t at = 0; at < N; at += kBatch) {
      rows.resize(std::min(kBatch, N - at));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = uint32_t(at + i);
      workers[thread]->exact(query, rows.data(), rows.size(), scores + query * N + at);
    }
  });
}

std::vector<std::vector<Within>> within(const ScanTables& tables, const uint8_t* B, size_t N,
                                        float least, bool after, size_t threads) {
  std::vector<std::vector<Within>> found(tables.tiles());
  std::vector<std::unique_ptr<Range>> workers(threads);
  parallel(tables.tiles(), threads, [&](size_t thread, size_t tile) {
    if (!workers[thread]) workers[thread] = std::make_unique<Range>(tables, B, least);
    workers[thread]->run(tile, N, after, found[tile]);
  });
  return found;
}

}  // namespace raypq
