#include <cmath>
#include <memory>

#include "candidates.hpp"
#include "scan.hpp"
#include "shortlist.hpp"

namespace raypq {

namespace {

// Rows that a tile stays in the cache for: many, because a tile is read anew for every block; but
// the candidates of a block must stay at some MB.
constexpr size_t kRows = 32768, kCandidateBytes = size_t(48) << 20;

// The least float not below x.
float round_up(double x) {
  const float y = float(x);
  return double(y) < x ? std::nextafter(y, std::numeric_limits<float>::infinity()) : y;
}

struct Answer {
  float* scores;     // [n, k]
  int64_t* classes;
};

// One thread's work on blocks of rows. Scores are compared in the tables' units and without what
// is common to a row: (score − offset)·factor·down.
//
// While it scans, a row's threshold is its k-th best sum less what rounding is LIKELY to have added
// (``guess``), far less than what it may have added at worst (``error``). What was kept is then
// scored exactly. A row whose threshold was above its k-th best score is scanned again with the
// worst case.
class Block {
 public:
  Block(const ScanTables& tables, size_t rows, size_t k)
      : t_(tables), k_(k), list_(tables.isa, rows, k), terms_(rows), factor_(rows),
        hits_(kChunk + 1), scratch_(4 * (tables.source.shape.D() + kCodePad)) {}

