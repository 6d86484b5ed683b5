#include "leaves.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "shortlist.hpp"

namespace raypq {

namespace {

constexpr size_t kTaskRows = 8192;  // rows of a task of leaf_pairs

// A leaf with at least K / kExactRows rows gets a table, which costs as much to build as exact
// products of about so many rows.
constexpr size_t kExactRows = 4;

// A row's cutoff in the units of tables (bounds.hpp): what a class of these magnitudes that scores
// at least ``floor`` cannot be below. −∞ where nothing can be excluded.
//
// The floor is a float32 that k classes reach. A class that is left out has an upper bound below
// cutoff = floor − margin, and the margin covers the rounding of its own score and of the bound, so
// its score is below the floor, and none of the k best, even by a tie.
double cutoff_of(const ScanTables& tables, const RowTerms& row, float floor,
                 const Magnitudes& largest) {
  const double most = row.scale * std::sqrt(row.squared) * largest.weight +
                      std::fabs(row.offset) + largest.bias;
  const double margin = row.factor > 0 ? tables.tie_margin(most, row.factor)
                                       : std::numeric_limits<double>::infinity();
  const double cutoff = (double(floor) - row.offset) * row.factor * tables.down - margin;
  return std::isfinite(cutoff) ? cutoff : kNoCutoff;
}

ThresholdTerms terms_of(const ScanTables& tables, size_t tile) {
  return {tables.tile_extra[tile], tables.tile_base[tile] + tables.tile_error[tile],
          1.0 / tables.unit[tile * kTileWidth], tables.limit};
}

uint64_t first_columns(size_t n) { return ~uint64_t(0) >> (kTileWidth - n); }

// A class that reaches its row's floor.
struct Found {
  uint32_t row;
  float score;
  int64_t number;
};

// One thread's part of scan_leaves.
class LeafScan {
 public:
  LeafScan(const LeafClasses& classes, const LeafRows& rows, const Isa& isa,
           const float* codebooks)
      : c_(classes), rows_(rows), isa_(isa), codebooks_(codebooks), hits_(kChunk + 1),
        codes_(kChunk * classes.source.shape.M), of_column_(kTileWidth),
        scratch_(score_floats(classes.source.shape)) {}

  // Every class for every row.
  void all(size_t leaf, const uint32_t* row, size_t n) {
    for (size_t c = 0; c < width(leaf); ++c) score(leaf, c, row, n);
  }

  // The classes of a leaf that its table, a tile of ``tables``, cannot exclude.
  void filtered(size_t leaf, const ScanTables& tables, size_t tile, const uint32_t* row, size_t n) {
    for (auto& rows : of_column_) rows.clear();
    for (size_t at = 0; at < n; at += kChunk)
      filter(leaf, tables, tile, row + at, std::min(kChunk, n - at));
    for (size_t c = 0; c < width(leaf); ++c)
      score(leaf, c, of_column_[c].data(), of_column_[c].size());
  }

  std::vector<Found> found;
  size_t scored = 0;

 private:
  size_t width(size_t leaf) const { return c_.first[leaf + 1] - c_.first[leaf]; }

  void filter(size_t leaf, const ScanTables& tables, size_t tile, const uint32_t* row, size_t n) {
    const size_t M = c_.source.shape.M;
    const Magnitudes largest{tables.longest_weight, tables.largest_bias};
    double cutoff[kChunk], factor[kChunk];
    int32_t threshold[kChunk];
    for (size_t i = 0; i < n; ++i) {
      const RowTerms terms = row_terms(c_.source.metric, rows_.squared[row[i]]);
      cutoff[i] = cutoff_of(tables, terms, rows_.floor[row[i]], largest);
      factor[i] = terms.factor;
      std::copy_n(rows_.codes + row[i] * M, M, codes_.data() + i * M);
    }
    isa_.thresholds(cutoff, factor, n, terms_of(tables, tile), threshold);
    const size_t count =
        isa_.scan_rows(tables.tile(tile), {codes_.data(), n, M}, threshold, hits_.data());
    for (size_t h = 0; h < count; ++h)
      for (uint64_t left = hits_[h].columns & first_columns(width(leaf)); left; left &= left - 1)
        of_column_[size_t(__builtin_ctzll(left))].push_back(row[hits_[h].row]);
  }

  // Scores a class exactly for some rows.
  void score(size_t leaf, size_t column, const uint32_t* row, size_t n) {
    if (!n) return;
    const Source& s = c_.source;
    const size_t at = c_.first[leaf] + column;
    dots_.resize(n);
    isa_.rescore(s.shape, codebooks_, {rows_.codes, s.shape.M, row, n}, s.W + at * s.shape.D(),
                 scratch_.data(), dots_.data());
    scored += n;
    for (size_t i = 0; i < n; ++i) {
      const RowTerms terms = row_terms(s.metric, rows_.squared[row[i]]);
      const float value = float((dots_[i] * terms.scale + terms.offset) + s.bias[at]);
      // Not >=: a score that is no number is kept, to be reported.
      if (!(value < rows_.floor[row[i]])) found.push_back({row[i], value, c_.number[at]});
    }
  }

