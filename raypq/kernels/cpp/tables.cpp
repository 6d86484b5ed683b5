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

// For a product of these its exponents add up, which cannot overflow.
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

// Steps of the scan whose float32 values could err by more than the bound says are not there:
// a table's unit is never below this, far under one unit of any tile with a range of its own.
constexpr double kLeastUnit = 0x1p-100;

}  // namespace

// What a thread needs to build a tile: values of its 64 lanes side by side.
struct ScanTables::Scratch {
  explicit Scratch(const Shape& s)
      : w(s.D() * kLanes), lut(s.M * s.K * kLanes), low(s.M * kLanes), high(s.M * kLanes),
        inverse(kLanes) {}

  Array<float> w;          // [D][64]
  Array<float> lut;        // [M][K][64]
  Array<float> low, high;  // [M][64]
  Array<float> inverse;    // [64]
};

ScanTables::ScanTables(const Source& given, bool across, const Isa& chosen, size_t threads)
    : source(given), isa(chosen), across_rows(across) {
  const Shape& s = source.shape;
  const size_t entries = s.M * s.K, padded = tiles() * kLanes;
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

  std::vector<double> parts(s.M);  // max_k ‖c_mk‖ in units; the longest code from them
  double longest_squared = 0;
  for (size_t m = 0; m < s.M; ++m) {
    const double most = *std::max_element(source.norms + m * s.K, source.norms + (m + 1) * s.K);
    parts[m] = std::sqrt(most) * shrink_C * (1 + 0x1p-40);
    longest_squared += most;
  }
  longest = std::sqrt(longest_squared) * (1 + 0x1p-40);
  widest = strongest = 0;
  for (size_t t = 0; t < source.T; ++t) strongest = std::max(strongest, std::fabs(source.bias[t]));

  // Fine entries make the scan a tenth slower and the candidates a third to a half fewer: worth it
  // where every row has its own threshold.
  top = !across_rows && s.M <= kFine ? kFinest : kCoarse;
  sort_lanes();
  base.resize(padded), unit.resize(padded), error.resize(padded), extra.resize(padded);
  start.resize(padded);
  tile_base.resize(tiles()), tile_error.resize(tiles()), tile_extra.resize(tiles());
  limit = s.M <= kNarrow ? kNever : std::numeric_limits<int32_t>::max() / 2;
  data_ = Array<uint8_t>(tiles() * tile_bytes());
  widest *= 1 + 0x1p-40;
  compact = fit(-a - b);

  std::vector<std::unique_ptr<Scratch>> scratch(threads);
  parallel(tiles(), threads, [&](size_t thread, size_t tile) {
    if (!scratch[thread]) scratch[thread] = std::make_unique<Scratch>(s);
    const Array<float>& w = scratch[thread]->w;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const bool real = lane < lanes(tile);
      const float* from = real ? source.W + order[tile * kLanes + lane] * s.D() : nullptr;
      for (size_t j = 0; j < s.D(); ++j)
        w[j * kLanes + lane] = real ? float(from[j] * shrink_W) : 0.0f;
    }
    build(tile, scaled.data(), folded ? fold.data() : nullptr, parts.data(), *scratch[thread]);
    if (!across_rows) set_starts(tile);
  });
  down *= compact;
}

// A power of two by which scores in table units (2^units) fit a float32, as candidates are kept: 1,
// unless biases or norms are of another magnitude than the inner products. A bias that overflows
// float32 counts as the least that does: where it takes part nothing is excluded.
double ScanTables::fit(int units) const {
  const double row = source.metric == Metric::kCosine ? std::max(longest, 1.0) : longest;
  const int product = exponent_of(row) + exponent_of(widest);
  const int bias = exponent_of(std::min(strongest, kOverflow)) +
                   exponent_of(std::max(longest, 1.0));
  const int largest = std::max({product, 2 * exponent_of(longest), bias}) + 2;  // of their sum
  return std::ldexp(1.0, -std::max(0, largest + units - 100));
}

