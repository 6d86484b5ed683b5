#include <bit>
#include <cmath>
#include <memory>

#include "scan.hpp"
#include "shortlist.hpp"

namespace raypq {

namespace {

// Rows whose codes stay in the cache while the query tiles take turns, queries scanned together
// (their candidates stay at some MB), and rows between two looks at the thresholds.
constexpr size_t kRows = 16384, kCandidateBytes = size_t(64) << 20;

// Rows in the order they are scanned, with what they add.
struct Rows {
  size_t n;
  const uint8_t* codes;        // [n, M]
  const uint32_t* names;       // their numbers in the store; null: first + i
  uint32_t first;
  const RowTerms* terms;       // null: scale 1 for all

  uint32_t name(size_t i) const { return names ? names[i] : first + uint32_t(i); }
};

// Scores are compared in the tables' units: score·down.
class Search {
 public:
  Search(const ScanTables& tables, const uint8_t* B, size_t first, size_t last, size_t k)
      : list(std::min(last * kLanes, tables.source.T) - first * kLanes, k), t_(tables), B_(B),
        first_(first), last_(last), hits_(kChunk),
        scratch_(4 * (tables.source.shape.D() + kCodePad)) {
    for (size_t q = 0; q < list.owners(); ++q) list.reset(q, slack(first * kLanes + q));
  }

  // Scans store rows [from, to).
  void run(size_t from, size_t to) {
    const size_t M = t_.source.shape.M;
    for (size_t at = from; at < to; at += kRows) {
      Rows rows{std::min(kRows, to - at), B_ + at * M, nullptr, uint32_t(at), nullptr};
      if (t_.source.metric == Metric::kCosine) sort_by_norm(rows);
      for (size_t tile = first_; tile < last_; ++tile) scan(tile, rows, at == from);
    }
  }

  void resolve(size_t query, Candidate* from, Candidate* to) {
    const Source& s = t_.source;
    const size_t t = first_ * kLanes + query, n = size_t(to - from);
    std::vector<uint32_t> rows(n);
    std::vector<double> dot(n);
    for (size_t i = 0; i < n; ++i) rows[i] = from[i].other;
    t_.isa.rescore(s.shape, t_.codebooks.data(), B_, rows.data(), n, s.W + t * s.shape.D(),
                   scratch_.data(), dot.data());
    for (size_t i = 0; i < n; ++i) {
      const RowTerms row = row_terms(s, B_ + size_t(rows[i]) * s.shape.M);
      from[i].value = float((dot[i] * row.scale + row.offset) + s.bias[t]);
    }
  }

  Shortlist list;

 private:
  double slack(size_t t) const {
    const Source& s = t_.source;
    double squared = 0;
    for (size_t j = 0; j < s.shape.D(); ++j) {
      const double w = s.W[t * s.shape.D() + j];
      squared += w * w;
    }
    const double reach = s.metric == Metric::kCosine ? 1.0 : t_.longest;
    const double offset = s.metric == Metric::kL2 ? t_.longest * t_.longest : 0.0;
    return t_.down * rounding_slack(reach * std::sqrt(squared) * (1 + 0x1p-40) + offset +
                                    std::fabs(s.bias[t]));
  }

  // Under cosine a row's norm multiplies the threshold. Rows alike in it stand together, so that
  // one set of thresholds serves a chunk.
  void sort_by_norm(Rows& rows) {
    const size_t M = t_.source.shape.M;
    std::vector<uint64_t> by_norm(rows.n);  // a norm's bits, which sort as it does, and the row
    std::vector<RowTerms> terms(rows.n);
    for (size_t i = 0; i < rows.n; ++i) {
      terms[i] = row_terms(t_.source, rows.codes + i * M);
      by_norm[i] = uint64_t(std::bit_cast<uint32_t>(float(terms[i].factor))) << 32 | i;
    }
    std::sort(by_norm.begin(), by_norm.end());
    codes_.resize(rows.n * M), names_.resize(rows.n), terms_.resize(rows.n);
    for (size_t i = 0; i < rows.n; ++i) {
      const uint32_t from = uint32_t(by_norm[i]);
      std::copy_n(rows.codes + from * M, M, codes_.data() + i * M);
      names_[i] = rows.first + from;
      terms_[i] = terms[from];
    }
    rows.codes = codes_.data(), rows.names = names_.data(), rows.terms = terms_.data();
  }

