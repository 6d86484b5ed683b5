#include "neighbor_search.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace raypq {

namespace {

constexpr uint32_t kNoLimit = 255;    // no sum is greater
// Tiles that a query is compared with first: this part of all, between these numbers.
constexpr size_t kNearPart = 16, kFewestNear = 4, kMostNear = 64;
constexpr size_t kTogether = 1024;    // queries compared with one table at a time
constexpr size_t kFewQueries = 24;    // for which no table of 64 codes is made
constexpr size_t kHugePage = size_t(2) << 20;  // a table in small pages is half as fast
constexpr double kUnits = 250;        // of the largest limit
constexpr size_t kSampled = 64;       // queries by which the first unit is chosen
constexpr double kSpread = 1.5;       // largest limit of queries compared together / their median

}  // namespace

NeighborSearch::NeighborSearch(const NeighborIndex& index, const uint32_t* places, size_t n,
                               size_t k)
    : index_(index), places_(places), n_(n), k_(k), stride_((index.shape.K + 15) / 16 * 16),
      own_(n * index.shape.M), best_(n * k), count_(n, 0),
      pending_(n * kPending), pending_count_(n, 0), bias_(n), limit_(n, kNoLimit),
      entries_(index.shape.M * index.shape.K * stride_),
      table_(std::max(index.shape.M * index.shape.K * kTileWidth, kHugePage)), hits_(kTogether),
      scratch_(score_floats(index.shape)), weights_(index.shape.D()) {
  const Shape& s = index.shape;
  for (size_t q = 0; q < n; ++q)
    std::copy_n(index.code(places[q]), s.M, own_.data() + q * s.M);
  for (size_t q = 0; q < n; ++q) {  // as build_tables sums ‖v‖²: over the dimensions in order
    double squared = 0;
    for (size_t m = 0; m < s.M; ++m) {
      const float* c = index.codebooks.data() + (m * s.K + code_of(q)[m]) * s.d;
      for (size_t j = 0; j < s.d; ++j) squared += double(c[j]) * double(c[j]);
    }
    bias_[q] = 0.0 - squared;
  }
}

void NeighborSearch::run() {
  if (!n_) return;
  compare_near_tiles();
  if (near_tiles() == index_.tiles()) return;
  Queries left(n_), some;
  std::iota(left.begin(), left.end(), uint32_t(0));
  while (!left.empty()) {
    // Few with a large limit would make the unit coarse for all.
    std::vector<double> bounds;
    for (uint32_t q : left) bounds.push_back(bound_of(q));
    std::nth_element(bounds.begin(), bounds.begin() + ptrdiff_t(bounds.size() / 2), bounds.end());
    const double most = bounds[bounds.size() / 2] * kSpread;
    const auto rest = std::stable_partition(left.begin(), left.end(),
                                            [&](uint32_t q) { return bound_of(q) <= most; });
    some.assign(left.begin(), rest);
    left.erase(left.begin(), rest);
    double largest = 0;
    for (uint32_t q : some) largest = std::max(largest, bound_of(q));
    set_unit(largest / kUnits);
    compare_blocks(some);
    for (uint32_t q : some) score(q);
  }
}

void NeighborSearch::set_unit(double unit) {
  const size_t lines = index_.shape.M * index_.shape.K, K = index_.shape.K;
  unit_ = unit;
  std::fill_n(entries_.data(), entries_.size(), uint8_t(255));
  const double inverse = (1 - 0x1p-22) / unit;  // T is rounded to float32
  for (size_t i = 0; i < lines; ++i)
    for (size_t k = 0; k < K; ++k) {
      const double x = index_.T[i * K + k] * inverse;
      if (x < 255) entries_[i * stride_ + k] = uint8_t(x);
    }
  for (size_t q = 0; q < n_; ++q) set_limit(q);
}

void NeighborSearch::set_limit(size_t query) {
  limit_[query] = kNoLimit;
  if (count_[query] < k_) return;
  const double x = bound_of(query) / unit_;
  if (x < kNoLimit) limit_[query] = uint8_t(x);
}

// A bound that most queries find in the tiles next to them.
double NeighborSearch::likely_bound() const {
  std::vector<double> bounds, distances;
  for (size_t i = 0; i < std::min(n_, kSampled); ++i) {
    const size_t query = i * n_ / std::min(n_, kSampled);
    const size_t tile = places_[query] / kTileRows * kTileRows;
    const size_t last = std::min(index_.size(), tile + std::max(kTileRows, 2 * k_));
    const size_t first = std::min(tile, last - std::min(last, 2 * k_));
    distances.clear();
    for (size_t at = first; at < last; ++at) distances.push_back(distance(query, at));
    const size_t kth = std::min(k_, distances.size()) - 1;
    std::nth_element(distances.begin(), distances.begin() + ptrdiff_t(kth), distances.end());
    bounds.push_back(distances[kth]);
  }
  const size_t at = bounds.size() * 9 / 10;
  std::nth_element(bounds.begin(), bounds.begin() + ptrdiff_t(at), bounds.end());
  return bounds[at] + index_.margin;
}