  // Rows codes [n, M]; the answer of row i goes to row place[i], or row i where place is null.
  void run(const uint8_t* codes, size_t n, const Answer& answer, const uint32_t* place = nullptr) {
    codes_ = codes, n_ = n, careful_ = place != nullptr;
    start();
    size_t due = 1;  // the tile before which thresholds are raised
    for (size_t tile = 0; tile < t_.tiles(); ++tile) {
      const bool raise = tile == due;
      if (raise) due += 1 + due * 3 / 4;
      scan(tile, raise);
    }
    for (size_t i = 0; i < n_; ++i) list_.compact(i);
    score_all();
    std::vector<uint32_t> failed;
    for (size_t i = 0; i < n_; ++i) {
      const size_t at = (place ? place[i] : i) * k_;
      sort_best(i);
      for (size_t j = 0; j < k_; ++j) {
        answer.scores[at + j] = sorted_[j].value;
        answer.classes[at + j] = sorted_[j].other;
      }
      if (!careful_ && in_units(i, sorted_[k_ - 1].value) - list_.slack(i) < list_.target()[i])
        failed.push_back(uint32_t(i));
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
  void start() {
    guess_.resize(t_.tiles());
    std::vector<double> reach(t_.tiles());
    for (size_t tile = 0; tile < t_.tiles(); ++tile) {
      // Three standard deviations of M roundings, each uniform within ±½ unit.
      const double likely =
          t_.unit[tile * kLanes] * (3 * std::sqrt(double(t_.source.shape.M) / 12) + 1);
      guess_[tile] = careful_ ? t_.tile_error[tile] : std::min(likely, t_.tile_error[tile]);
      reach[tile] = guess_[tile] + t_.tile_error[tile];
    }
    list_.restart(std::move(reach));
    for (size_t i = 0; i < n_; ++i) {
      const RowTerms row = terms_[i] = row_terms(t_.source, codes_ + i * t_.source.shape.M);
      const double largest =
          row.scale * std::sqrt(row.squared) * t_.widest + std::fabs(row.offset) + t_.strongest;
      factor_[i] = row.factor;
      list_.reset(i, row.factor > 0 ? rounding_slack(largest) * row.factor * t_.down
                                    : std::numeric_limits<double>::infinity());
    }
  }

  void scan(size_t tile, bool raise) {
    const Shape& shape = t_.source.shape;
    const uint8_t* table = t_.table(tile);
    const size_t lanes = tile * kLanes;
    const double reach = t_.tile_base[tile] + t_.tile_error[tile], unit = t_.unit[lanes];
    int32_t threshold[kChunk];
    if (n_ > shape.K) touch(table, t_.tile_bytes());  // fewer rows read only some of it
    for (size_t first = 0; first < n_; first += kChunk) {
      const size_t n = std::min(kChunk, n_ - first);
      if (raise) list_.sweep(first, first + n);
      t_.isa.thresholds(list_.target() + first, factor_.data() + first, n, t_.tile_extra[tile],
                        reach, 1.0 / unit, t_.limit, threshold);
      const size_t found = t_.isa.scan_rows(shape, t_.top, table, t_.start.data() + lanes,
                                            codes_ + first * shape.M, n, threshold, hits_.data());
      if (tile == 0 && t_.lanes(0) == kLanes && list_.fits(first, kLanes) && shape.M <= kNarrow)
        keep_all(first, found);
      else
        keep(tile, first, found);
    }
  }

  void keep(size_t tile, size_t first, size_t found) {
    const size_t lanes = tile * kLanes;
    const bool wide = t_.source.shape.M > kNarrow;
    const double *base = t_.base.data() + lanes, *extra = t_.extra.data() + lanes;
    const double unit = t_.unit[lanes], guess = guess_[tile];
    const uint64_t real = ~uint64_t(0) >> (kLanes - t_.lanes(tile));
    if (~real) found = drop_padding(found, real);
    // The lanes of all hits in one loop: how many a hit has is a surprise to the branch predictor.
    const Hit* hit = hits_.data();
    const Hit* const end = hit + found;
    hits_[found].lanes = 0;
    for (uint64_t left = hit->lanes; hit != end;) {
      const size_t lane = size_t(__builtin_ctzll(left)), row = first + hit->row;
      const double value = base[lane] + unit * hit->sum(lane, wide) + extra[lane] * factor_[row];
      list_.push(row, float(value - guess), uint32_t(lanes + lane),
                 [this](size_t i) { resolve(i); });
      left &= left - 1;
      hit += left == 0;
      const uint64_t next = hit->lanes;
      left = left ? left : next;
    }
  }

  // A block's first tile, of which every row takes all: the same in a loop that vectors can take.
  void keep_all(size_t first, size_t found) {
    double base[kLanes], extra[kLanes];
    uint32_t lane[kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      lane[i] = uint32_t(i % (kLanes / 2) * 2 + i / (kLanes / 2));  // as a narrow hit has them
      base[i] = t_.base[lane[i]] - guess_[0];
      extra[i] = t_.extra[lane[i]];
    }
    const double unit = t_.unit[0];
    for (size_t h = 0; h < found; ++h) {
      const size_t row = first + hits_[h].row;
      const double factor = factor_[row];
      float* value = list_.append(row, lane, kLanes);
      for (size_t i = 0; i < kLanes; ++i)
        value[i] = float(base[i] + unit * hits_[h].narrow[i] + extra[i] * factor);
    }
  }

  // The last tile may have lanes that are no class.
  size_t drop_padding(size_t found, uint64_t real) {
    size_t left = 0;
    for (size_t h = 0; h < found; ++h)
      if (hits_[h].lanes &= real) hits_[left++] = hits_[h];
    return left;
  }

  // The k best of a row that has too many candidates; what they score is a lower bound now.
  void resolve(size_t row) {
    const uint32_t i = uint32_t(row);
    const size_t n = list_.count(row);
    float* value = list_.values(row);
    uint32_t* lane = list_.lanes(row);
    std::vector<std::pair<Candidate, uint32_t>> exact(n);
    for (size_t c = 0; c < n; ++c) {
      const uint32_t t = t_.order[lane[c]];
      score(t, &i, 1, [&](size_t) { return &exact[c].first.value; });
      exact[c].first.other = t, exact[c].second = lane[c];
    }
    std::nth_element(exact.begin(), exact.begin() + (k_ - 1), exact.end(),
                     [](const auto& a, const auto& b) { return better(a.first, b.first); });
    const double slack = list_.slack(row), target = list_.target()[row];
    for (size_t c = 0; c < k_; ++c) {
      // An infinite slack excludes nothing, whatever the bound. A bound that rounding leaves below
      // the target is raised to it: the k-th best was at least that, or the row will be scanned
      // again.
      const double lower = std::max(in_units(row, exact[c].first.value) - slack, target);
      value[c] = std::isinf(slack) ? 0.0f : round_up(lower);
      lane[c] = exact[c].second;
    }
  }

  // Exact scores of class t for the rows listed; that of rows[i] goes to into(i).
  template <class Into>
  void score(size_t t, const uint32_t* rows, size_t n, Into into) {
    const Source& s = t_.source;
    double dot[kGroup];
    for (size_t i = 0; i < n; i += kGroup) {
      const size_t count = std::min(kGroup, n - i);
      t_.isa.rescore(s.shape, t_.codebooks.data(), codes_, rows + i, count,
                     s.W + t * s.shape.D(), scratch_.data(), dot);
      for (size_t j = 0; j < count; ++j) {
        const RowTerms& row = terms_[rows[i + j]];
        *into(i + j) = float((dot[j] * row.scale + row.offset) + s.bias[t]);
      }
    }
  }

  // A row's score as the filter compares it.
  double in_units(size_t row, float score) const {
    return (double(score) - terms_[row].offset) * factor_[row] * t_.down;
  }

  // Replaces lanes by classes and bounds by exact scores, class by class: a class's weights are
  // then read once for the block.
  void score_all() {
    begin_.assign(t_.source.T + 1, 0);
    for (size_t i = 0; i < n_; ++i) {
      uint32_t* lane = list_.lanes(i);
      for (size_t c = 0; c < list_.count(i); ++c) ++begin_[(lane[c] = t_.order[lane[c]]) + 1];
    }
    for (size_t t = 0; t < t_.source.T; ++t) begin_[t + 1] += begin_[t];
    rows_.resize(begin_.back()), into_.resize(begin_.back());
    for (size_t i = 0; i < n_; ++i)
      for (size_t c = 0; c < list_.count(i); ++c) {
        const uint32_t place = begin_[list_.lanes(i)[c]]++;  // its end when all are placed
        rows_[place] = uint32_t(i), into_[place] = list_.values(i) + c;
      }
    for (size_t t = 0, from = 0; t < t_.source.T; from = begin_[t++])
      if (const size_t count = begin_[t] - from)
        score(t, rows_.data() + from, count, [&](size_t i) { return into_[from + i]; });
  }

  // The k best of a row, exact scores by now, first in ``sorted_``.
  void sort_best(size_t row) {
    const size_t n = list_.count(row);
    sorted_.resize(n);
    for (size_t c = 0; c < n; ++c) sorted_[c] = {list_.values(row)[c], list_.lanes(row)[c]};
    std::partial_sort(sorted_.begin(), sorted_.begin() + k_, sorted_.end(), better);
  }

  static constexpr size_t kGroup = 64;
  const ScanTables& t_;
  const uint8_t* codes_ = nullptr;
  size_t n_ = 0, k_;
  bool careful_ = false;  // the guess is the worst case
  Candidates list_;
  std::vector<double> guess_;  // by tile
  std::vector<RowTerms> terms_;
  std::vector<double> factor_;
  std::vector<Hit> hits_;
  Array<float> scratch_;
  std::vector<uint32_t> begin_, rows_;
  std::vector<float*> into_;
  std::vector<Candidate> sorted_;
};

}  // namespace

void topk_per_code(const ScanTables& tables, const uint8_t* B, size_t N, size_t k, size_t threads,
                   float* scores, int64_t* classes) {
  if (!N || !k) return;
  const size_t fit = kCandidateBytes / Candidates::bytes(k);
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