  void scan(size_t tile, const Rows& rows, bool fresh) {
    const Shape& shape = t_.source.shape;
    const uint8_t* table = t_.table(tile);
    const size_t lanes = tile * kLanes;
    const uint64_t real = ~uint64_t(0) >> (kLanes - t_.lanes(tile));
    const bool wide = shape.M > kNarrow;
    int32_t threshold[kLanes];
    touch(table, t_.tile_bytes());
    // A query that has seen nothing keeps everything: begin with few rows.
    size_t n = fresh ? 16 : kChunk;
    for (size_t first = 0; first < rows.n; first += n, n = std::min(2 * n, kChunk)) {
      n = std::min(n, rows.n - first);
      set_thresholds(tile, rows, first, n, threshold);
      const size_t found = t_.isa.scan_lanes(shape, t_.top, table, rows.codes + first * shape.M, n,
                                             threshold, hits_.data());
      for (size_t h = 0; h < found; ++h)
        for (uint64_t left = hits_[h].lanes & real; left; left &= left - 1) {
          const size_t lane = size_t(__builtin_ctzll(left));
          keep(rows, first + hits_[h].row, lanes + lane, hits_[h].sum(lane, wide));
        }
    }
  }

  void set_thresholds(size_t tile, const Rows& rows, size_t first, size_t n, int32_t* threshold) {
    double least = 1, most = 1;
    if (rows.terms)  // sorted as float32, so the ends are an ulp of that off at most
      least = rows.terms[first].factor * (1 - 0x1p-22),
      most = rows.terms[first + n - 1].factor * (1 + 0x1p-22);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t at = tile * kLanes + lane;
      threshold[lane] = t_.limit;
      if (lane >= t_.lanes(tile)) continue;
      const double target = list.target()[at - first_ * kLanes] - t_.extra[at];
      const double low = std::min(target * least, target * most) - t_.base[at] - t_.error[at];
      const double x = low / t_.unit[at];
      threshold[lane] = x > 0 ? int32_t(std::min(x, double(t_.limit))) : 0;
    }
  }

  void keep(const Rows& rows, size_t i, size_t at, uint32_t sum) {
    const double scale = rows.terms ? rows.terms[i].scale : 1.0;
    const double value = (t_.base[at] + t_.unit[at] * sum) * scale + t_.extra[at];
    const double error = t_.error[at] * scale;
    list.push(at - first_ * kLanes, value - error, value + error, rows.name(i),
              [this](size_t q, Candidate* from, Candidate* to) { resolve(q, from, to); });
  }

  const ScanTables& t_;
  const uint8_t* B_;
  size_t first_, last_;  // query tiles
  std::vector<Hit> hits_;
  Array<float> scratch_;
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> names_;
  std::vector<RowTerms> terms_;
};

// Queries of tiles [first, last), the rows shared out among the threads.
void search_tiles(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                  size_t first, size_t last, float* scores, int64_t* rows) {
  const size_t share = std::max<size_t>(1024, (N + threads - 1) / threads);
  const size_t parts = (N + share - 1) / share;
  std::vector<std::unique_ptr<Search>> found(parts);
  parallel(parts, threads, [&](size_t, size_t part) {
    found[part] = std::make_unique<Search>(tables, B, first, last, k);
    found[part]->run(part * share, std::min(N, (part + 1) * share));
  });
  const size_t tasks = last - first;
  parallel(tasks, threads, [&](size_t, size_t tile) {
    Search worker(tables, B, first + tile, first + tile + 1, k);
    for (size_t lane = 0; lane < worker.list.owners(); ++lane) {
      auto resolve = [&](size_t q, Candidate* from, Candidate* to) { worker.resolve(q, from, to); };
      for (auto& part : found) worker.list.merge(lane, part->list, tile * kLanes + lane, resolve);
      worker.list.prune(lane);
      worker.resolve(lane, worker.list.begin(lane), worker.list.end(lane));
      Candidate* best = worker.list.begin(lane);
      std::partial_sort(best, best + k, worker.list.end(lane), better);
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
  const size_t tile = kLanes * sizeof(Candidate) * Shortlist::room(k) * threads;
  const size_t together = std::max<size_t>(1, kCandidateBytes / tile);
  for (size_t first = 0; first < tables.tiles(); first += together)
    search_tiles(tables, B, N, k, threads, first, std::min(first + together, tables.tiles()), scores,
                 rows);
}

}  // namespace raypq