// Enough tiles for k codes.
size_t NeighborSearch::near_tiles() const {
  const size_t some = std::clamp(index_.tiles() / kNearPart, kFewestNear, kMostNear);
  return std::min(index_.tiles(), std::max(some, 2 + k_ / kTileRows));
}

// Compares each query with its own tile, from whose sums a limit follows.
void NeighborSearch::compare_own_tiles() {
  std::vector<uint32_t> sums, sorted;
  for (size_t q = 0; q < n_; ++q) {
    const size_t tile = places_[q] / kTileRows * kTileRows;
    const size_t n = std::min(index_.size() - tile, kTileRows);
    sums.clear();
    for (size_t i = 0; i < n; ++i) sums.push_back(sum_of(q, tile + i, kNoLimit));
    uint32_t limit = kNoLimit;
    if (n >= k_) {
      sorted = sums;
      std::nth_element(sorted.begin(), sorted.begin() + ptrdiff_t(k_ - 1), sorted.end());
      limit = sorted[k_ - 1] + uint32_t(index_.shape.M);  // entries were rounded down
    }
    for (size_t first = 0; first < n; first += kTileWidth) {
      uint64_t columns = 0;
      for (size_t c = 0; c < kTileWidth && first + c < n; ++c)
        columns |= uint64_t(sums[first + c] <= limit) << c;
      if (columns) offer(q, tile + first, columns);
    }
    score(q);
  }
}

void NeighborSearch::compare_near_tiles() {
  const size_t tiles = index_.tiles();
  set_unit(likely_bound() / kUnits);
  const double unit = unit_;
  compare_own_tiles();
  set_unit(index_.center_unit);
  std::vector<Queries> queries_of_tile(tiles);
  for (size_t first = 0; first < n_; first += kTogether)
    add_near_tiles(first, std::min(kTogether, n_ - first), queries_of_tile);
  set_unit(unit);
  for (size_t tile = 0; tile < tiles; ++tile)
    for (size_t part = 0; part < kTileRows; part += kTileWidth)
      compare(tile * kTileRows + part, queries_of_tile[tile]);
  for (size_t q = 0; q < n_; ++q) score(q);
}

// Adds queries [first, first + n) to those of the tiles whose centers are nearest to them, but for
// their own.
void NeighborSearch::add_near_tiles(size_t first, size_t n, std::vector<Queries>& queries_of_tile) {
  const size_t M = index_.shape.M, tiles = index_.tiles();
  const size_t wanted = near_tiles();
  const size_t width = (tiles + kTileWidth - 1) / kTileWidth * kTileWidth;
  std::vector<uint8_t> sums(n * width);
  for (size_t c = 0; c < width; c += kTileWidth) {
    index_.isa.near_table(index_.shape, entries_.data(), stride_, index_.centers.data() + c * M,
                          false, table_.data());
    index_.isa.column_sums(index_.shape, table_.data(), code_of(first), n, width, sums.data() + c);
  }
  for (size_t i = 0; i < n; ++i) {
    const size_t own = places_[first + i] / kTileRows;
    const uint8_t* sum = sums.data() + i * width;
    size_t count[256] = {}, below = 0, most = 0;
    for (size_t tile = 0; tile < tiles; ++tile) ++count[sum[tile]];
    while (below + count[most] < wanted) below += count[most++];
    size_t at_most = wanted - below;  // tiles whose sum is ``most``
    for (size_t tile = 0; tile < tiles; ++tile) {
      if (sum[tile] > most || (sum[tile] == most && !at_most)) continue;
      if (sum[tile] == most) --at_most;
      if (tile != own) queries_of_tile[tile].push_back(uint32_t(first + i));
    }
  }
}

// Compares queries with all blocks, and with the codes of those within their limit.
void NeighborSearch::compare_blocks(const Queries& queries) {
  constexpr size_t kParts = kBlockRows, kBlocks = kTileWidth / kParts;  // of a tile: 64 codes each
  std::vector<Queries> of_part(kParts);
  for (size_t tile = 0; tile < index_.tiles(); ++tile) {
    index_.isa.near_table(index_.shape, entries_.data(), stride_, index_.code(tile * kTileRows),
                          true, table_.data());
    for (Queries& part : of_part) part.clear();
    for (size_t from = 0; from < queries.size(); from += kTogether) {
      const PickedRows rows{own_.data(), index_.shape.M, queries.data() + from,
                            std::min(kTogether, queries.size() - from)};
      const size_t count = index_.isa.near_columns(index_.shape, table_.data(), rows, limit_.data(),
                                                   hits_.data());
      for (size_t h = 0; h < count; ++h)
        for (size_t part = 0; part < kParts; ++part)
          if (hits_[h].columns >> (part * kBlocks) & ((1 << kBlocks) - 1))
            of_part[part].push_back(hits_[h].row);
    }
    work_.bounds += queries.size();
    for (size_t part = 0; part < kParts; ++part)
      compare(tile * kTileRows + part * kTileWidth, of_part[part]);
  }
}

