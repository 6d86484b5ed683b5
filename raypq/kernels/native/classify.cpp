#include <cmath>
#include <memory>

#include "scan.hpp"
#include "shortlist.hpp"

namespace raypq {

namespace {

// Rows that a tile stays in the cache for: many, because a tile is read anew for every block; but
// the candidates of a block must stay at some MB.
constexpr size_t kRows = 16384, kCandidateBytes = size_t(48) << 20;

struct Answer {
  float* scores;     // [n, k]
  int64_t* classes;
};

// One thread's work on blocks of rows. Scores are compared in the tables' units and without what
// is common to a row: (score − offset)·factor·down.
//
// While it scans, a row's threshold is its k-th best sum less what rounding is LIKELY to have added
// (``guess``), far less than what it may have added at worst (``error``). The k best of what was
// kept are then scored exactly; that gives a threshold that is proven, and it prunes the rest before
// they are scored too. A row whose guess was above it is scanned again with the worst case.
class Block {
 public:
  Block(const ScanTables& tables, size_t rows, size_t k)
      : t_(tables), k_(k), list_(rows, k), terms_(rows), factor_(rows), hits_(kChunk),
        scratch_(4 * (tables.source.shape.D() + kCodePad)) {}

  // Rows codes [n, M]; the answer of row i goes to row place[i], or row i where place is null.
  void run(const uint8_t* codes, size_t n, const Answer& answer, const uint32_t* place = nullptr) {
    codes_ = codes, n_ = n, careful_ = place != nullptr;
    start_rows();
    for (size_t tile = 0; tile < t_.tiles(); ++tile) scan(tile);
    std::vector<uint32_t> failed = rescore();
    for (size_t i = 0; i < n; ++i) {
      std::sort(list_.begin(i), list_.begin(i) + k_, better);
      for (size_t j = 0; j < k_; ++j) {
        const size_t at = (place ? place[i] : i) * k_ + j;
        answer.scores[at] = list_.begin(i)[j].value;
        answer.classes[at] = list_.begin(i)[j].other;
      }
    }
    if (failed.empty()) return;
    t_.rescans += failed.size();
    const size_t M = t_.source.shape.M;
    std::vector<uint8_t> again(failed.size() * M);
    for (size_t i = 0; i < failed.size(); ++i)
      std::copy_n(codes + failed[i] * M, M, again.data() + i * M);
    run(again.data(), failed.size(), answer, failed.data());
  }

 private:
  void start_rows() {
    for (size_t i = 0; i < n_; ++i) {
      const RowTerms row = terms_[i] = row_terms(t_.source, codes_ + i * t_.source.shape.M);
      const double largest =
          row.scale * std::sqrt(row.squared) * t_.widest + std::fabs(row.offset) + t_.strongest;
      factor_[i] = row.factor;
      list_.reset(i, row.factor > 0 ? rounding_slack(largest) * row.factor * t_.down
                                    : std::numeric_limits<double>::infinity());
    }
  }

  void scan(size_t tile) {
    const Shape& shape = t_.source.shape;
    const uint8_t* table = t_.table(tile);
    const size_t lanes = tile * kLanes;
    const double reach = t_.tile_base[tile] + t_.tile_error[tile], unit = t_.unit[lanes];
    // Three standard deviations of M roundings, each uniform within ±½ unit.
    const double likely = unit * (3 * std::sqrt(double(shape.M) / 12) + 1);
    guess_ = careful_ ? t_.tile_error[tile] : std::min(likely, t_.tile_error[tile]);
    const uint64_t real = ~uint64_t(0) >> (kLanes - t_.lanes(tile));
    int32_t threshold[kChunk];
    if (n_ > shape.K) touch(table, t_.tile_bytes());  // fewer rows read only some of it
    for (size_t first = 0; first < n_; first += kChunk) {
      const size_t n = std::min(kChunk, n_ - first);
      t_.isa.thresholds(list_.target() + first, factor_.data() + first, n, t_.tile_extra[tile],
                        reach, 1.0 / unit, t_.limit, threshold);
      const size_t found = t_.isa.scan_rows(shape, t_.top, table, t_.start.data() + lanes,
                                            codes_ + first * shape.M, n, threshold, hits_.data());
      for (size_t h = 0; h < found; ++h) {
        const Hit& hit = hits_[h];
        if (h + kAhead < found) list_.prefetch(first + hits_[h + kAhead].row);
        for (uint64_t left = hit.lanes & real; left; left &= left - 1) {
          const size_t lane = size_t(__builtin_ctzll(left));
          keep(first + hit.row, lanes + lane, hit.sum[lane]);
        }
      }
    }
  }

  void keep(size_t row, size_t at, uint32_t sum) {
    const double value = t_.base[at] + t_.unit[at] * sum + t_.extra[at] * factor_[row];
    list_.push(row, value - guess_, value + t_.error[at], t_.order[at],
               [this](size_t i, Candidate* from, Candidate* to) { resolve(i, from, to); });
  }

