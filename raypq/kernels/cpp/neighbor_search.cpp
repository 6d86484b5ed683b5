#include "neighbor_search.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace raypq {

namespace {

constexpr size_t kFewQueries = 24;    // for which no table of 64 codes is made
constexpr size_t kHugePage = size_t(2) << 20;  // a table in small pages is half as fast
constexpr double kSpread = 1.25;      // largest limit of queries compared together / their median
constexpr size_t kAhead = 8;          // queries
constexpr size_t kRounds = 32;        // limits are set anew after each

}  // namespace

NearEntries::NearEntries(const NeighborIndex& index, double unit)
    : unit(unit), stride((index.shape.K + 15) / 16 * 16),
      values(index.shape.M * index.shape.K * stride) {
  const size_t lines = index.shape.M * index.shape.K, K = index.shape.K;
  std::fill_n(values.data(), values.size(), uint8_t(255));
  const double inverse = (1 - 0x1p-22) / unit;  // T is rounded to float32
  for (size_t i = 0; i < lines; ++i)
    for (size_t k = 0; k < K; ++k) {
      const double x = index.T[i * K + k] * inverse;
      if (x < 255) values[i * stride + k] = uint8_t(x);
    }
}

NeighborSearch::Scratch::Scratch(const NeighborSearch& search)
    : table(std::max(search.index_.shape.M * search.index_.shape.K * kTileWidth, kHugePage)),
      hits(kQueriesTogether), parts(kBlockRows), columns(kTileWidth),
      decoded(score_floats(search.index_.shape)),
      weights(search.index_.shape.D()) {}

NeighborSearch::NeighborSearch(const NeighborIndex& index, std::vector<uint32_t> places, size_t k)
    : index_(index), places_(std::move(places)), n_(places_.size()), k_(k),
      codes_(index.codes.data()), pools_(n_, k, index.margin), limit_(n_, kNoLimit) {
  if (n_ == index.size()) return;
  const size_t M = index.shape.M;
  own_.resize(n_ * M);
  for (size_t q = 0; q < n_; ++q) std::copy_n(index.code(places_[q]), M, own_.data() + q * M);
  codes_ = own_.data();
}

void NeighborSearch::run(size_t threads) {
  if (!n_) return;
  std::vector<Scratch> scratch;
  for (size_t i = 0; i < threads; ++i) scratch.emplace_back(*this);
  find_first(scratch);
  Queries left, some;
  if (near_tiles() < index_.tiles()) left.resize(n_);
  std::iota(left.begin(), left.end(), uint32_t(0));
  bool both = n_ == index_.size();
  while (!left.empty()) {
    // Few with a large limit would make the unit coarse for all.
    std::vector<float> bounds;
    for (uint32_t q : left) bounds.push_back(pools_.bound(q));
    std::nth_element(bounds.begin(), bounds.begin() + ptrdiff_t(bounds.size() / 2), bounds.end());
    const double most = bounds[bounds.size() / 2] * kSpread;
    const auto rest = std::stable_partition(left.begin(), left.end(), [&](uint32_t q) {
      return pools_.bound(q) <= most;
    });
    some.assign(left.begin(), rest);
    left.erase(left.begin(), rest);
    compare_blocks(some, both, scratch);
    both = false;
  }
  for (const Scratch& s : scratch) work_.add(s.work);
}

void NeighborSearch::set_limit(size_t query, double unit) {
  const double x = double(pools_.bound(query)) / unit;
  limit_[query] = x < kNoLimit ? uint8_t(x) : kNoLimit;
}

// Compares queries with all blocks, and with the codes of those within their limit. both: compares
// all queries, which are all codes, with the blocks of the tiles before theirs; the limits of those
// that are not among ``queries`` are 0.
void NeighborSearch::compare_blocks(const Queries& queries, bool both,
                                    std::vector<Scratch>& scratch) {
  float largest = 0;
  for (uint32_t q : queries) largest = std::max(largest, pools_.bound(q));
  const NearEntries entries(index_, largest / kUnits);
  Queries all;
  if (both) {
    all.resize(n_);
    std::iota(all.begin(), all.end(), uint32_t(0));
    std::fill(limit_.begin(), limit_.end(), uint8_t(0));
  }
  for (size_t round = 0; round < kRounds; ++round) {
    for (uint32_t q : queries) set_limit(q, entries.unit);
    const size_t tiles = (index_.tiles() + kRounds - 1 - round) / kRounds;
    const Comparison by{entries, both, false};
    parallel(tiles, scratch.size(), [&](size_t thread, size_t i) {
      compare_tile(round + i * kRounds, both ? all : queries, by, scratch[thread]);
    });
    if (both) index_.searched = float(round + 1) / kRounds;
  }
}