// Compares queries with the 64 codes from place ``first`` on.
void NeighborSearch::compare(size_t first, const Queries& queries) {
  if (first >= index_.size() || queries.empty()) return;
  work_.compared += queries.size();
  if (queries.size() <= kFewQueries) return compare_few(first, queries);
  index_.isa.near_table(index_.shape, entries_.data(), stride_, index_.code(first), false,
                        table_.data());
  for (size_t from = 0; from < queries.size(); from += kTogether) {
    const PickedRows rows{own_.data(), index_.shape.M, queries.data() + from,
                          std::min(kTogether, queries.size() - from)};
    const size_t count = index_.isa.near_columns(index_.shape, table_.data(), rows, limit_.data(),
                                                 hits_.data());
    for (size_t h = 0; h < count; ++h) offer(hits_[h].row, first, hits_[h].columns);
  }
}

void NeighborSearch::compare_few(size_t first, const Queries& queries) {
  const size_t n = std::min(kTileWidth, index_.size() - first);
  for (uint32_t query : queries) {
    uint64_t columns = 0;
    for (size_t c = 0; c < n; ++c)
      columns |= uint64_t(sum_of(query, first + c, limit_[query]) <= limit_[query]) << c;
    if (columns) offer(query, first, columns);
  }
}

// The sum of a query and a code, at most kNoLimit; where it is more than ``most``, perhaps less.
uint32_t NeighborSearch::sum_of(size_t query, size_t place, uint32_t most) const {
  const auto [M, K, d] = index_.shape;
  const uint8_t *a = code_of(query), *b = index_.code(place);
  uint32_t sum = 0;
  for (size_t m = 0; m < M && sum <= most; ++m) sum += entries_[(m * K + a[m]) * stride_ + b[m]];
  return std::min(sum, kNoLimit);
}

double NeighborSearch::distance(size_t query, size_t place) const {
  const auto [M, K, d] = index_.shape;
  const uint8_t *a = code_of(query), *b = index_.code(place);
  double sum = 0;
  for (size_t m = 0; m < M; ++m) sum += index_.T[(m * K + a[m]) * K + b[m]];
  return sum;
}

// Takes those of 64 codes that may be among the best of a query. Several get their exact score at
// once, which is faster, and makes its limit only a little older.
void NeighborSearch::offer(size_t query, size_t first, uint64_t columns) {
  const bool full = count_[query] == k_;
  const double bound = full ? bound_of(query) : 0;
  for (; columns; columns &= columns - 1) {
    const size_t place = first + size_t(__builtin_ctzll(columns));
    if (place >= index_.size()) break;
    if (full && !(distance(query, place) <= bound)) continue;
    pending_[query * kPending + pending_count_[query]++] = uint32_t(place);
    if (pending_count_[query] == kPending) score(query);
  }
}

// Gives exact scores to the codes that a query has taken, and keeps the best.
void NeighborSearch::score(size_t query) {
  const Shape& s = index_.shape;
  const uint32_t* pending = pending_.data() + query * kPending;
  const size_t n = pending_count_[query];
  if (!n) return;
  pending_count_[query] = 0;
  for (size_t m = 0; m < s.M; ++m) {
    const float* c = index_.codebooks.data() + (m * s.K + code_of(query)[m]) * s.d;
    for (size_t j = 0; j < s.d; ++j) weights_[m * s.d + j] = 2 * c[j];
  }
  double dots[kPending];
  index_.isa.rescore(s, index_.codebooks.data(), {index_.codes.data(), s.M, pending, n},
                     weights_.data(), scratch_.data(), dots);
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* code = index_.code(pending[i]);
    double squared = 0;
    for (size_t m = 0; m < s.M; ++m) squared += index_.norms[m * s.K + code[m]];
    insert(query, {float((dots[i] + -squared) + bias_[query]), index_.number[pending[i]]});
  }
  work_.scored += n;
  set_limit(query);
}

void NeighborSearch::insert(size_t query, Neighbor neighbor) {
  Neighbor* const begin = best_.data() + query * k_;
  Neighbor* end = begin + count_[query];
  Neighbor* const at = std::lower_bound(begin, end, neighbor);
  if (at == begin + k_ || (at != end && *at == neighbor)) return;  // it may come again
  if (count_[query] == k_)
    --end;
  else
    ++count_[query];
  std::move_backward(at, end, end + 1);
  *at = neighbor;
}

}  // namespace raypq
