#include "code_order.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "support.hpp"

namespace raypq {

namespace {

constexpr size_t kSampled = 256;  // codes by which a direction is chosen
constexpr int kIterations = 3;    // of the power method
constexpr size_t kFew = 32;          // codes that are cut along a line between two of them
constexpr size_t kAccumulators = 8;

uint64_t hash_of(const uint8_t* code, size_t M) {
  uint64_t h = 0x9e3779b97f4a7c15u;
  for (size_t m = 0; m < M; m += 8) {
    uint64_t part = 0;
    std::memcpy(&part, code + m, std::min<size_t>(8, M - m));
    h = (h ^ part) * 0xbf58476d1ce4e5b9u;
    h ^= h >> 29;
  }
  return h;
}

float dot(const float* a, const float* b, size_t D) {
  float sums[kAccumulators] = {};
  size_t j = 0;
  for (; j + kAccumulators <= D; j += kAccumulators)
    for (size_t e = 0; e < kAccumulators; ++e) sums[e] += a[j + e] * b[j + e];
  for (; j < D; ++j) sums[0] += a[j] * b[j];
  return std::accumulate(sums, sums + kAccumulators, 0.0f);
}

// Where a range is cut in two: at a multiple of the largest unit that is shorter than it.
size_t half_of(size_t n) {
  size_t unit = kBlockRows;
  while (unit < kTileRows && unit * 4 < n) unit *= 4;
  return (n + unit - 1) / unit / 2 * unit;
}

class Halving {
 public:
  Halving(const Shape& shape, const float* C, const float* T, const uint8_t* codes)
      : shape_(shape), C_(C), T_(T), codes_(codes), D_(shape.D()), sample_(kSampled * D_), mean_(D_),
        direction_(D_), next_(D_), by_codeword_(shape.M * shape.K) {}

  // Cuts [begin, begin + n) in two; returns the length of the first half.
  size_t cut(uint32_t* begin, size_t n) {
    const size_t half = half_of(n);
    if (n <= kFew) {
      cut_few(begin, n, half);
      return half;
    }
    const size_t taken = std::min(n, kSampled);
    for (size_t i = 0; i < taken; ++i) decode(begin[i * n / taken], sample_.data() + i * D_);
    if (!choose_direction(taken)) return half;
    keys_.resize(n);
    if (n > kSampled) {
      project_codewords();
      for (size_t i = 0; i < n; ++i) keys_[i] = {projected(begin[i]), begin[i]};
    } else {
      for (size_t i = 0; i < n; ++i)
        keys_[i] = {dot(sample_.data() + i * D_, direction_.data(), D_), begin[i]};
    }
    std::nth_element(keys_.begin(), keys_.begin() + ptrdiff_t(half), keys_.end());
    for (size_t i = 0; i < n; ++i) begin[i] = keys_[i].second;
    return half;
  }

  // Cuts a range down to blocks.
  void cut_all(uint32_t* begin, size_t n) {
    if (n <= kBlockRows) return;
    const size_t half = cut(begin, n);
    cut_all(begin, half);
    cut_all(begin + half, n - half);
  }

 private:
  // The same along the line between two codes that are far apart: S(x, b) − S(x, a) is a projection
  // on it. Look-ups alone are faster than inner products.
  void cut_few(uint32_t* begin, size_t n, size_t half) {
    const uint32_t a = farthest(begin, n, begin[0]), b = farthest(begin, n, a);
    keys_.resize(n);
    for (size_t i = 0; i < n; ++i)
      keys_[i] = {distance(begin[i], b) - distance(begin[i], a), begin[i]};
    std::nth_element(keys_.begin(), keys_.begin() + ptrdiff_t(half), keys_.end());
    for (size_t i = 0; i < n; ++i) begin[i] = keys_[i].second;
  }

  float distance(uint32_t x, uint32_t y) const {
    const uint8_t *a = codes_ + size_t(x) * shape_.M, *b = codes_ + size_t(y) * shape_.M;
    float sum = 0;
    for (size_t m = 0; m < shape_.M; ++m) sum += T_[(m * shape_.K + b[m]) * shape_.K + a[m]];
    return sum;
  }

  uint32_t farthest(const uint32_t* rows, size_t n, uint32_t from) const {
    uint32_t at = from;
    float most = 0;
    for (size_t i = 0; i < n; ++i)
      if (const float d = distance(rows[i], from); d > most) most = d, at = rows[i];
    return at;
  }

  void decode(uint32_t row, float* out) const {
    const uint8_t* code = codes_ + size_t(row) * shape_.M;
    for (size_t m = 0; m < shape_.M; ++m)
      std::copy_n(C_ + (m * shape_.K + code[m]) * shape_.d, shape_.d, out + m * shape_.d);
  }