void NeighborSearch::compare_tile(size_t tile, const Queries& queries, Comparison by,
                                  Scratch& scratch) {
  constexpr size_t kBlocks = kTileWidth / kBlockRows;  // of 64 codes
  const size_t after = (tile + 1) * kTileRows;
  const size_t first = by.both ? std::min(after, queries.size()) : 0;
  if (first == queries.size()) return;
  uint8_t column_limit[kTileWidth] = {};
  if (by.both)
    for (size_t i = 0; i < kTileRows; ++i) {
      uint8_t& limit = column_limit[i / kBlockRows];
      limit = std::max(limit, limit_[tile * kTileRows + i]);
    }
  index_.isa.near_table(index_.shape, by.entries.values.data(), by.entries.stride,
                        index_.code(tile * kTileRows), true, scratch.table.data());
  for (Queries& part : scratch.parts) part.clear();
  for (size_t from = first; from < queries.size(); from += kQueriesTogether) {
    const PickedRows rows{codes_, index_.shape.M, queries.data() + from,
                          std::min(kQueriesTogether, queries.size() - from)};
    const size_t count = index_.isa.near_columns(index_.shape, scratch.table.data(), rows,
                                                 limit_.data(), column_limit, scratch.hits.data());
    for (size_t part = 0; part < kBlockRows; ++part) {
      Queries& some = scratch.parts[part];
      size_t end = some.size();
      some.resize(end + count);
      for (size_t h = 0; h < count; ++h) {  // as moves, not jumps: which are near is unpredictable
        some[end] = scratch.hits[h].row;
        end += (scratch.hits[h].columns >> (part * kBlocks) & ((1 << kBlocks) - 1)) != 0;
      }
      some.resize(end);
    }
  }
  scratch.work.bounds += queries.size() - first;
  for (size_t part = 0; part < kBlockRows; ++part)
    compare(tile * kTileRows + part * kTileWidth, scratch.parts[part], by, scratch);
}

// Compares queries with the 64 codes from place ``first`` on.
void NeighborSearch::compare(size_t first, const Queries& queries, Comparison by,
                             Scratch& scratch) {
  if (first >= index_.size() || queries.empty()) return;
  scratch.work.compared += queries.size();
  uint8_t column_limit[kTileWidth] = {};
  if (by.both) std::copy_n(limit_.data() + first, std::min(kTileWidth, n_ - first), column_limit);
  if (queries.size() <= kFewQueries)
    return compare_few(first, queries, column_limit, by, scratch);
  index_.isa.near_table(index_.shape, by.entries.values.data(), by.entries.stride,
                        index_.code(first), false, scratch.table.data());
  for (size_t from = 0; from < queries.size(); from += kQueriesTogether) {
    const PickedRows rows{codes_, index_.shape.M, queries.data() + from,
                          std::min(kQueriesTogether, queries.size() - from)};
    const size_t count = index_.isa.near_columns(index_.shape, scratch.table.data(), rows,
                                                 limit_.data(), column_limit, scratch.hits.data());
    for (size_t h = 0; h < count; ++h)
      for (uint64_t columns = scratch.hits[h].columns; columns; columns &= columns - 1)
        scratch.columns[size_t(__builtin_ctzll(columns))].push_back(scratch.hits[h].row);
  }
  offer_columns(first, by, scratch);
}

void NeighborSearch::compare_few(size_t first, const Queries& queries, const uint8_t* column_limit,
                                 Comparison by, Scratch& scratch) {
  const auto [M, K, d] = index_.shape;
  const size_t n = std::min(kTileWidth, index_.size() - first);
  for (uint32_t query : queries) {
    const uint8_t* a = code_of(query);
    for (size_t c = 0; c < n; ++c) {
      const uint8_t* b = index_.code(first + c);
      const uint32_t limit = std::max(limit_[query], column_limit[c]);
      uint32_t sum = 0;
      for (size_t m = 0; m < M && sum <= limit; ++m)
        sum += by.entries.values[(m * K + a[m]) * by.entries.stride + b[m]];
      if (std::min(sum, kNoLimit) <= limit) scratch.columns[c].push_back(query);
    }
  }
  offer_columns(first, by, scratch);
}

