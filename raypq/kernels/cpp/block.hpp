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
#include "tile_parts.hpp"

namespace raypq {

// Results of a block's rows.
struct TopK {
  float* scores;  // [n, k]
  int64_t* classes;
};

// The first cutoff of a row: none, rising during the scan; the forecast; or, for a row whose cutoff
// was too high, the k-th best score of its first scan.
enum class FirstCutoff { kNone, kForecast, kKnown };

// Classifies a block of rows. For the units and bounds of scores see bounds.hpp.
//
// During a scan the cutoff of a row is a forecast, or the k-th best sum less the LIKELY error; both
// may be too high. The candidates are then scored exactly, and a row whose cutoff was above its
// k-th best score is reported as failed, to be scanned again.
class Block {
 public:
  // Allocates for up to ``rows`` rows.
  Block(const ScanTables& tables, size_t rows, size_t k)
      : t_(tables), rows_(rows), k_(k), list_(tables.isa, rows, k, tables.source.T),
        forecast_(tables, rows), rescore_(tables), terms_(rows), factor_(rows), picked_(rows),
        hits_{Array<Hit>(kHits), Array<Hit>(kHits)}, parts_(tables) {
    for (double x : t_.extra) biased_ |= x != 0;
  }

  // Classifies rows codes [n, M] into ``out``. kForecast uses ``trend``; kKnown reads the k-th best
  // scores of the first scan from ``out``.
  void run(const uint8_t* codes, size_t n, FirstCutoff begin, const Trend& trend, const TopK& out) {
    if (n > rows_) throw std::length_error("more rows than a block has room for");
    codes_ = codes, n_ = n;
    failed.clear(), observed.clear();
    candidates = exact_scores = 0;
    start(begin, trend, out);
    const size_t group = std::max<size_t>(1, tile_cache() / t_.tile_bytes());
    size_t due = 1;  // the tile before which cutoffs are raised next
    for (size_t tile = 0, last; tile < t_.tiles(); tile = last) {
      const bool rising = begin == FirstCutoff::kNone, raise = rising && tile >= due;
      if (raise) due += 1 + due * 3 / 4;
      last = rising && tile == 0 ? 1 : std::min(tile + group, t_.tiles());
      scan(tile, last, raise, rising && tile == 0);
    }
    score_picked();
    size_t at = 0;
    for (size_t i = 0; i < n_; ++i) {
      const bool good = finish(i, at, out);
      at += picked_[i].count;
      if (!good) failed.push_back(uint32_t(i));
    }
  }

  std::vector<uint32_t> failed;  // rows of the last run that have to be scanned again
  std::vector<Observed> observed;
  // Of the last run: pairs that the scan left, and scores computed exactly.
  size_t candidates = 0, exact_scores = 0;

 private:
  void start(FirstCutoff begin, const Trend& trend, const TopK& out) {
    likely_error_.resize(t_.tiles());
    pick_raise_ = std::numeric_limits<double>::infinity();
    std::vector<double> bound_width(t_.tiles());
    for (size_t tile = 0; tile < t_.tiles(); ++tile) {
      const double deviation =
          t_.unit[tile * kTileWidth] * std::sqrt(double(t_.source.shape.M) / 12);
      // Three standard deviations of M roundings, each uniform within ±½ unit.
      likely_error_[tile] =
          begin == FirstCutoff::kKnown
              ? t_.tile_error[tile]
              : std::min(3 * deviation + t_.unit[tile * kTileWidth], t_.tile_error[tile]);
      bound_width[tile] = likely_error_[tile] + t_.tile_error[tile];
      pick_raise_ = std::min(pick_raise_, std::max(0.0, likely_error_[tile] - deviation));
    }
    list_.restart(std::move(bound_width));
    for (size_t i = 0; i < n_; ++i) {
      terms_[i] = row_terms(t_.source, codes_ + i * t_.source.shape.M);
      factor_[i] = terms_[i].factor;
    }
    sampled_ = begin != FirstCutoff::kKnown && Forecast::possible(t_);
    if (sampled_) forecast_.sample(codes_, factor_.data(), n_);
    for (size_t i = 0; i < n_; ++i) reset(i, begin, trend, out);
  }

