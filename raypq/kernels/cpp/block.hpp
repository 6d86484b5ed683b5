// One thread's part of classification: blocks of rows against all tiles.
#pragma once

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "candidates.hpp"
#include "forecast.hpp"
#include "rescore.hpp"
#include "scan.hpp"
#include "shortlist.hpp"

namespace raypq {

struct Answer {
  float* scores;  // [n, k]
  int64_t* classes;
};

// Where the thresholds of a block begin: at nothing and then rise; at what is forecast; or, for rows
// whose threshold turned out too high, at the k-th best score that they have by now.
enum class Begin { kLow, kForecast, kKnown };

// Scores are compared in the tables' units and without what is common to a row:
// (score − offset)·factor·down.
//
// While it scans, a row's threshold is a forecast, or its k-th best sum less what rounding is LIKELY
// to have added (``guess``), far less than what it may have added at worst (``error``). What was kept
// is then scored exactly. A row whose threshold was above its k-th best score has to be scanned
// again.
class Block {
 public:
  // Makes room for ``rows`` rows.
  Block(const ScanTables& tables, size_t rows, size_t k)
      : t_(tables), rows_(rows), k_(k), list_(tables.isa, rows, k, tables.source.T),
        forecast_(tables, rows), rescore_(tables), terms_(rows), factor_(rows), settled_(rows),
        hits_{Array<Hit>(kHits), Array<Hit>(kHits)} {
    for (double x : t_.extra) biased_ |= x != 0;
  }

  // Answers rows codes [n, M], n at most what there is room for. kForecast: by ``trend``. kKnown:
  // the answer has what is known of the k-th best scores.
  void run(const uint8_t* codes, size_t n, Begin begin, const Trend& trend, const Answer& answer) {
    if (n > rows_) throw std::length_error("more rows than a block has room for");
    codes_ = codes, n_ = n;
    failed.clear(), observed.clear();
    start(begin, trend, answer);
    const size_t together = std::max<size_t>(1, kTileBytes / t_.tile_bytes());
    size_t due = 1;  // the tile before which thresholds are raised
    for (size_t tile = 0, last; tile < t_.tiles(); tile = last) {
      const bool low = begin == Begin::kLow, raise = low && tile >= due;
      if (raise) due += 1 + due * 3 / 4;
      last = low && tile == 0 ? 1 : std::min(tile + together, t_.tiles());
      scan(tile, last, raise, low && tile == 0);
    }
    score_all();
    size_t at = 0;
    for (size_t i = 0; i < n_; ++i) {
      const bool good = finish(i, at, answer);
      at += settled_[i].count;
      if (!good) failed.push_back(uint32_t(i));
    }
  }

  std::vector<uint32_t> failed;  // rows that have to be scanned again
  std::vector<Observed> observed;

 private:
  void start(Begin begin, const Trend& trend, const Answer& answer) {
    guess_.resize(t_.tiles());
    eager_ = std::numeric_limits<double>::infinity();
    std::vector<double> reach(t_.tiles());
    for (size_t tile = 0; tile < t_.tiles(); ++tile) {
      const double deviation =
          t_.unit[tile * kLanes] * std::sqrt(double(t_.source.shape.M) / 12);
      // Three standard deviations of M roundings, each uniform within ±½ unit.
      guess_[tile] = begin == Begin::kKnown
                         ? t_.tile_error[tile]
                         : std::min(3 * deviation + t_.unit[tile * kLanes], t_.tile_error[tile]);
      reach[tile] = guess_[tile] + t_.tile_error[tile];
      eager_ = std::min(eager_, std::max(0.0, guess_[tile] - deviation));
    }
    list_.restart(std::move(reach));
    for (size_t i = 0; i < n_; ++i) {
      terms_[i] = row_terms(t_.source, codes_ + i * t_.source.shape.M);
      factor_[i] = terms_[i].factor;
    }
    sampled_ = begin != Begin::kKnown && Forecast::possible(t_);
    if (sampled_) forecast_.sample(codes_, factor_.data(), n_);
    for (size_t i = 0; i < n_; ++i) {
      const RowTerms& row = terms_[i];
      const double largest =
          row.scale * std::sqrt(row.squared) * t_.widest + std::fabs(row.offset) + t_.strongest;
      const double slack = row.factor > 0 ? t_.slack(largest, row.factor)
                                          : std::numeric_limits<double>::infinity();
      double target = Candidates::kLowest;
      if (begin == Begin::kForecast)
        target = forecast_.best(i, length(i), trend);
      else if (begin == Begin::kKnown)
        target = in_units(i, answer.scores[(i + 1) * k_ - 1]) - slack;
      if (!std::isfinite(target) || std::isinf(slack)) target = Candidates::kLowest;
      list_.reset(i, slack, target);
    }
  }