// Lanes of a tile share a unit and a bias bound, so classes alike in them stand together: by bias
// where it is apart, then by the largest of their parts, which gives the range of their tables. The
// largest come first, for a high threshold comes early then.
void ScanTables::sort_lanes() {
  const Shape& s = source.shape;
  std::vector<std::pair<double, double>> key(source.T);
  for (size_t t = 0; t < source.T; ++t) {
    double squared = 0, most = 0;
    for (size_t m = 0; m < s.M; ++m) {
      const double part = squared_norm(source.W + (t * s.M + m) * s.d, s.d);
      squared += part;
      most = std::max(most, part);
    }
    widest = std::max(widest, std::sqrt(squared));
    key[t] = {source.metric == Metric::kCosine ? source.bias[t] : 0.0, most};
  }
  order.resize(source.T);
  std::iota(order.begin(), order.end(), 0);
  if (across_rows) return;
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t x, uint32_t y) { return key[x] > key[y]; });
}

// scratch.w is filled.
void ScanTables::build(size_t tile, const float* scaled, const float* fold, const double* parts,
                       const Scratch& scratch) {
  const Shape& s = source.shape;
  const bool cosine = source.metric == Metric::kCosine;
  const float* w = scratch.w.data();
  float *lut = scratch.lut.data(), *low = scratch.low.data(), *high = scratch.high.data();
  float* inverse = scratch.inverse.data();
  isa.lut(s, scaled, w, fold, lut, low, high);

  double range[kLanes] = {}, shared = kLeastUnit * top;
  for (size_t m = 0; m < s.M; ++m)
    for (size_t lane = 0; lane < kLanes; ++lane)
      range[lane] = std::max(range[lane], double(high[m * kLanes + lane]) - low[m * kLanes + lane]);
  for (double r : range) shared = std::max(shared, r);

  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t at = tile * kLanes + lane;
    const double span = across_rows ? std::max(range[lane], kLeastUnit * top) : shared;
    inverse[lane] = float(top / span);
    unit[at] = span / top;
    double arithmetic = 0;
    for (size_t m = 0; m < s.M; ++m) {
      base[at] += low[m * kLanes + lane];
      double squared = 0;
      for (size_t j = m * s.d; j < (m + 1) * s.d; ++j)
        squared += double(w[j * kLanes + lane]) * w[j * kLanes + lane];
      arithmetic += parts[m] * (std::sqrt(squared) + (fold ? parts[m] : 0.0)) + 0x1p-120;
    }
    error[at] = double(s.M) * unit[at] * (0.5 + 0x1p-10) + double(s.d + 6) * 0x1p-23 * arithmetic;
  }
  for (size_t at = tile * kLanes; at < (tile + 1) * kLanes; ++at) {
    for (auto* values : {&base, &unit, &error}) (*values)[at] *= compact;
    if (at >= tile * kLanes + lanes(tile)) continue;
    const double bias = source.bias[order[at]] * (down * compact);
    (cosine || across_rows ? extra : base)[at] += std::clamp(bias, -0x1p120, 0x1p120);
  }
  isa.quantise(s, lut, low, inverse, top, data_.data() + tile * tile_bytes());
}

// One threshold serves a tile: each lane's base goes into its start, in units rounded up. Where the
// bases are further apart than a start can tell, the low ones are raised: still an upper bound.
void ScanTables::set_starts(size_t tile) {
  const size_t first = tile * kLanes, count = lanes(tile);
  const double room = source.shape.M <= kNarrow ? kRoom : 1 << 24;
  double least = base[first], most = base[first], worst = 0, bonus = extra[first];
  for (size_t at = first; at < first + count; ++at) {
    least = std::min(least, base[at]);
    most = std::max(most, base[at]);
    worst = std::max(worst, error[at]);
    bonus = std::max(bonus, extra[at]);
  }
  const double step = unit[first];
  tile_base[tile] = std::max(least, most - (room - 1) * step);
  tile_error[tile] = worst;
  tile_extra[tile] = bonus;
  for (size_t at = first; at < first + count; ++at)
    start[at] = int32_t(
        std::clamp(std::ceil((base[at] - tile_base[tile]) / step), 0.0, room));
}

RowTerms row_terms(const Source& source, const uint8_t* code) {
  double squared = 0;
  for (size_t m = 0; m < source.shape.M; ++m) squared += source.norms[m * source.shape.K + code[m]];
  if (source.metric == Metric::kCosine) {
    const double length = std::sqrt(squared);
    return {squared, length > 0 ? 1.0 / length : 0.0, 0.0, length};
  }
  return {squared, 1.0, source.metric == Metric::kL2 ? -squared : 0.0, 1.0};
}

}  // namespace raypq