  void reset(size_t i, FirstCutoff begin, const Trend& trend, const TopK& out) {
    const RowTerms& row = terms_[i];
    const double largest = row.scale * std::sqrt(row.squared) * t_.longest_weight +
                           std::fabs(row.offset) + t_.largest_bias;
    const double tie_margin = row.factor > 0 ? t_.tie_margin(largest, row.factor)
                                             : std::numeric_limits<double>::infinity();
    double cutoff = kNoCutoff;
    if (begin == FirstCutoff::kForecast)
      cutoff = forecast_.kth_best(i, length(i), trend);
    else if (begin == FirstCutoff::kKnown)
      cutoff = in_units(i, out.scores[(i + 1) * k_ - 1]) - tie_margin;
    if (!std::isfinite(cutoff) || std::isinf(tie_margin)) cutoff = kNoCutoff;
    list_.reset(i, tie_margin, cutoff);
  }

  // Scans tiles [tile, last), chunk by chunk of rows. raise: raises cutoffs before; all: every row
  // hits in every column of the tile.
  void scan(size_t tile, size_t last, bool raise, bool all) {
    const size_t M = t_.source.shape.M, run = parts_.run(n_);
    for (size_t begin = 0; begin < n_; begin += run) {
      const size_t end = std::min(n_, begin + run);
      for (size_t i = last; i-- > tile;) parts_.begin(i, codes_ + begin * M, end - begin);
      for (size_t first = begin; first < end; first += kChunk) {
        const size_t n = std::min(kChunk, end - first);
        if (raise) list_.sweep(first, first + n);
        for (size_t i = tile; i < last;)
          i += scan_chunk(i, last, first, parts_.rows(first - begin, n), all);
      }
    }
  }

  // Scans one tile, or two if a pair fits the cache; returns how many.
  size_t scan_chunk(size_t tile, size_t last, size_t first, const ScanRows& rows, bool all) {
    const size_t M = t_.source.shape.M, n = rows.n;
    const size_t count = tile + 1 < last && 2 * t_.tile_bytes() <= tile_cache() / 5 * 3 ? 2 : 1;
    int32_t threshold[2][kChunk];
    for (size_t i = 0; i < count; ++i) {
      const ThresholdTerms terms{t_.tile_extra[tile + i],
                                 t_.tile_base[tile + i] + t_.tile_error[tile + i],
                                 1.0 / t_.unit[(tile + i) * kTileWidth], t_.limit};
      t_.isa.thresholds(list_.cutoff() + first, factor_.data() + first, n, terms, threshold[i]);
    }
    Hit* const hits[2] = {hits_[0].data(), hits_[1].data()};
    size_t n_hits[2];
    if (count == 2) {
      const int32_t* const both[2] = {threshold[0], threshold[1]};
      t_.isa.scan_two(t_.tile(tile), rows, both, hits, n_hits);
    } else {
      n_hits[0] = t_.isa.scan_rows(parts_.last(tile), rows, threshold[0], hits[0]);
    }
    if (all && t_.width(0) == kTileWidth && list_.fits(first, kTileWidth) && M <= kNarrow)
      add_all(first, hits[0], n_hits[0]);
    else
      for (size_t i = 0; i < count; ++i) add_hits(tile + i, first, hits[i], n_hits[i]);
    return count;
  }

