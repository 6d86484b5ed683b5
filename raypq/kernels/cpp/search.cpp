#include <memory>
#include <stdexcept>

#include "lanes.hpp"
#include "shortlist.hpp"

namespace raypq {

namespace {

// Queries are searched together as long as their candidates stay at some MB.
constexpr size_t kCandidateBytes = size_t(64) << 20;

// The k best of N rows for the queries of tiles [first, last).
class Search {
 public:
  Search(const ScanTables& tables, const uint8_t* B, size_t first, size_t last, size_t k, size_t N)
      : list(tables.isa, std::min(last * kLanes, tables.source.T) - first * kLanes, k, N),
        lanes_(tables, B), first_(first), last_(last) {
    for (size_t q = 0; q < list.owners(); ++q) list.reset(q, lanes_.slack(first * kLanes + q));
  }

  // Scans store rows [from, to).
  void run(size_t from, size_t to) {
    const size_t base = first_ * kLanes;
    for (size_t at = from; at < to; at += LaneScan::kRows) {
      const Rows rows = lanes_.rows(at, std::min(LaneScan::kRows, to - at));
      // A query that has seen nothing keeps everything: begin with few rows.
      const size_t chunk = at == from ? 16 : kChunk;
      for (size_t tile = first_; tile < last_; ++tile)
        lanes_.scan(
            tile, rows, chunk, [&](size_t t) { return list.target(t - base); },
            [&](size_t t, double lower, double upper, uint32_t row) {
              list.push(t - base, float(lower), float(upper), row, [this](size_t q) { resolve(q); });
            });
    }
  }

  // The exact scores of a query's candidates, in the place of their upper bounds.
  void resolve(size_t query) {
    lanes_.exact(first_ * kLanes + query, list.others(query), list.count(query),
                 list.uppers(query));
  }

  Shortlist list;

 private:
  LaneScan lanes_;
  size_t first_, last_;  // query tiles
};

// Rows of one thread's share of N.
size_t share_of(size_t N, size_t threads) {
  return std::max<size_t>(1024, (N + threads - 1) / threads);
}

// Queries of tiles [first, last), the rows shared out among the threads.
void search_tiles(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                  size_t first, size_t last, float* scores, int64_t* rows) {
  const size_t share = share_of(N, threads);
  const size_t parts = (N + share - 1) / share;
  std::vector<std::unique_ptr<Search>> found(parts);
  parallel(parts, threads, [&](size_t, size_t part) {
    const size_t from = part * share, to = std::min(N, from + share);
    found[part] = std::make_unique<Search>(tables, B, first, last, k, to - from);
    found[part]->run(from, to);
  });
  parallel(last - first, threads, [&](size_t, size_t tile) {
    Search worker(tables, B, first + tile, first + tile + 1, k, N);
    std::vector<Candidate> best;
    for (size_t lane = 0; lane < worker.list.owners(); ++lane) {
      Shortlist& list = worker.list;
      for (auto& part : found)
        list.merge(lane, part->list, tile * kLanes + lane, [&](size_t q) { worker.resolve(q); });
      list.prune(lane);
      worker.resolve(lane);
      best.resize(list.count(lane));
      for (size_t i = 0; i < best.size(); ++i)
        best[i] = {list.uppers(lane)[i], list.others(lane)[i]};
      if (best.size() < k) throw std::logic_error("fewer candidates than results");
      std::partial_sort(best.begin(), best.begin() + k, best.end(), better);
      const size_t t = (first + tile) * kLanes + lane;
      for (size_t j = 0; j < k; ++j) {
        scores[t * k + j] = best[j].value;
        rows[t * k + j] = best[j].other;
      }
    }
  });
}

}  // namespace

void topk_per_query(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                    float* scores, int64_t* rows) {
  if (!N || !k) return;
  const size_t tile = kLanes * Shortlist::bytes(k, share_of(N, threads)) * threads;
  const size_t together = std::max<size_t>(1, kCandidateBytes / tile);
  for (size_t first = 0; first < tables.tiles(); first += together)
    search_tiles(tables, B, N, k, threads, first, std::min(first + together, tables.tiles()), scores,
                 rows);
}

}  // namespace raypq
