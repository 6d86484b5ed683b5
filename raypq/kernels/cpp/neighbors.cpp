#include "neighbors.hpp"

#include <cstring>
#include <numeric>

#include "neighbor_search.hpp"

namespace raypq {

namespace {

constexpr size_t kBestBytes = size_t(64) << 20;  // for codes near the queries of one search
constexpr size_t kSampledCenters = 64;

// The best rows of a code, from its best codes: those of equal scores by row.
void expand(const DistinctCodes& distinct, const Neighbor* best, size_t n, size_t k, float* scores,
            int64_t* rows) {
  std::vector<std::pair<uint32_t, float>> tied;  // with their scores: 0 and −0 are equal
  size_t filled = 0;
  for (size_t i = 0, j = 0; i < n && filled < k; i = j) {
    tied.clear();
    for (; j < n && best[j].score == best[i].score; ++j) {
      const uint32_t* first = distinct.rows.data() + distinct.start[best[j].code];
      const size_t count = distinct.start[best[j].code + 1] - distinct.start[best[j].code];
      for (size_t r = 0; r < std::min(count, k - filled); ++r)
        tied.emplace_back(first[r], best[j].score);
    }
    std::sort(tied.begin(), tied.end());
    for (size_t t = 0; t < tied.size() && filled < k; ++t, ++filled) {
      scores[filled] = tied[t].second;
      rows[filled] = tied[t].first;
    }
  }
}

}  // namespace

NeighborIndex::NeighborIndex(const NeighborSource& source, const uint8_t* B, size_t n,
                             const Isa& isa, size_t threads)
    : shape(source.shape), isa(isa), distinct(B, n, source.shape.M),
      codebooks(shape.M * shape.K * shape.d + kCodePad),
      norms(source.norms, source.norms + shape.M * shape.K),
      T(shape.M * shape.K * shape.K) {
  const size_t M = shape.M, K = shape.K;
  std::copy_n(source.T, T.size(), T.data());
  std::fill_n(codebooks.data(), codebooks.size(), 0.0f);
  std::copy_n(source.C, M * K * shape.d, codebooks.data());
  double largest = 0;
  for (size_t m = 0; m < M; ++m)
    largest += *std::max_element(norms.begin() + m * K, norms.begin() + (m + 1) * K);
  margin = largest * 1e-9 + 0x1p-140;
  number = order_by_nearness(shape, source.C, source.T, distinct.codes.data(), size(), threads);
  place.resize(size());
  codes.resize(tiles() * kTileRows * M);
  for (size_t at = 0; at < tiles() * kTileRows; ++at) {
    const uint32_t u = number[std::min(at, size() - 1)];
    std::copy_n(distinct.codes.data() + size_t(u) * M, M, codes.data() + at * M);
    if (at < size()) place[u] = uint32_t(at);
  }
  std::vector<uint8_t>().swap(distinct.codes);
  set_centers(threads);
}

void NeighborIndex::set_centers(size_t threads) {
  const auto [M, K, d] = shape;
  centers.assign((tiles() + kTileWidth - 1) / kTileWidth * kTileWidth * M, 0);
  parallel(tiles(), threads, [&, M = M, K = K, d = d](size_t, size_t tile) {
    const size_t first = tile * kTileRows, last = std::min(size(), first + kTileRows);
    std::vector<double> mean(d);
    for (size_t m = 0; m < M; ++m) {
      std::fill(mean.begin(), mean.end(), 0.0);
      for (size_t at = first; at < last; ++at) {
        const float* c = codebooks.data() + (m * K + code(at)[m]) * d;
        for (size_t j = 0; j < d; ++j) mean[j] += c[j];
      }
      double least = std::numeric_limits<double>::infinity();
      for (size_t k = 0; k < K; ++k) {
        double distance = 0;
        for (size_t j = 0; j < d; ++j) {
          const double x = mean[j] / double(last - first) - codebooks[(m * K + k) * d + j];
          distance += x * x;
        }
        if (distance < least) least = distance, centers[tile * M + m] = uint8_t(k);
      }
    }
  });
  // Twice the mean distance of centers still fits a sum.
  double sum = 0;
  size_t count = 0;
  for (size_t i = 0; i < kSampledCenters; ++i)
    for (size_t j = 0; j < kSampledCenters; ++j, ++count) {
      const uint8_t *a = centers.data() + i * tiles() / kSampledCenters * M,
                    *b = centers.data() + j * tiles() / kSampledCenters * M;
      for (size_t m = 0; m < M; ++m) sum += T[(m * K + a[m]) * K + b[m]];
    }
  center_unit = (sum / double(count) + margin) / 128;
}

NeighborIndex::~NeighborIndex() = default;

NeighborWork NeighborIndex::search_all(size_t k, size_t threads) {
  std::vector<uint32_t> places(size());
  std::iota(places.begin(), places.end(), uint32_t(0));
  auto search = std::make_unique<NeighborSearch>(*this, std::move(places), std::min(k, size()));
  search->run(threads);
  all_ = std::move(search);
  return all_->work();
}

NeighborWork NeighborIndex::find(const uint32_t* rows, size_t n, size_t k, size_t threads,
                                 float* scores, int64_t* found) const {
  // The places of the codes of these rows, each once, and the rows of each.
  std::vector<std::pair<uint32_t, uint32_t>> queries(n);
  for (size_t i = 0; i < n; ++i) queries[i] = {place[distinct.number[rows[i]]], uint32_t(i)};
  std::sort(queries.begin(), queries.end());
  std::vector<uint32_t> places, first;
  for (size_t i = 0; i < n; ++i)
    if (!i || queries[i].first != queries[i - 1].first) {
      places.push_back(queries[i].first);
      first.push_back(uint32_t(i));
    }
  first.push_back(uint32_t(n));
  const size_t width = std::min(k, size());
  auto take = [&](size_t q, const Neighbor* best) {
    const size_t i = queries[first[q]].second;
    expand(distinct, best, width, k, scores + i * k, found + i * k);
    for (uint32_t other = first[q] + 1; other < first[q + 1]; ++other) {
      std::copy_n(scores + i * k, k, scores + queries[other].second * k);
      std::copy_n(found + i * k, k, found + queries[other].second * k);
    }
  };
  if (all_ && all_->k() == width) {
    all_->best(places.data(), places.size(), take);
    return {};
  }
  const size_t chunk = std::max<size_t>(256, kBestBytes / NeighborPools::bytes(1, width));
  NeighborWork work;
  for (size_t begin = 0; begin < places.size(); begin += chunk) {
    const size_t end = std::min(places.size(), begin + chunk);
    NeighborSearch search(
        *this, {places.begin() + ptrdiff_t(begin), places.begin() + ptrdiff_t(end)}, width);
    search.run(threads);
    std::vector<uint32_t> some(end - begin);
    std::iota(some.begin(), some.end(), uint32_t(0));
    search.best(some.data(), some.size(),
                [&](size_t q, const Neighbor* best) { take(begin + q, best); });
    work.add(search.work());
  }
  return work;
}

}  // namespace raypq