  // Adds the candidates of a tile's hits; rows count from ``first``.
  void add_hits(size_t tile, size_t first, Hit* hit, size_t n_hits) {
    const size_t slot0 = tile * kTileWidth;
    const bool wide = t_.source.shape.M > kNarrow;
    const double *base = t_.base.data() + slot0, *extra = t_.extra.data() + slot0;
    const double unit = t_.unit[slot0], likely_error = likely_error_[tile];
    const uint64_t real = ~uint64_t(0) >> (kTileWidth - t_.width(tile));
    if (~real) n_hits = drop_padding(hit, n_hits, real);
    // One loop over the columns of all hits: the number of columns of a hit is unpredictable.
    const Hit* const end = hit + n_hits;
    hit[n_hits].columns = 0;
    for (size_t i = 0; i < kAhead; ++i) hit[n_hits + i].row = 0;
    for (uint64_t left = hit->columns; hit != end;) {
      const size_t column = size_t(__builtin_ctzll(left)), row = first + hit->row;
      list_.prefetch_end(first + hit[kAhead].row);
      const double factor = biased_ ? factor_[row] : 0.0;  // a random access: only if needed
      const double value = base[column] + unit * hit->sum(column, wide) + extra[column] * factor;
      list_.push(row, {float(value - likely_error), uint32_t(slot0 + column)},
                 [this](size_t i) { resolve(i); });
      left &= left - 1;
      hit += left == 0;
      const uint64_t next = hit->columns;
      left = left ? left : next;
    }
  }

  // Adds every class of the first tile for each row; as add_hits, in a loop that vectorises.
  void add_all(size_t first, const Hit* hits, size_t n_hits) {
    double base[kTileWidth], extra[kTileWidth];
    uint32_t column[kTileWidth];  // in the order of Hit::narrow
    for (size_t i = 0; i < kTileWidth; ++i) {
      column[i] = uint32_t(i % (kTileWidth / 2) * 2 + i / (kTileWidth / 2));
      base[i] = t_.base[column[i]] - likely_error_[0];
      extra[i] = t_.extra[column[i]];
    }
    const double unit = t_.unit[0];
    for (size_t h = 0; h < n_hits; ++h) {
      const size_t row = first + hits[h].row;
      const double factor = factor_[row];
      Candidates::Entry* const entries = list_.end(row);
      for (size_t i = 0; i < kTileWidth; ++i)
        entries[i] = {float(base[i] + unit * hits[h].narrow[i] + extra[i] * factor), column[i]};
      list_.grow(row, kTileWidth);
    }
  }

  // Clears the columns of the last tile that are no class; returns the number of hits left.
  static size_t drop_padding(Hit* hits, size_t n_hits, uint64_t real) {
    size_t left = 0;
    for (size_t h = 0; h < n_hits; ++h)
      if (hits[h].columns &= real) hits[left++] = hits[h];
    return left;
  }

  // Moves the k best candidates of a row to the front, with their scores as lower bounds. The
  // scores are not lowered by the tie margin, though rounding to float32 may have raised them: the
  // margin in the cutoff covers that, and upper bounds would be too low where it exceeds a tile's
  // bound width.
  void resolve(size_t row) {
    Candidates::Entry* const entries = list_.begin(row);
    std::vector<std::pair<Candidate, uint32_t>> exact(list_.count(row));
    for (size_t c = 0; c < exact.size(); ++c)
      exact[c] = {rescored(row, t_.order[entries[c].slot]), entries[c].slot};
    std::nth_element(exact.begin(), exact.begin() + (k_ - 1), exact.end(),
                     [](const auto& a, const auto& b) { return better(a.first, b.first); });
    const double cutoff = list_.cutoff()[row];
    for (size_t c = 0; c < k_; ++c) {
      // With an infinite tie margin nothing is excluded, whatever the bound. A score below the
      // cutoff is raised to it, so that it stays: the forecast was too high, and the row will be
      // scanned again.
      const double lower = std::max(in_units(row, exact[c].first.value), cutoff);
      entries[c] = {std::isinf(list_.tie_margin(row)) ? 0.0f : round_up(lower), exact[c].second};
    }
  }

  // The exact score of a class, given the inner product.
  Candidate scored(size_t row, uint32_t t, double dot) const {
    return {float((dot * terms_[row].scale + terms_[row].offset) + t_.source.bias[t]), t};
  }

  Candidate rescored(size_t row, uint32_t t) {
    ++exact_scores;
    return scored(row, t, rescore_.one(codes_, uint32_t(row), t));
  }

  // A row's length in units.
  double length(size_t row) const { return std::sqrt(terms_[row].squared) * t_.down; }

  double in_units(size_t row, float score) const {
    return (double(score) - terms_[row].offset) * factor_[row] * t_.down;
  }

