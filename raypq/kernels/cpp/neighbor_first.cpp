// The first part of NeighborSearch: the comparison of queries with the tiles nearest to them.
#include <algorithm>
#include <numeric>

#include "neighbor_search.hpp"

namespace raypq {

namespace {

// Tiles that a query is compared with first: this part of all, between these numbers.
constexpr size_t kNearPart = 16, kFewestNear = 4, kMostNear = 16;
constexpr size_t kFirstQueries = size_t(1) << 18;  // whose near tiles are known at a time
constexpr size_t kSampled = 64;       // queries by which the first unit is chosen

}  // namespace

// A bound that most queries find in the tiles next to them.
double NeighborSearch::likely_bound() const {
  std::vector<float> bounds, distances;
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
  return double(bounds[at]) + index_.margin;
}

// Enough tiles for k codes.
size_t NeighborSearch::near_tiles() const {
  const size_t some = std::clamp(index_.tiles() / kNearPart, kFewestNear, kMostNear);
  return std::min(index_.tiles(), std::max(some, 2 + k_ / kTileRows));
}

// Compares queries with their own tile, and then with the nearest ones.
void NeighborSearch::find_first(std::vector<Scratch>& scratch) {
  const NearEntries entries(index_, likely_bound() / kUnits), centers(index_, index_.center_unit);
  std::vector<size_t> first;  // queries of each tile that has some
  for (size_t q = 0; q < n_; ++q)
    if (!q || places_[q] / kTileRows != places_[q - 1] / kTileRows) first.push_back(q);
  first.push_back(n_);
  parallel(first.size() - 1, scratch.size(), [&](size_t thread, size_t i) {
    compare_own_tile(first[i], first[i + 1] - first[i], entries, scratch[thread]);
  });
  const size_t most = std::min(kFirstQueries, (n_ + scratch.size() - 1) / scratch.size());
  const size_t chunks = (n_ + most - 1) / most;
  parallel(chunks, scratch.size(), [&](size_t thread, size_t c) {
    Queries queries;  // of all tiles, so that many are compared with one table
    for (size_t q = c; q < n_; q += chunks) queries.push_back(uint32_t(q));
    compare_near_tiles(queries, entries, centers, scratch[thread]);
  });
}

void NeighborSearch::compare_near_tiles(const Queries& queries, const NearEntries& entries,
                                        const NearEntries& centers, Scratch& scratch) {
  std::vector<Queries> queries_of_tile(index_.tiles());
  for (size_t i = 0; i < queries.size(); i += kQueriesTogether)
    add_near_tiles(queries.data() + i, std::min(kQueriesTogether, queries.size() - i), centers,
                   queries_of_tile, scratch);
  for (size_t tile = 0; tile < index_.tiles(); ++tile)
    for (size_t part = 0; part < kTileRows; part += kTileWidth)
      compare(tile * kTileRows + part, queries_of_tile[tile], {entries, false, true}, scratch);
}

// Compares n queries of one tile with this tile, from whose sums a limit follows.
void NeighborSearch::compare_own_tile(size_t first, size_t n, const NearEntries& entries,
                                      Scratch& scratch) {
  const size_t tile = places_[first] / kTileRows * kTileRows;
  const size_t codes = std::min(index_.size() - tile, kTileRows);
  const Comparison by{entries, false, true};
  scratch.sums.resize(n * kTileRows);
  for (size_t part = 0; part < codes; part += kTileWidth) {
    index_.isa.near_table(index_.shape, entries.values.data(), entries.stride,
                          index_.code(tile + part), false, scratch.table.data());
    index_.isa.column_sums(index_.shape, scratch.table.data(), code_of(first), n, kTileRows,
                           scratch.sums.data() + part);
    scratch.work.compared += n;
  }
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* sums = scratch.sums.data() + i * kTileRows;
    uint32_t count[256] = {};
    for (size_t c = 0; c < codes; ++c) ++count[sums[c]];
    uint32_t nearest = 0;  // sum of the k-th
    for (size_t n = count[0]; n < std::min(k_, codes); n += count[nearest]) ++nearest;
    const size_t query = first + i;
    auto offer_one = [&](size_t place) {
      offer(query, {distance(query, place), uint32_t(place)}, by, scratch);
    };
    for (size_t c = 0; c < codes; ++c)
      if (sums[c] <= nearest) offer_one(tile + c);
    for (size_t c = 0; c < codes; ++c)
      if (sums[c] > nearest && sums[c] <= limit_[query]) offer_one(tile + c);
  }
}

// Adds n queries to those of the tiles whose centers are nearest to them, but for their own.
void NeighborSearch::add_near_tiles(const uint32_t* queries, size_t n, const NearEntries& centers,
                                    std::vector<Queries>& queries_of_tile,
                                    Scratch& scratch) const {
  const size_t M = index_.shape.M, tiles = index_.tiles();
  const size_t wanted = near_tiles();
  const size_t width = (tiles + kTileWidth - 1) / kTileWidth * kTileWidth;
  scratch.sums.resize(n * width), scratch.codes.resize(n * M);
  for (size_t i = 0; i < n; ++i) std::copy_n(code_of(queries[i]), M, scratch.codes.data() + i * M);
  for (size_t c = 0; c < width; c += kTileWidth) {
    index_.isa.near_table(index_.shape, centers.values.data(), centers.stride,
                          index_.centers.data() + c * M, false, scratch.table.data());
    index_.isa.column_sums(index_.shape, scratch.table.data(), scratch.codes.data(), n, width,
                           scratch.sums.data() + c);
  }
  for (size_t i = 0; i < n; ++i) {
    const size_t own = places_[queries[i]] / kTileRows;
    const uint8_t* sum = scratch.sums.data() + i * width;
    size_t count[256] = {}, below = 0, most = 0;
    for (size_t tile = 0; tile < tiles; ++tile) ++count[sum[tile]];
    while (below + count[most] < wanted) below += count[most++];
    size_t at_most = wanted - below;  // tiles whose sum is ``most``
    for (size_t tile = 0; tile < tiles; ++tile) {
      if (sum[tile] > most || (sum[tile] == most && !at_most)) continue;
      if (sum[tile] == most) --at_most;
      if (tile != own) queries_of_tile[tile].push_back(queries[i]);
    }
  }
}

}  // namespace raypq