  const LeafClasses& c_;
  const LeafRows& rows_;
  const Isa& isa_;
  const float* codebooks_;
  Array<Hit> hits_;
  Array<uint8_t> codes_;
  std::vector<std::vector<uint32_t>> of_column_;
  std::vector<double> dots_;
  Array<float> scratch_;
};

// Tables of some leaves, a tile for each, filled up with its first class.
class LeafTables {
 public:
  LeafTables(const LeafClasses& classes, const std::vector<uint32_t>& leaves, const Isa& isa,
             size_t threads)
      : W_(leaves.size() * kTileWidth * classes.source.shape.D()),
        bias_(leaves.size() * kTileWidth) {
    const Source& s = classes.source;
    const size_t D = s.shape.D();
    for (size_t i = 0; i < leaves.size(); ++i) {
      const size_t first = classes.first[leaves[i]], end = classes.first[leaves[i] + 1];
      for (size_t c = 0; c < kTileWidth; ++c) {
        const size_t from = first + c < end ? first + c : first, to = i * kTileWidth + c;
        std::copy_n(s.W + from * D, D, W_.data() + to * D);
        bias_[to] = s.bias[from];
      }
    }
    const Source padded{s.shape, bias_.size(), s.metric, s.C, W_.data(), bias_.data(), s.norms};
    tables = std::make_unique<ScanTables>(padded, false, isa, threads, true);
  }

  std::unique_ptr<ScanTables> tables;

 private:
  Array<float> W_;
  Array<double> bias_;
};

void insert(const Found& found, size_t k, float* scores, int64_t* best) {
  float* score = scores + found.row * k;
  int64_t* number = best + found.row * k;
  const auto before = [&](size_t i) {
    return score[i] != found.score ? score[i] > found.score : number[i] < found.number;
  };
  size_t at = k;
  while (at && !before(at - 1)) --at;
  if (at == k) return;
  std::copy_backward(score + at, score + k - 1, score + k);
  std::copy_backward(number + at, number + k - 1, number + k);
  score[at] = found.score, number[at] = found.number;
}

}  // namespace

LeafPairs leaf_pairs(const ScanTables& bounds, const LeafRows& rows, const Magnitudes& largest,
                     size_t threads) {
  const size_t M = bounds.source.shape.M, leaves = bounds.source.T;
  const size_t tasks = (rows.n + kTaskRows - 1) / kTaskRows;
  // A centre is no longer than the longest weights of its leaf, and its radius at most twice that.
  const Magnitudes most{3 * largest.weight, largest.bias};
  std::vector<std::vector<std::vector<uint32_t>>> parts(tasks);
  parallel(tasks, threads, [&](size_t, size_t task) {
    parts[task].resize(leaves);
    Array<Hit> hits(kChunk + 1);
    double cutoff[kChunk], length[kChunk];
    int32_t threshold[kChunk];
    const size_t end = std::min(rows.n, (task + 1) * kTaskRows);
    for (size_t at = task * kTaskRows; at < end; at += kChunk) {
      const size_t n = std::min(kChunk, end - at);
      for (size_t i = 0; i < n; ++i) {
        const RowTerms terms = row_terms(bounds.source.metric, rows.squared[at + i]);
        cutoff[i] = cutoff_of(bounds, terms, rows.floor[at + i], most);
        length[i] = std::sqrt(rows.squared[at + i]);
      }
      for (size_t tile = 0; tile < bounds.tiles(); ++tile) {
        bounds.isa.thresholds(cutoff, length, n, terms_of(bounds, tile), threshold);
        const size_t count = bounds.isa.scan_rows(
            bounds.tile(tile), {rows.codes + at * M, n, M}, threshold, hits.data());
        const uint64_t real = first_columns(bounds.width(tile));
        for (size_t h = 0; h < count; ++h)
          for (uint64_t left = hits[h].columns & real; left; left &= left - 1) {
            const size_t slot = tile * kTileWidth + size_t(__builtin_ctzll(left));
            parts[task][bounds.order[slot]].push_back(uint32_t(at + hits[h].row));
          }
      }
    }
  });
  LeafPairs pairs;
  pairs.begin.push_back(0);
  for (size_t leaf = 0; leaf < leaves; ++leaf) {
    for (const auto& part : parts)
      pairs.rows.insert(pairs.rows.end(), part[leaf].begin(), part[leaf].end());
    pairs.begin.push_back(uint32_t(pairs.rows.size()));
  }
  return pairs;
}

size_t scan_leaves(const LeafClasses& classes, const LeafPairs& pairs, const LeafRows& rows,
                   const Isa& isa, size_t k, size_t threads, float* scores, int64_t* best) {
  const Source& s = classes.source;
  const size_t entries = s.shape.M * s.shape.K * s.shape.d;
  Array<float> codebooks(entries + kCodePad);
  std::fill_n(std::copy_n(s.C, entries, codebooks.data()), kCodePad, 0.0f);
  const auto count = [&](size_t leaf) { return pairs.begin[leaf + 1] - pairs.begin[leaf]; };
  std::vector<uint32_t> dense, tile(classes.leaves);
  for (size_t leaf = 0; leaf < classes.leaves; ++leaf)
    if (count(leaf) > s.shape.K / kExactRows) {
      tile[leaf] = uint32_t(dense.size());
      dense.push_back(uint32_t(leaf));
    }
  std::unique_ptr<LeafTables> tables;
  if (!dense.empty()) tables = std::make_unique<LeafTables>(classes, dense, isa, threads);
  std::vector<std::unique_ptr<LeafScan>> scans(threads);
  parallel(classes.leaves, threads, [&](size_t thread, size_t leaf) {
    auto& scan = scans[thread];
    if (!scan) scan = std::make_unique<LeafScan>(classes, rows, isa, codebooks.data());
    const uint32_t* row = pairs.rows.data() + pairs.begin[leaf];
    if (count(leaf) > s.shape.K / kExactRows)
      scan->filtered(leaf, *tables->tables, tile[leaf], row, count(leaf));
    else
      scan->all(leaf, row, count(leaf));
  });
  size_t scored = 0;
  for (const auto& scan : scans) {
    if (!scan) continue;
    scored += scan->scored;
    for (const Found& found : scan->found) insert(found, k, scores, best);
  }
  return scored;
}

}  // namespace raypq