  // Some rows against all of these tiles, then the next rows.
  void scan(size_t tile, size_t last, bool raise, bool all) {
    const Shape& shape = t_.source.shape;
    if (n_ > shape.K) touch(t_.table(tile), (last - tile) * t_.tile_bytes());  // or read only some
    for (size_t first = 0; first < n_; first += kChunk) {
      const size_t n = std::min(kChunk, n_ - first);
      if (raise) list_.sweep(first, first + n);
      for (size_t i = tile; i < last;) i += scan_chunk(i, last, first, n, all);
    }
  }

  // A tile, or two where a pair of them leaves room in the cache; how many.
  size_t scan_chunk(size_t tile, size_t last, size_t first, size_t n, bool all) {
    const Shape& shape = t_.source.shape;
    const size_t count = tile + 1 < last && 2 * t_.tile_bytes() <= kPairBytes ? 2 : 1;
    const uint8_t* codes = codes_ + first * shape.M;
    int32_t threshold[2][kChunk];
    for (size_t i = 0; i < count; ++i)
      t_.isa.thresholds(list_.target() + first, factor_.data() + first, n, t_.tile_extra[tile + i],
                        t_.tile_base[tile + i] + t_.tile_error[tile + i],
                        1.0 / t_.unit[(tile + i) * kLanes], t_.limit, threshold[i]);
    Hit* const hits[2] = {hits_[0].data(), hits_[1].data()};
    size_t found[2];
    const int32_t* start = t_.start.data() + tile * kLanes;
    if (count == 2) {
      const int32_t* const both[2] = {threshold[0], threshold[1]};
      t_.isa.scan_two(shape, t_.top, t_.table(tile), start, codes, n, both, hits, found);
    } else {
      found[0] = t_.isa.scan_rows(shape, t_.top, t_.table(tile), start, codes, n, threshold[0],
                                  hits[0]);
    }
    if (all && t_.lanes(0) == kLanes && list_.fits(first, kLanes) && shape.M <= kNarrow)
      keep_all(first, hits[0], found[0]);
    else
      for (size_t i = 0; i < count; ++i) keep(tile + i, first, hits[i], found[i]);
    return count;
  }

  void keep(size_t tile, size_t first, Hit* hit, size_t found) {
    const size_t lanes = tile * kLanes;
    const bool wide = t_.source.shape.M > kNarrow;
    const double *base = t_.base.data() + lanes, *extra = t_.extra.data() + lanes;
    const double unit = t_.unit[lanes], guess = guess_[tile];
    const uint64_t real = ~uint64_t(0) >> (kLanes - t_.lanes(tile));
    if (~real) found = drop_padding(hit, found, real);
    // The lanes of all hits in one loop: how many a hit has is a surprise to the branch predictor.
    const Hit* const end = hit + found;
    hit[found].lanes = 0;
    for (size_t i = 0; i < kAhead; ++i) hit[found + i].row = 0;
    for (uint64_t left = hit->lanes; hit != end;) {
      const size_t lane = size_t(__builtin_ctzll(left)), row = first + hit->row;
      list_.prefetch_end(first + hit[kAhead].row);
      const double factor = biased_ ? factor_[row] : 0.0;  // rows come in no order: not for nothing
      const double value = base[lane] + unit * hit->sum(lane, wide) + extra[lane] * factor;
      list_.push(row, {float(value - guess), uint32_t(lanes + lane)},
                 [this](size_t i) { resolve(i); });
      left &= left - 1;
      hit += left == 0;
      const uint64_t next = hit->lanes;
      left = left ? left : next;
    }
  }