  // The direction in which the sample spreads most, by the power method; false if it has none.
  bool choose_direction(size_t n) {
    std::fill(mean_.begin(), mean_.end(), 0.0f);
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < D_; ++j) mean_[j] += sample_[i * D_ + j];
    for (float& x : mean_) x /= float(n);
    size_t farthest = 0;
    float most = 0;
    for (size_t i = 0; i < n; ++i) {
      float* row = sample_.data() + i * D_;
      for (size_t j = 0; j < D_; ++j) row[j] -= mean_[j];
      if (const float length = dot(row, row, D_); length > most) most = length, farthest = i;
    }
    if (!(most > 0)) return false;
    std::copy_n(sample_.data() + farthest * D_, D_, direction_.data());
    for (int iteration = 0; iteration < kIterations; ++iteration) {
      const float length = std::sqrt(dot(direction_.data(), direction_.data(), D_));
      if (!(length > 0) || !std::isfinite(length)) return false;
      for (float& x : direction_) x /= length;
      std::fill(next_.begin(), next_.end(), 0.0f);
      for (size_t i = 0; i < n; ++i) {
        const float* row = sample_.data() + i * D_;
        const float weight = dot(row, direction_.data(), D_);
        for (size_t j = 0; j < D_; ++j) next_[j] += weight * row[j];
      }
      direction_.swap(next_);
    }
    return std::isfinite(dot(direction_.data(), direction_.data(), D_));
  }

  void project_codewords() {
    for (size_t m = 0; m < shape_.M; ++m)
      for (size_t k = 0; k < shape_.K; ++k)
        by_codeword_[m * shape_.K + k] = dot(C_ + (m * shape_.K + k) * shape_.d,
                                             direction_.data() + m * shape_.d, shape_.d);
  }

  float projected(uint32_t row) const {
    const uint8_t* code = codes_ + size_t(row) * shape_.M;
    float sum = 0;
    for (size_t m = 0; m < shape_.M; ++m) sum += by_codeword_[m * shape_.K + code[m]];
    return sum;
  }

  Shape shape_;
  const float *C_, *T_;
  const uint8_t* codes_;
  size_t D_;
  std::vector<float> sample_, mean_, direction_, next_, by_codeword_;
  std::vector<std::pair<float, uint32_t>> keys_;
};

}  // namespace

DistinctCodes::DistinctCodes(const uint8_t* B, size_t n, size_t M) : M(M), number(n) {
  size_t slots = 16;
  while (slots < 2 * n) slots *= 2;
  std::vector<uint32_t> table(slots, 0);  // number of a code, from 1
  std::vector<uint32_t> count;
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* code = B + i * M;
    size_t at = hash_of(code, M) & (slots - 1);
    while (table[at] && std::memcmp(codes.data() + size_t(table[at] - 1) * M, code, M))
      at = (at + 1) & (slots - 1);
    if (!table[at]) {
      codes.insert(codes.end(), code, code + M);
      count.push_back(0);
      table[at] = uint32_t(count.size());
    }
    number[i] = table[at] - 1;
    ++count[number[i]];
  }
  start.assign(count.size() + 1, 0);
  std::partial_sum(count.begin(), count.end(), start.begin() + 1);
  std::vector<uint32_t> next(start.begin(), start.end() - 1);
  rows.resize(n);
  for (size_t i = 0; i < n; ++i) rows[next[number[i]]++] = uint32_t(i);
}

std::vector<uint32_t> order_by_nearness(const Shape& shape, const float* C, const float* T,
                                        const uint8_t* codes, size_t n, size_t threads) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), uint32_t(0));
  std::vector<Halving> workers;
  for (size_t i = 0; i < threads; ++i) workers.emplace_back(shape, C, T, codes);
  struct Range {
    size_t begin, length;
  };
  std::vector<Range> ranges{{0, n}};
  while (!ranges.empty()) {
    std::vector<Range> halves(2 * ranges.size());
    parallel(ranges.size(), threads, [&](size_t thread, size_t task) {
      const auto [begin, length] = ranges[task];
      if (length <= kTileRows) {
        workers[thread].cut_all(order.data() + begin, length);
        return;
      }
      const size_t half = workers[thread].cut(order.data() + begin, length);
      halves[2 * task] = {begin, half};
      halves[2 * task + 1] = {begin + half, length - half};
    });
    std::erase_if(halves, [](const Range& range) { return !range.length; });
    ranges.swap(halves);
  }
  return order;
}

}  // namespace raypq