  // Inner products of the candidates that probably include the k best. Picking fewer of them than
  // the bounds allow is safe, because ``finish`` scores the others where needed.
  void score_picked() {
    rescore_.clear();
    for (size_t i = 0; i < n_; ++i) {
      if (i + Candidates::kAhead < n_) list_.prefetch(i + Candidates::kAhead);
      candidates += list_.count(i);
      picked_[i] = list_.pick(i, pick_raise_);
      const Candidates::Entry* c = list_.begin(i);
      for (const auto* end = c + picked_[i].count; c != end; ++c)
        rescore_.add(uint32_t(i), t_.order[c->slot]);
    }
    exact_scores += rescore_.size();
    dots_ = rescore_.run(codes_);
  }

  // Writes the results of a row, whose inner products begin at ``at``; false if it has to be
  // scanned again.
  bool finish(size_t row, size_t at, const TopK& out) {
    const Candidates::Picked picked = picked_[row];
    best_.clear();
    for (size_t i = at; i < at + picked.count; ++i)
      best_.push_back(scored(row, rescore_.class_of(i), dots_[i]));
    double least = sort_best(row);
    if (picked.rest_upper >= least) {
      for (auto* c = list_.begin(row) + picked.count; c != list_.end(row); ++c)
        if (list_.upper(*c) >= least) best_.push_back(rescored(row, t_.order[c->slot]));
      least = sort_best(row);
    }
    for (size_t j = 0; j < std::min(k_, best_.size()); ++j) {
      out.scores[row * k_ + j] = best_[j].value;
      out.classes[row * k_ + j] = best_[j].index;
    }
    const bool full = best_.size() >= k_;
    if (!full) out.scores[(row + 1) * k_ - 1] = -std::numeric_limits<float>::infinity();
    if (sampled_) observed.push_back(forecast_.observed(row, length(row), least));
    // Excluded classes score below the cutoff. Half the tie margin is four times what rounding may
    // have added to their scores or taken from the k-th best, so none of them can tie with it.
    return full && !(least + 0.5 * list_.tie_margin(row) < list_.cutoff()[row]);
  }

  // Moves the k best to the front, sorted. Classes whose upper bound is below the result are
  // excluded by the k-th of them.
  double sort_best(size_t row) {
    const size_t n = best_.size();
    if (n < k_) return kNoCutoff;
    if (n <= kMostRanked)
      rank_best();
    else
      std::partial_sort(best_.begin(), best_.begin() + k_, best_.end(), better);
    return in_units(row, best_[k_ - 1].value) - list_.tie_margin(row);
  }

  // Sorts a few candidates without unpredictable branches.
  void rank_best() {
    alignas(64) uint64_t keys[kMostRanked] = {}, rank[kMostRanked];
    const size_t n = best_.size();
    for (size_t i = 0; i < n; ++i) {
      const float value = best_[i].value + 0.0f;  // −0 becomes +0
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits ^= uint32_t(int32_t(bits) >> 31) | 0x80000000u;  // in the order of the values
      keys[i] = uint64_t(bits) << 32 | uint32_t(~best_[i].index);
    }
    t_.isa.ranks(keys, n, rank);
    ranked_.resize(n);
    for (size_t i = 0; i < n; ++i) ranked_[rank[i]] = best_[i];
    best_.swap(ranked_);
  }

  static constexpr size_t kAhead = 8;  // hits between the prefetch of a list's end and its use
  static constexpr size_t kHits = kChunk + kAhead;  // of a tile and a chunk, and padding for kAhead

  const ScanTables& t_;
  const uint8_t* codes_ = nullptr;
  size_t n_ = 0, rows_, k_;
  Candidates list_;
  Forecast forecast_;
  bool sampled_ = false, biased_ = false;
  Rescore rescore_;
  std::vector<double> likely_error_;  // by tile
  double pick_raise_ = 0;
  std::vector<RowTerms> terms_;
  std::vector<double> factor_;
  std::vector<Candidates::Picked> picked_;
  const double* dots_ = nullptr;
  Array<Hit> hits_[2];  // of one tile each
  TileParts parts_;
  std::vector<Candidate> best_, ranked_;
};

}  // namespace raypq