  // A block's first tile, of which every row takes all: the same in a loop that vectors can take.
  void keep_all(size_t first, const Hit* hits, size_t found) {
    double base[kLanes], extra[kLanes];
    uint32_t lane[kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      lane[i] = uint32_t(i % (kLanes / 2) * 2 + i / (kLanes / 2));  // as a narrow hit has them
      base[i] = t_.base[lane[i]] - guess_[0];
      extra[i] = t_.extra[lane[i]];
    }
    const double unit = t_.unit[0];
    for (size_t h = 0; h < found; ++h) {
      const size_t row = first + hits[h].row;
      const double factor = factor_[row];
      Candidates::Kept* const kept = list_.end(row);
      for (size_t i = 0; i < kLanes; ++i)
        kept[i] = {float(base[i] + unit * hits[h].narrow[i] + extra[i] * factor), lane[i]};
      list_.grow(row, kLanes);
    }
  }

  // The last tile may have lanes that are no class.
  static size_t drop_padding(Hit* hits, size_t found, uint64_t real) {
    size_t left = 0;
    for (size_t h = 0; h < found; ++h)
      if (hits[h].lanes &= real) hits[left++] = hits[h];
    return left;
  }

  // The k best of a row that has too many candidates; their scores take the place of their lower
  // bounds. As they are: rounded to float32 they may be too high, which the slack covers, but with
  // it taken off their upper bounds would be too low where it is more than a tile's reach.
  void resolve(size_t row) {
    Candidates::Kept* const kept = list_.begin(row);
    std::vector<std::pair<Candidate, uint32_t>> exact(list_.count(row));
    for (size_t c = 0; c < exact.size(); ++c)
      exact[c] = {rescored(row, t_.order[kept[c].lane]), kept[c].lane};
    std::nth_element(exact.begin(), exact.begin() + (k_ - 1), exact.end(),
                     [](const auto& a, const auto& b) { return better(a.first, b.first); });
    const double target = list_.target()[row];
    for (size_t c = 0; c < k_; ++c) {
      // An infinite slack excludes nothing, whatever the bound. What lies below the target is raised
      // to it, and so stays: the target was forecast too high, and the row will be scanned again.
      const double lower = std::max(in_units(row, exact[c].first.value), target);
      kept[c] = {std::isinf(list_.slack(row)) ? 0.0f : round_up(lower), exact[c].second};
    }
  }

  // The exact score of a class, given the inner product.
  Candidate scored(size_t row, uint32_t t, double dot) const {
    return {float((dot * terms_[row].scale + terms_[row].offset) + t_.source.bias[t]), t};
  }

  Candidate rescored(size_t row, uint32_t t) {
    return scored(row, t, rescore_.one(codes_, uint32_t(row), t));
  }

  double length(size_t row) const { return std::sqrt(terms_[row].squared) * t_.down; }

  // A row's score as the filter compares it.
  double in_units(size_t row, float score) const {
    return (double(score) - terms_[row].offset) * factor_[row] * t_.down;
  }

