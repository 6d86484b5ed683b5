// The scan of one tile of tables: uint8 lines of 64 lanes, [M][K][64], so that a code picks one
// cache line in each sub-codebook.
//
// A register of 16-bit sums gathers whole pairs of bytes (``all``, which wraps) and the upper bytes
// alone (``odd``); the lower ones are all − 256·odd, exact because they fit 16 bits. Coarse entries
// are at most 127, so two lines are added as bytes before they are widened.
//
// No overflow: with kRoom for the start, kNarrow coarse entries or kFine fine ones stay below 2^15
// (128·127 + 16383 and 64·255 + 16383). More sub-codebooks than kNarrow go to 32-bit sums every
// kNarrow.

namespace RAYPQ_NS {

struct Sums {
  U16 all[kParts], odd[kParts];
};

inline U8 line(const uint8_t* table, size_t part) {
  return *reinterpret_cast<const U8*>(table + part * kBytes);
}

inline void add(Sums& sums, size_t p, U8 bytes) {
  U16 pairs = (U16)bytes;
  sums.all[p] += pairs;
  sums.odd[p] += pairs >> 8;
}

// Adds the lines of one code in each of kTiles tiles, which lie ``apart``.
template <size_t kTiles>
__attribute__((always_inline)) inline void add_line(Sums* sums, const uint8_t* first, size_t apart) {
  for (size_t t = 0; t < kTiles; ++t)
    for (size_t p = 0; p < kParts; ++p) add(sums[t], p, line(first + t * apart, p));
}

// The same of two codes.
template <size_t kTiles>
__attribute__((always_inline)) inline void add_pair(Sums* sums, const uint8_t* first,
                                                    const uint8_t* second, size_t apart) {
  for (size_t t = 0; t < kTiles; ++t)
    for (size_t p = 0; p < kParts; ++p)
      add(sums[t], p, line(first + t * apart, p) + line(second + t * apart, p));
}

// Eight lines in a step: a loop of M steps would end at a jump that is foreseen too rarely, and
// the next row's loads would wait for it.
template <bool kPairs, size_t kTiles = 1>
__attribute__((always_inline)) inline void gather(Sums* sums, const uint8_t* table, size_t step,
                                                  size_t apart, const uint8_t* code, size_t M) {
  constexpr size_t kTogether = 8 / kTiles;
  auto at = [&](size_t m, size_t j) { return table + j * step + size_t(code[m + j]) * kLanes; };
  size_t m = 0;
  for (; m + kTogether <= M; m += kTogether, table += kTogether * step)
    for (size_t j = 0; j < kTogether; j += kPairs ? 2 : 1)
      if (kPairs)
        add_pair<kTiles>(sums, at(m, j), at(m, j + 1), apart);
      else
        add_line<kTiles>(sums, at(m, j), apart);
  for (; kPairs && m + 2 <= M; m += 2, table += 2 * step)
    add_pair<kTiles>(sums, at(m, 0), at(m, 1), apart);
  for (; m < M; ++m, table += step) add_line<kTiles>(sums, at(m, 0), apart);
}

// Splits 64 values into the registers of even and odd lanes.
inline void split(const int32_t* lanes, I16* even, I16* odd) {
  for (size_t p = 0; p < kParts; ++p)
    for (size_t e = 0; e < kBytes / 2; ++e) {
      even[p][e] = int16_t(lanes[p * kBytes + 2 * e]);
      odd[p][e] = int16_t(lanes[p * kBytes + 2 * e + 1]);
    }
}

// One tile's sums against their thresholds. ``bars``: one for each lane; else each row has one, and
// the lanes differ in what their sums begin with.
template <bool kPerLane>
struct Filter {
  Sums first;
  I16 even0[kParts] = {}, odd0[kParts] = {}, even_bar[kParts], odd_bar[kParts];

  Filter(const int32_t* start, const int32_t* bars) {
    if (kPerLane)
      split(bars, even_bar, odd_bar);
    else
      split(start, even0, odd0);
    for (size_t p = 0; p < kParts; ++p) {
      first.all[p] = (U16)even0[p] + ((U16)odd0[p] << 8);
      first.odd[p] = (U16)odd0[p];
    }
  }

  // Whether any lane of a row hits. If so it is written; perhaps it is written anyway.
  __attribute__((always_inline)) bool pass(const Sums& sums, int32_t threshold, size_t row,
                                           Hit& hit) const {
    I16 bar = int16_t(threshold) - I16{};
    I16 even[kParts];
    uint32_t in_even[kParts], in_odd[kParts], any = 0;
    for (size_t p = 0; p < kParts; ++p) {
      even[p] = (I16)(sums.all[p] - (sums.odd[p] << 8));
      in_even[p] = reaches(even[p], kPerLane ? even_bar[p] : bar);
      in_odd[p] = reaches((I16)sums.odd[p], kPerLane ? odd_bar[p] : bar);
      any |= in_even[p] | in_odd[p];
    }
    // Where hits are frequent, a jump that nobody foresees costs more than to write every row.
    constexpr bool kAlways = !kPerLane && kParts == 1;
    if (!kAlways && __builtin_expect(any == 0, 1)) return false;
    hit.row = uint32_t(row);
    hit.lanes = 0;
    for (size_t p = 0; p < kParts; ++p) {
      hit.lanes |= (spread(in_even[p]) | spread(in_odd[p]) << 1) << (p * kBytes % 64);
      *reinterpret_cast<U16u*>(hit.narrow + p * kBytes / 2) = (U16)(even[p] - even0[p]);
      *reinterpret_cast<U16u*>(hit.narrow + (kLanes + p * kBytes) / 2) =
          sums.odd[p] - (U16)odd0[p];
    }
    return any != 0;
  }
};

// kStep: bytes of a sub-codebook's table where the compiler may know it, or 0.
template <bool kPerLane, bool kPairs, size_t kStep>
size_t scan_narrow(const Shape& shape, const uint8_t* table, const int32_t* start,
                   const uint8_t* codes, size_t n, const int32_t* threshold, Hit* hits) {
  const size_t M = shape.M, step = kStep ? kStep : shape.K * kLanes;
  const Filter<kPerLane> filter(start, threshold);
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) {
    Sums sums = filter.first;
    gather<kPairs>(&sums, table, step, 0, codes + i * M, M);
    count += filter.pass(sums, kPerLane ? 0 : threshold[i], i, hits[count]);
  }
  return count;
}