  // Exact scores of one row's candidates.
  void resolve(size_t row, Candidate* from, Candidate* to) {
    const uint32_t i = uint32_t(row);
    for (; from != to; ++from) score(from->other, &i, 1, &from);
  }

  // Exact scores of class t for the rows listed, into their candidates.
  void score(size_t t, const uint32_t* rows, size_t n, Candidate* const* into) {
    const Source& s = t_.source;
    double dot[kGroup];
    for (size_t i = 0; i < n; i += kGroup) {
      const size_t count = std::min(kGroup, n - i);
      t_.isa.rescore(s.shape, t_.codebooks.data(), codes_, rows + i, count,
                     s.W + t * s.shape.D(), scratch_.data(), dot);
      for (size_t j = 0; j < count; ++j) {
        const RowTerms& row = terms_[rows[i + j]];
        into[i + j]->value = float((dot[j] * row.scale + row.offset) + s.bias[t]);
      }
    }
  }

  // Leaves the k best of every row, scored exactly, first in its list; names the rows whose
  // threshold was a wrong guess: above their k-th best, so that it may have cost one of the k.
  std::vector<uint32_t> rescore() {
    const auto higher = [](const Candidate& a, const Candidate& b) { return a.value > b.value; };
    for (size_t i = 0; i < n_; ++i) {
      list_.prune(i);
      std::nth_element(list_.begin(i), list_.begin(i) + (k_ - 1), list_.end(i), higher);
    }
    score_all([this](size_t i) { return std::pair(list_.begin(i), list_.begin(i) + k_); });
    for (size_t i = 0; i < n_; ++i) {
      const Candidate* worst = std::max_element(list_.begin(i), list_.begin(i) + k_, higher);
      list_.prune(i, k_, in_units(i, worst->value));
    }
    score_all([this](size_t i) { return std::pair(list_.begin(i) + k_, list_.end(i)); });
    std::vector<uint32_t> failed;
    for (size_t i = 0; i < n_; ++i) {
      Candidate* last = list_.begin(i) + (k_ - 1);
      std::nth_element(list_.begin(i), last, list_.end(i), better);
      if (!careful_ && in_units(i, last->value) < list_.theta(i)) failed.push_back(uint32_t(i));
    }
    return failed;
  }

  // A row's score as the filter compares it.
  double in_units(size_t row, float score) const {
    return (double(score) - terms_[row].offset) * factor_[row] * t_.down;
  }

  // Scores the candidates range(row) of every row, class by class: a class's weights are then read
  // once for the block.
  template <class Range>
  void score_all(Range range) {
    std::vector<uint32_t> begin(t_.source.T + 1);
    for (size_t i = 0; i < n_; ++i)
      for (auto [c, end] = range(i); c != end; ++c) ++begin[c->other + 1];
    for (size_t t = 0; t < t_.source.T; ++t) begin[t + 1] += begin[t];
    rows_.resize(begin.back()), into_.resize(begin.back());
    std::vector<uint32_t> next(begin.begin(), begin.end() - 1);
    for (size_t i = 0; i < n_; ++i)
      for (auto [c, end] = range(i); c != end; ++c) {
        const uint32_t place = next[c->other]++;
        rows_[place] = uint32_t(i), into_[place] = c;
      }
    for (size_t t = 0; t < t_.source.T; ++t)
      if (const size_t from = begin[t], count = begin[t + 1] - from; count)
        score(t, rows_.data() + from, count, into_.data() + from);
  }

  static constexpr size_t kGroup = 64, kAhead = 4;
  const ScanTables& t_;
  const uint8_t* codes_ = nullptr;
  size_t n_ = 0, k_;
  bool careful_ = false;  // the guess is the worst case
  double guess_ = 0;
  Shortlist list_;
  std::vector<RowTerms> terms_;
  std::vector<double> factor_;
  std::vector<Hit> hits_;
  Array<float> scratch_;
  std::vector<uint32_t> rows_;
  std::vector<Candidate*> into_;
};

}  // namespace

void topk_per_code(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                   float* scores, int64_t* classes) {
  if (!N || !k) return;
  const size_t fit = kCandidateBytes / (sizeof(Candidate) * Shortlist::room(k));
  const size_t most = std::clamp<size_t>(fit, 64, kRows);
  const size_t rounds = (N + most * threads - 1) / (most * threads);
  const size_t rows = (N + rounds * threads - 1) / (rounds * threads);  // equal shares
  std::vector<std::unique_ptr<Block>> workers(threads);
  parallel((N + rows - 1) / rows, threads, [&](size_t thread, size_t task) {
    if (!workers[thread]) workers[thread] = std::make_unique<Block>(tables, rows, k);
    const size_t first = task * rows;
    workers[thread]->run(B + first * tables.source.shape.M, std::min(rows, N - first),
                         {scores + first * k, classes + first * k});
  });
}

}  // namespace raypq