  // Inner products of the candidates that the k best are likely among: a bit bolder than the scan
  // was, for those left over are at hand if they are needed.
  void score_all() {
    rescore_.clear();
    for (size_t i = 0; i < n_; ++i) {
      if (i + Candidates::kAhead < n_) list_.prefetch(i + Candidates::kAhead);
      settled_[i] = list_.settle(i, eager_);
      const Candidates::Kept* c = list_.begin(i);
      for (const auto* end = c + settled_[i].count; c != end; ++c)
        rescore_.add(uint32_t(i), t_.order[c->lane]);
    }
    dots_ = rescore_.run(codes_);
  }

  // Answers a row, whose inner products begin at ``at``; false if it has to be scanned again.
  bool finish(size_t row, size_t at, const Answer& answer) {
    const Candidates::Settled front = settled_[row];
    best_.clear();
    for (size_t i = at; i < at + front.count; ++i)
      best_.push_back(scored(row, rescore_.class_of(i), dots_[i]));
    double least = sort_best(row);
    if (front.rest >= least) {
      for (auto* c = list_.begin(row) + front.count; c != list_.end(row); ++c)
        if (list_.upper(*c) >= least) best_.push_back(rescored(row, t_.order[c->lane]));
      least = sort_best(row);
    }
    for (size_t j = 0; j < std::min(k_, best_.size()); ++j) {
      answer.scores[row * k_ + j] = best_[j].value;
      answer.classes[row * k_ + j] = best_[j].other;
    }
    const bool full = best_.size() >= k_;
    if (!full) answer.scores[(row + 1) * k_ - 1] = -std::numeric_limits<float>::infinity();
    if (sampled_) observed.push_back(forecast_.observed(row, length(row), least));
    // What was left out lies below the target. Half the slack is four times what rounding may have
    // added to that, or taken from the k-th best: so far below it ties with nothing.
    return full && !(least + 0.5 * list_.slack(row) < list_.target()[row]);
  }

  // The k best first; what the k-th of them excludes lies below the result.
  double sort_best(size_t row) {
    const size_t n = best_.size();
    if (n < k_) return Candidates::kLowest;
    if (n <= kMostRanked)
      rank_best();
    else
      std::partial_sort(best_.begin(), best_.begin() + k_, best_.end(), better);
    return in_units(row, best_[k_ - 1].value) - list_.slack(row);
  }

  // Few are ranked without a jump that depends on them.
  void rank_best() {
    alignas(64) uint64_t keys[kMostRanked] = {}, rank[kMostRanked];
    const size_t n = best_.size();
    for (size_t i = 0; i < n; ++i) {
      const float value = best_[i].value + 0.0f;  // one zero, not two
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits ^= uint32_t(int32_t(bits) >> 31) | 0x80000000u;  // in the order of the values
      keys[i] = uint64_t(bits) << 32 | uint32_t(~best_[i].other);
    }
    t_.isa.ranks(keys, n, rank);
    ranked_.resize(n);
    for (size_t i = 0; i < n; ++i) ranked_[rank[i]] = best_[i];
    best_.swap(ranked_);
  }

  // Tiles that stay in the L2 cache together; a pair of them that is scanned at once; how many hits
  // before it is used a place for a candidate is asked for.
  static constexpr size_t kTileBytes = size_t(640) << 10, kPairBytes = size_t(384) << 10;
  static constexpr size_t kAhead = 8;
  static constexpr size_t kHits = kChunk + kAhead;  // of a tile and a chunk, and those ahead of them

  const ScanTables& t_;
  const uint8_t* codes_ = nullptr;
  size_t n_ = 0, rows_, k_;
  Candidates list_;
  Forecast forecast_;
  bool sampled_ = false, biased_ = false;
  Rescore rescore_;
  std::vector<double> guess_;  // by tile
  double eager_ = 0;
  std::vector<RowTerms> terms_;
  std::vector<double> factor_;
  std::vector<Candidates::Settled> settled_;
  const double* dots_ = nullptr;
  Array<Hit> hits_[2];  // of one tile each
  std::vector<Candidate> best_, ranked_;
};

}  // namespace raypq
