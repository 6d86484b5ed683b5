#include "tables.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

namespace raypq {

namespace {

int exponent_of(const float* x, size_t n) {
  float most = 0;
  for (size_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
  int exponent = 0;
  if (most > 0) std::frexp(most, &exponent);
  return exponent;
}

// Exponents, because their sum cannot overflow where a product could.
int exponent_of(double x) {
  int exponent = -4096;
  if (x > 0) std::frexp(x, &exponent);
  return exponent;
}

double squared_norm(const float* x, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

// The least unit of a table: avoids float32 denormals, whose errors the bound does not cover, in
// tiles whose values are all (nearly) equal.
constexpr double kLeastUnit = 0x1p-100;

}  // namespace

// What a thread needs to build a tile.
struct ScanTables::Scratch {
  explicit Scratch(const Shape& s)
      : w(s.D() * kTileWidth), lut(s.M * s.K * kTileWidth), low(s.M * kTileWidth),
        high(s.M * kTileWidth), inverse(kTileWidth) {}

  Lut out() const { return {lut.data(), low.data(), high.data()}; }

  Array<float> w;          // [D][64]
  Array<float> lut;        // [M][K][64]
  Array<float> low, high;  // [M][64]
  Array<float> inverse;    // [64]
};

struct ScanTables::ScaledCodebooks {
  const float* C;         // [M, K, d]
  const float* fold;      // ‖c‖² [M, K], subtracted from table entries; or null
  const double* longest;  // max_k ‖c_mk‖ [M]
};

ScanTables::ScanTables(const Source& given, bool across, const Isa& chosen, size_t threads,
                       bool keep_order)
    : source(given), isa(chosen), across_rows(across) {
  const Shape& s = source.shape;
  const size_t entries = s.M * s.K, padded = tiles() * kTileWidth;
  codebooks = Array<float>(entries * s.d + kCodePad);
  std::memset(codebooks.data(), 0, codebooks.size() * sizeof(float));
  std::memcpy(codebooks.data(), source.C, entries * s.d * sizeof(float));

  const bool folded = across_rows && source.metric == Metric::kL2;
  const int a = exponent_of(source.C, entries * s.d);
  int b = exponent_of(source.W, source.T * s.D());
  if (folded) b = std::max(a, b);  // −‖c‖² must fit the same units
  down = std::ldexp(1.0, -a - b);
  Array<float> scaled(entries * s.d), fold(entries);
  const double shrink_C = std::ldexp(1.0, -a), shrink_W = std::ldexp(1.0, -b);
  for (size_t i = 0; i < entries * s.d; ++i) scaled[i] = float(source.C[i] * shrink_C);
  for (size_t i = 0; i < entries; ++i) fold[i] = folded ? float(source.norms[i] * down) : 0.0f;

  std::vector<double> longest(s.M);  // max_k ‖c_mk‖, scaled
  double squared = 0;
  for (size_t m = 0; m < s.M; ++m) {
    const double most = *std::max_element(source.norms + m * s.K, source.norms + (m + 1) * s.K);
    longest[m] = std::sqrt(most) * shrink_C * (1 + 0x1p-40);
    squared += most;
  }
  longest_code = std::sqrt(squared) * (1 + 0x1p-40);
  longest_weight = largest_bias = 0;
  for (size_t t = 0; t < source.T; ++t)
    largest_bias = std::max(largest_bias, std::fabs(source.bias[t]));

  // Fine entries make a scan slower and leave a third to a half fewer candidates: better where
  // every row has its own threshold.
  top = !across_rows && s.M <= isa.most_fine ? kFinest : kCoarse;
  sort_classes(keep_order);
  base.resize(padded), unit.resize(padded), error.resize(padded), extra.resize(padded);
  start.resize(padded);
  tile_base.resize(tiles()), tile_error.resize(tiles()), tile_extra.resize(tiles());
  limit = s.M <= kNarrow ? kNever : std::numeric_limits<int32_t>::max() / 2;
  data_ = Array<uint8_t>(tiles() * tile_bytes());
  longest_weight *= 1 + 0x1p-40;
  refit = fit_float32(-a - b);

  std::vector<std::unique_ptr<Scratch>> scratch(threads);
  parallel(tiles(), threads, [&](size_t thread, size_t tile) {
    if (!scratch[thread]) scratch[thread] = std::make_unique<Scratch>(s);
    const Array<float>& w = scratch[thread]->w;
    for (size_t c = 0; c < kTileWidth; ++c) {
      const bool real = c < width(tile);
      const float* from = real ? source.W + order[tile * kTileWidth + c] * s.D() : nullptr;
      for (size_t j = 0; j < s.D(); ++j)
        w[j * kTileWidth + c] = real ? float(from[j] * shrink_W) : 0.0f;
    }
    build(tile, {scaled.data(), folded ? fold.data() : nullptr, longest.data()}, *scratch[thread]);
    if (!across_rows) set_starts(tile);
  });
  down *= refit;
}

// A power of two that brings scores in table units (2^units) into the range of float32, in which
// candidates are stored: 1, unless biases or norms are of another magnitude than the inner
// products. A bias that overflows float32 counts as the least that does; with it nothing is
// excluded.
double ScanTables::fit_float32(int units) const {
  const double row = source.metric == Metric::kCosine ? std::max(longest_code, 1.0) : longest_code;
  const int product = exponent_of(row) + exponent_of(longest_weight);
  const int bias = exponent_of(std::min(largest_bias, kOverflow)) +
                   exponent_of(std::max(longest_code, 1.0));
  const int largest = std::max({product, 2 * exponent_of(longest_code), bias}) + 2;  // of the sum
  return std::ldexp(1.0, -std::max(0, largest + units - 100));
}

// Orders the classes so that those of a tile are similar, because they share a unit and a bound of
// the bias: by bias where it is separate (cosine), then by the largest norm of a part, which gives
// the range of a table. The largest come first, because they raise cutoffs early.
void ScanTables::sort_classes(bool keep_order) {
  const Shape& s = source.shape;
  std::vector<std::pair<double, double>> key(source.T);
  for (size_t t = 0; t < source.T; ++t) {
    double squared = 0, most = 0;
    for (size_t m = 0; m < s.M; ++m) {
      const double part = squared_norm(source.W + (t * s.M + m) * s.d, s.d);
      squared += part;
      most = std::max(most, part);
    }
    longest_weight = std::max(longest_weight, std::sqrt(squared));
    key[t] = {source.metric == Metric::kCosine ? source.bias[t] : 0.0, most};
  }
  order.resize(source.T);
  std::iota(order.begin(), order.end(), 0);
  if (across_rows || keep_order) return;
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t x, uint32_t y) { return key[x] > key[y]; });
}

// Builds a tile from the weights in scratch.w.
void ScanTables::build(size_t tile, const ScaledCodebooks& scaled, const Scratch& scratch) {
  const Shape& s = source.shape;
  const bool cosine = source.metric == Metric::kCosine;
  const float* w = scratch.w.data();
  const Lut lut = scratch.out();
  float* inverse = scratch.inverse.data();
  isa.lut(s, scaled.C, w, scaled.fold, lut);

  double range[kTileWidth] = {}, shared = kLeastUnit * top;
  for (size_t m = 0; m < s.M; ++m)
    for (size_t c = 0; c < kTileWidth; ++c) {
      const size_t i = m * kTileWidth + c;
      range[c] = std::max(range[c], double(lut.high[i]) - lut.low[i]);
    }
  for (double r : range) shared = std::max(shared, r);

  for (size_t c = 0; c < kTileWidth; ++c) {
    const size_t slot = tile * kTileWidth + c;
    const double span = across_rows ? std::max(range[c], kLeastUnit * top) : shared;
    inverse[c] = float(top / span);
    unit[slot] = span / top;
    double arithmetic = 0;
    for (size_t m = 0; m < s.M; ++m) {
      base[slot] += lut.low[m * kTileWidth + c];
      double squared = 0;
      for (size_t j = m * s.d; j < (m + 1) * s.d; ++j)
        squared += double(w[j * kTileWidth + c]) * w[j * kTileWidth + c];
      const double longest = scaled.longest[m];
      arithmetic += longest * (std::sqrt(squared) + (scaled.fold ? longest : 0.0)) + 0x1p-120;
    }
    error[slot] =
        double(s.M) * unit[slot] * (0.5 + 0x1p-10) + double(s.d + 6) * 0x1p-23 * arithmetic;
  }
  for (size_t slot = tile * kTileWidth; slot < (tile + 1) * kTileWidth; ++slot) {
    for (auto* values : {&base, &unit, &error}) (*values)[slot] *= refit;
    if (slot >= tile * kTileWidth + width(tile)) continue;
    const double bias = source.bias[order[slot]] * (down * refit);
    (cosine || across_rows ? extra : base)[slot] += std::clamp(bias, -0x1p120, 0x1p120);
    if (source.radius) {
      const double radius = source.radius[order[slot]] * (down * refit);
      // Nothing is excluded by a bound that may overflow.
      extra[slot] += radius < 0x1p120 ? radius : std::numeric_limits<double>::infinity();
    }
  }
  isa.quantise(s, lut, inverse, top, data_.data() + tile * tile_bytes());
}

// Puts the base of each column into the start of its sums, in units rounded up, so that a row has
// one threshold for the tile. Bases too low for the range of starts are raised: still upper bounds.
void ScanTables::set_starts(size_t tile) {
  const size_t first = tile * kTileWidth, count = width(tile);
  const double room = source.shape.M <= kNarrow ? kRoom : 1 << 24;
  double least = base[first], most = base[first], largest_error = 0;
  double largest_extra = extra[first];
  for (size_t slot = first; slot < first + count; ++slot) {
    least = std::min(least, base[slot]);
    most = std::max(most, base[slot]);
    largest_error = std::max(largest_error, error[slot]);
    largest_extra = std::max(largest_extra, extra[slot]);
  }
  const double step = unit[first];
  tile_base[tile] = std::max(least, most - (room - 1) * step);
  tile_error[tile] = largest_error;
  tile_extra[tile] = largest_extra;
  for (size_t slot = first; slot < first + count; ++slot)
    start[slot] =
        int32_t(std::clamp(std::ceil((base[slot] - tile_base[tile]) / step), 0.0, room));
}

RowTerms row_terms(const Source& source, const uint8_t* code) {
  double squared = 0;
  for (size_t m = 0; m < source.shape.M; ++m) squared += source.norms[m * source.shape.K + code[m]];
  return row_terms(source.metric, squared);
}

RowTerms row_terms(Metric metric, double squared) {
  if (metric == Metric::kCosine) {
    const double length = std::sqrt(squared);
    return {squared, length > 0 ? 1.0 / length : 0.0, 0.0, length};
  }
  return {squared, 1.0, metric == Metric::kL2 ? -squared : 0.0, 1.0};
}

}  // namespace raypq