float NeighborSearch::distance(size_t query, size_t place) const {
  const auto [M, K, d] = index_.shape;
  const uint8_t *a = code_of(query), *b = index_.code(place);
  const float* T = index_.T.data();
  double sums[4] = {};  // of which one does not wait for another
  size_t m = 0;
  for (; m + 4 <= M; m += 4)
    for (size_t i = 0; i < 4; ++i) sums[i] += T[((m + i) * K + b[m + i]) * K + a[m + i]];
  for (; m < M; ++m) sums[0] += T[(m * K + b[m]) * K + a[m]];
  return float((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Offers what was found of 64 codes: code by code, so that their lines of T stay in the cache. All
// distances come first: a jump on one of them would make the next one wait for it.
void NeighborSearch::offer_columns(size_t first, Comparison by, Scratch& scratch) {
  for (size_t c = 0; c < kTileWidth; ++c) {
    Queries& queries = scratch.columns[c];
    const uint32_t place = uint32_t(first + c);
    if (place < index_.size()) {
      scratch.distances.resize(queries.size());
      for (size_t i = 0; i < queries.size(); ++i) {
        const uint32_t later = queries[std::min(i + kAhead, queries.size() - 1)];
        __builtin_prefetch(code_of(later));
        pools_.prefetch(later);
        scratch.distances[i] = distance(queries[i], place);
      }
      for (size_t i = 0; i < queries.size(); ++i)
        offer(queries[i], {scratch.distances[i], place}, by, scratch);
    }
    queries.clear();
  }
}

// Takes a code if it may be among the best of a query; and, where codes are queries, too, the query
// for the code.
void NeighborSearch::offer(size_t query, NearCode code, Comparison by, Scratch& scratch) {
  ++scratch.work.scored;
  if (code.distance <= pools_.bound(query)) {
    add(query, code, scratch);
    if (by.alone) set_limit(query, by.entries.unit);
  }
  if (by.both && code.distance <= pools_.bound(code.place))
    add(code.place, {code.distance, uint32_t(query)}, scratch);
}

void NeighborSearch::add(size_t query, NearCode code, Scratch& scratch) {
  pools_.add(query, code, [&](NearCode* codes, size_t n) {
    score(query, codes, n, scratch);
    std::vector<std::pair<Neighbor, NearCode>> all(n);
    for (size_t i = 0; i < n; ++i) all[i] = {scratch.best[i], codes[i]};
    std::nth_element(all.begin(), all.begin() + ptrdiff_t(k_ - 1), all.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < k_; ++i) codes[i] = all[i].second;
    return index_.bound_of(all[k_ - 1].first.score);
  });
}

// Makes the exact scores of codes, as scratch.best.
void NeighborSearch::score(size_t query, const NearCode* codes, size_t n, Scratch& scratch) const {
  const Shape& s = index_.shape;
  double own = 0;  // as build_tables sums ‖v‖²: over the dimensions in order
  for (size_t m = 0; m < s.M; ++m) {
    const float* c = index_.codebooks.data() + (m * s.K + code_of(query)[m]) * s.d;
    for (size_t j = 0; j < s.d; ++j) {
      own += double(c[j]) * double(c[j]);
      scratch.weights[m * s.d + j] = 2 * c[j];
    }
  }
  scratch.places.resize(n), scratch.dots.resize(n), scratch.best.resize(n);
  for (size_t i = 0; i < n; ++i) scratch.places[i] = codes[i].place;
  const PickedRows rows{index_.codes.data(), s.M, scratch.places.data(), n};
  index_.isa.rescore(s, index_.codebooks.data(), rows,
                     scratch.weights.data(), scratch.decoded.data(), scratch.dots.data());
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* code = index_.code(codes[i].place);
    double squared = 0;
    for (size_t m = 0; m < s.M; ++m) squared += index_.norms[m * s.K + code[m]];
    scratch.best[i] = {float((scratch.dots[i] + -squared) + (0.0 - own)),
                       index_.number[codes[i].place]};
  }
}

}  // namespace raypq
