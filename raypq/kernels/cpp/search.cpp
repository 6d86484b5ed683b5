#include <memory>
#include <stdexcept>

#include "tile_scan.hpp"
#include "shortlist.hpp"

namespace raypq {

namespace {

// Memory for the candidates of queries that are searched together.
constexpr size_t kCandidateBytes = size_t(64) << 20;

// Searches N rows for the k best of the queries in tiles [first, last).
class Search {
 public:
  Search(const ScanTables& tables, const uint8_t* B, size_t first, size_t last, size_t k, size_t N)
      : list(tables.isa, std::min(last * kTileWidth, tables.source.T) - first * kTileWidth, k, N),
        scan_(tables, B), first_(first), last_(last) {
    for (size_t q = 0; q < list.queries(); ++q)
      list.reset(q, scan_.tie_margin(first * kTileWidth + q));
  }

  // Scans store rows [from, to).
  void run(size_t from, size_t to) {
    const size_t base = first_ * kTileWidth;
    for (size_t at = from; at < to; at += TileScan::kRows) {
      const Rows rows = scan_.rows(at, std::min(TileScan::kRows, to - at));
      // Without a cutoff a query keeps every row, so the first chunk is small.
      const size_t chunk = at == from ? 16 : kChunk;
      for (size_t tile = first_; tile < last_; ++tile)
        scan_.run(
            tile, rows, chunk, [&](size_t query) { return list.cutoff(query - base); },
            [&](size_t query, double lower, double upper, uint32_t row) {
              list.push(query - base, float(lower), float(upper), row,
                        [this](size_t q) { resolve(q); });
            });
    }
  }

  // Replaces the upper bounds of a query's candidates by their exact scores.
  void resolve(size_t query) {
    scan_.exact(first_ * kTileWidth + query, list.rows(query), list.count(query),
                 list.uppers(query));
  }

  Shortlist list;

 private:
  TileScan scan_;
  size_t first_, last_;  // query tiles
};

// Rows of one thread out of N.
size_t share_of(size_t N, size_t threads) {
  return std::max<size_t>(1024, (N + threads - 1) / threads);
}

struct SearchJob {
  const ScanTables& tables;
  const uint8_t* B;
  size_t N, k, threads;
  float* scores;  // [T, k]
  int64_t* rows;
};

// Searches the queries of tiles [first, last): each thread some rows, then merges the candidates.
void search_tiles(const SearchJob& job, size_t first, size_t last) {
  const ScanTables& tables = job.tables;
  const uint8_t* const B = job.B;
  const size_t N = job.N, k = job.k, threads = job.threads;
  const size_t share = share_of(N, threads);
  const size_t parts = (N + share - 1) / share;
  std::vector<std::unique_ptr<Search>> searches(parts);
  parallel(parts, threads, [&](size_t, size_t part) {
    const size_t from = part * share, to = std::min(N, from + share);
    searches[part] = std::make_unique<Search>(tables, B, first, last, k, to - from);
    searches[part]->run(from, to);
  });
  parallel(last - first, threads, [&](size_t, size_t tile) {
    Search worker(tables, B, first + tile, first + tile + 1, k, N);
    std::vector<Candidate> best;
    for (size_t q = 0; q < worker.list.queries(); ++q) {
      Shortlist& list = worker.list;
      for (auto& search : searches)
        list.merge(q, search->list, tile * kTileWidth + q, [&](size_t i) { worker.resolve(i); });
      list.prune(q);
      worker.resolve(q);
      best.resize(list.count(q));
      for (size_t i = 0; i < best.size(); ++i)
        best[i] = {list.uppers(q)[i], list.rows(q)[i]};
      if (best.size() < k) throw std::logic_error("fewer candidates than results");
      std::partial_sort(best.begin(), best.begin() + k, best.end(), better);
      const size_t t = (first + tile) * kTileWidth + q;
      for (size_t j = 0; j < k; ++j) {
        job.scores[t * k + j] = best[j].value;
        job.rows[t * k + j] = best[j].index;
      }
    }
  });
}

}  // namespace

void topk_per_query(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                    float* scores, int64_t* rows) {
  if (!N || !k) return;
  const size_t tile = kTileWidth * Shortlist::bytes(k, share_of(N, threads)) * threads;
  const size_t group = std::max<size_t>(1, kCandidateBytes / tile);
  const SearchJob job{tables, B, N, k, threads, scores, rows};
  for (size_t first = 0; first < tables.tiles(); first += group)
    search_tiles(job, first, std::min(first + group, tables.tiles()));
}

}  // namespace raypq
