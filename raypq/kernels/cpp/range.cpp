#include <memory>

#include "tile_scan.hpp"

namespace raypq {

namespace {

constexpr size_t kBatch = 1024;  // candidates of a query that are scored at once

// Range search for the queries of one tile.
class RangeSearch {
 public:
  RangeSearch(const ScanTables& tables, const uint8_t* B, float threshold)
      : t_(tables), scan_(tables, B), threshold_(threshold), pending_(kTileWidth),
        cutoffs_(kTileWidth) {}

  void run(size_t tile, size_t N, bool upper_triangle, std::vector<Match>& out) {
    const size_t base = tile * kTileWidth, queries = t_.width(tile);
    for (size_t q = 0; q < queries; ++q)
      cutoffs_[q] = double(threshold_) * t_.down - scan_.tie_margin(base + q);
    for (size_t at = upper_triangle ? base : 0; at < N; at += TileScan::kRows) {
      const Rows rows = scan_.rows(at, std::min(TileScan::kRows, N - at));
      scan_.run(
          tile, rows, kChunk, [&](size_t query) { return cutoffs_[query - base]; },
          [&](size_t query, double, double upper, uint32_t row) {
            const size_t q = query - base;
            if (upper < cutoffs_[q] || (upper_triangle && row <= query)) return;
            pending_[q].push_back(row);
            if (pending_[q].size() == kBatch) flush(base, q, out);
          });
    }
    for (size_t q = 0; q < queries; ++q) flush(base, q, out);
    std::sort(out.begin(), out.end(), [](const Match& a, const Match& b) {
      return a.query != b.query ? a.query < b.query : a.row < b.row;
    });
  }

 private:
  // Scores the pending candidates of a query and adds its matches to ``out``.
  void flush(size_t base, size_t query, std::vector<Match>& out) {
    std::vector<uint32_t>& rows = pending_[query];
    scores_.resize(rows.size());
    scan_.exact(base + query, rows.data(), rows.size(), scores_.data());
    for (size_t i = 0; i < rows.size(); ++i)
      if (scores_[i] >= threshold_) out.push_back({uint32_t(base + query), rows[i], scores_[i]});
    rows.clear();
  }

  const ScanTables& t_;
  TileScan scan_;
  float threshold_;
  std::vector<std::vector<uint32_t>> pending_;  // by query: candidates
  std::vector<double> cutoffs_;
  std::vector<float> scores_;
};

}  // namespace

void all_scores(const ScanTables& tables, const uint8_t* B, size_t N, size_t threads,
                float* scores) {
  std::vector<std::unique_ptr<TileScan>> workers(threads);
  parallel(tables.source.T, threads, [&](size_t thread, size_t query) {
    if (!workers[thread]) workers[thread] = std::make_unique<TileScan>(tables, B);
    std::vector<uint32_t> rows;
    for (size_t at = 0; at < N; at += kBatch) {
      rows.resize(std::min(kBatch, N - at));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = uint32_t(at + i);
      workers[thread]->exact(query, rows.data(), rows.size(), scores + query * N + at);
    }
  });
}

std::vector<std::vector<Match>> range_search(const ScanTables& tables, const uint8_t* B, size_t N,
                                             float threshold, bool upper_triangle,
                                             size_t threads) {
  std::vector<std::vector<Match>> matches(tables.tiles());
  std::vector<std::unique_ptr<RangeSearch>> workers(threads);
  parallel(tables.tiles(), threads, [&](size_t thread, size_t tile) {
    if (!workers[thread]) workers[thread] = std::make_unique<RangeSearch>(tables, B, threshold);
    workers[thread]->run(tile, N, upper_triangle, matches[tile]);
  });
  return matches;
}

}  // namespace raypq