template <bool kPerLane>
size_t scan_wide(const Shape& shape, const uint8_t* table, const int32_t* start,
                 const uint8_t* codes, size_t n, const int32_t* threshold, Hit* hits) {
  const size_t M = shape.M, step = shape.K * kLanes;
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t total[kLanes] = {};
    for (size_t m = 0; m < M; m += kNarrow) {
      Sums sums = {};
      gather<true>(&sums, table + m * step, step, 0, codes + i * M + m,
                   M - m < kNarrow ? M - m : kNarrow);
      for (size_t p = 0; p < kParts; ++p) {
        U16 even = sums.all[p] - (sums.odd[p] << 8);
        for (size_t e = 0; e < kBytes / 2; ++e) {
          total[p * kBytes + 2 * e] += even[e];
          total[p * kBytes + 2 * e + 1] += sums.odd[p][e];
        }
      }
    }
    uint64_t lanes = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const int64_t sum = int64_t(total[lane]) + (kPerLane ? 0 : start[lane]);
      lanes |= uint64_t(sum >= threshold[kPerLane ? lane : i]) << lane;
    }
    if (!lanes) continue;
    hits[count].lanes = lanes;
    hits[count].row = uint32_t(i);
    memcpy(hits[count++].wide, total, sizeof total);
  }
  return count;
}

constexpr size_t kFullStep = 256 * kLanes;  // of K = 256

template <bool kPerLane>
size_t scan(const Shape& shape, int top, const uint8_t* table, const int32_t* start,
            const uint8_t* codes, size_t n, const int32_t* threshold, Hit* hits) {
  const bool pairs = top <= kCoarse;
  auto chosen = shape.M > kNarrow ? scan_wide<kPerLane>
                : shape.K == 256  ? pairs ? scan_narrow<kPerLane, true, kFullStep>
                                          : scan_narrow<kPerLane, false, kFullStep>
                : pairs           ? scan_narrow<kPerLane, true, 0>
                                  : scan_narrow<kPerLane, false, 0>;
  return chosen(shape, table, start, codes, n, threshold, hits);
}

size_t scan_rows(const Shape& shape, int top, const uint8_t* table, const int32_t* start,
                 const uint8_t* codes, size_t n, const int32_t* threshold, Hit* hits) {
  return scan<false>(shape, top, table, start, codes, n, threshold, hits);
}

size_t scan_lanes(const Shape& shape, int top, const uint8_t* table, const uint8_t* codes,
                  size_t n, const int32_t* threshold, Hit* hits) {
  return scan<true>(shape, top, table, nullptr, codes, n, threshold, hits);
}

void scan_two(const Shape& shape, int top, const uint8_t* table, const int32_t* start,
              const uint8_t* codes, size_t n, const int32_t* const* thresholds, Hit* const* hits,
              size_t* found) {
  const size_t M = shape.M, apart = M * kFullStep;
  if (kParts > 1 || shape.K != 256 || top <= kCoarse || M > kNarrow) {
    for (size_t t = 0; t < 2; ++t)
      found[t] = scan_rows(shape, top, table + t * M * shape.K * kLanes, start + t * kLanes, codes,
                           n, thresholds[t], hits[t]);
    return;
  }
  const Filter<false> one(start, nullptr), two(start + kLanes, nullptr);
  size_t first = 0, second = 0;
  for (size_t i = 0; i < n; ++i) {
    Sums sums[2] = {one.first, two.first};
    gather<false, 2>(sums, table, kFullStep, apart, codes + i * M, M);
    first += one.pass(sums[0], thresholds[0][i], i, hits[0][first]);
    second += two.pass(sums[1], thresholds[1][i], i, hits[1][second]);
  }
  found[0] = first, found[1] = second;
}

template <bool kExtra>
inline void thresholds_of(const double* target, const double* factor, size_t n, double extra,
                          double base, double inverse, int32_t limit, int32_t* out) {
  const double most = limit;
  for (size_t i = 0; i < n; ++i) {
    double x = ((kExtra ? target[i] - factor[i] * extra : target[i]) - base) * inverse;
    x = x > 0.0 ? x : 0.0;  // not a number: everything passes
    x = x < most ? x : most;
    out[i] = int32_t(x);
  }
}

void thresholds(const double* target, const double* factor, size_t n, double extra, double base,
                double inverse, int32_t limit, int32_t* out) {
  const auto chosen = extra == 0.0 ? thresholds_of<false> : thresholds_of<true>;
  chosen(target, factor, n, extra, base, inverse, limit, out);
}

}  // namespace RAYPQ_NS
