// The scan of one tile: uint8 lines of 64 columns, [M][K][64], so that a code picks one cache line
// in each sub-codebook.
//
// Registers of 16-bit sums accumulate pairs of bytes (``all``, which wraps) and the upper bytes
// alone (``odd``); the sum of the lower bytes is all − 256·odd, exact because it fits 16 bits.
// Coarse entries are at most 127, so two lines are added as bytes before they are widened.
//
// No overflow: a start up to kRoom and kNarrow coarse entries, or kFine fine ones, stay below 2^15
// (128·127 + 16383 and 64·255 + 16383). With more sub-codebooks than kNarrow, every kNarrow of them
// are added to 32-bit sums.

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

// Adds the line of one code in each of kTiles tiles, ``apart`` bytes from each other.
template <size_t kTiles>
__attribute__((always_inline)) inline void add_line(Sums* sums, const uint8_t* first,
                                                    size_t apart) {
  for (size_t t = 0; t < kTiles; ++t)
    for (size_t p = 0; p < kParts; ++p) add(sums[t], p, line(first + t * apart, p));
}

// The same for two codes.
template <size_t kTiles>
__attribute__((always_inline)) inline void add_pair(Sums* sums, const uint8_t* first,
                                                    const uint8_t* second, size_t apart) {
  for (size_t t = 0; t < kTiles; ++t)
    for (size_t p = 0; p < kParts; ++p)
      add(sums[t], p, line(first + t * apart, p) + line(second + t * apart, p));
}

// Adds the lines of a row's M codes, several in a step: the end of a loop of M steps would be
// mispredicted too often, and delay the loads of the next row.
template <bool kPairs, size_t kTiles = 1>
__attribute__((always_inline)) inline void gather(Sums* sums, const uint8_t* table, size_t step,
                                                  size_t apart, const uint8_t* code, size_t M) {
  constexpr size_t kStep = (kParts == 1 ? 8 : 4) / kTiles;  // more would not fit the registers
  auto at = [&](size_t m, size_t j) { return table + j * step + size_t(code[m + j]) * kTileWidth; };
  size_t m = 0;
  for (; m + kStep <= M; m += kStep, table += kStep * step)
    for (size_t j = 0; j < kStep; j += kPairs ? 2 : 1)
      if (kPairs)
        add_pair<kTiles>(sums, at(m, j), at(m, j + 1), apart);
      else
        add_line<kTiles>(sums, at(m, j), apart);
  for (; kPairs && m + 2 <= M; m += 2, table += 2 * step)
    add_pair<kTiles>(sums, at(m, 0), at(m, 1), apart);
  for (; m < M; ++m, table += step) add_line<kTiles>(sums, at(m, 0), apart);
}

// Splits the values of 64 columns into registers of even and odd columns.
inline void split(const int32_t* values, I16* even, I16* odd) {
  for (size_t p = 0; p < kParts; ++p)
    for (size_t e = 0; e < kBytes / 2; ++e) {
      even[p][e] = int16_t(values[p * kBytes + 2 * e]);
      odd[p][e] = int16_t(values[p * kBytes + 2 * e + 1]);
    }
}

// Compares the sums of one tile with thresholds: one for each column (kPerColumn), or one for each
// row, where the sums of each column begin with a value of their own (start).
template <bool kPerColumn>
struct Filter {
  Sums initial;
  I16 even_start[kParts] = {}, odd_start[kParts] = {}, even_limit[kParts], odd_limit[kParts];

  // ``thresholds``: of the columns; unused otherwise.
  Filter(const int32_t* start, const int32_t* thresholds) {
    if (kPerColumn)
      split(thresholds, even_limit, odd_limit);
    else
      split(start, even_start, odd_start);
    for (size_t p = 0; p < kParts; ++p) {
      initial.all[p] = (U16)even_start[p] + ((U16)odd_start[p] << 8);
      initial.odd[p] = (U16)odd_start[p];
    }
  }

  // Whether any column of a row reaches its threshold. ``hit`` is then written; otherwise it may
  // be.
  __attribute__((always_inline)) bool pass(const Sums& sums, int32_t threshold, size_t row,
                                           Hit& hit) const {
    const I16 row_limit = int16_t(threshold) - I16{};
    I16 even[kParts], below;
    for (size_t p = 0; p < kParts; ++p) {
      even[p] = (I16)(sums.all[p] - (sums.odd[p] << 8));
      const I16 both = ((kPerColumn ? even_limit[p] : row_limit) > even[p]) &
                       ((kPerColumn ? odd_limit[p] : row_limit) > (I16)sums.odd[p]);
      below = p ? below & both : both;
    }
    // Where hits are frequent, a mispredicted branch costs more than writing every row, unless that
    // takes several registers.
    constexpr bool kAlways = !kPerColumn && kParts == 1;
    const bool any = !all_set(below);
    if (!kAlways && __builtin_expect(!any, 1)) return false;
    hit.row = uint32_t(row);
    hit.columns = 0;
    for (size_t p = 0; p < kParts; ++p) {
      const uint32_t in_even = reaches(even[p], kPerColumn ? even_limit[p] : row_limit);
      const uint32_t in_odd = reaches((I16)sums.odd[p], kPerColumn ? odd_limit[p] : row_limit);
      hit.columns |= (expand(in_even) | expand(in_odd) << 1) << (p * kBytes % 64);
      *reinterpret_cast<U16u*>(hit.narrow + p * kBytes / 2) = (U16)(even[p] - even_start[p]);
      *reinterpret_cast<U16u*>(hit.narrow + (kTileWidth + p * kBytes) / 2) =
          sums.odd[p] - (U16)odd_start[p];
    }
    return any;
  }
};

// The sums that a row begins with.
__attribute__((always_inline)) inline Sums begin(const ScanRows& rows, size_t i,
                                                 const Sums& initial) {
  Sums sums = initial;
  if (rows.before) {
    const U16* before = reinterpret_cast<const U16*>(rows.before[i].values);
    for (size_t p = 0; p < kParts; ++p)
      sums.all[p] += before[p], sums.odd[p] += before[kParts + p];
  }
  return sums;
}

// kBytesPerPart: bytes of a sub-codebook's table, M of which make a tile, if known to the compiler;
// else 0.
template <bool kPerColumn, bool kPairs, size_t kBytesPerPart>
size_t scan_narrow(const Tile& tile, const ScanRows& rows, const int32_t* threshold, Hit* hits) {
  const size_t M = tile.shape.M, step = kBytesPerPart ? kBytesPerPart : tile.shape.K * kTileWidth;
  const uint8_t* const table = tile.table;
  const Filter<kPerColumn> filter(tile.start, threshold);
  size_t count = 0;
  for (size_t i = 0; i < rows.n; ++i) {
    Sums sums = begin(rows, i, filter.initial);
    gather<kPairs>(&sums, table, step, 0, rows.codes + i * rows.stride, M);
    count += filter.pass(sums, kPerColumn ? 0 : threshold[i], i, hits[count]);
  }
  return count;
}

template <bool kPerColumn>
size_t scan_wide(const Tile& tile, const ScanRows& rows, const int32_t* threshold, Hit* hits) {
  const size_t M = tile.shape.M, step = tile.shape.K * kTileWidth;
  const uint8_t* const table = tile.table;
  const int32_t* const start = tile.start;
  size_t count = 0;
  for (size_t i = 0; i < rows.n; ++i) {
    uint32_t total[kTileWidth] = {};
    for (size_t m = 0; m < M; m += kNarrow) {
      Sums sums = {};
      gather<true>(&sums, table + m * step, step, 0, rows.codes + i * rows.stride + m,
                   M - m < kNarrow ? M - m : kNarrow);
      for (size_t p = 0; p < kParts; ++p) {
        U16 even = sums.all[p] - (sums.odd[p] << 8);
        for (size_t e = 0; e < kBytes / 2; ++e) {
          total[p * kBytes + 2 * e] += even[e];
          total[p * kBytes + 2 * e + 1] += sums.odd[p][e];
        }
      }
    }
    uint64_t columns = 0;
    for (size_t c = 0; c < kTileWidth; ++c) {
      const int64_t sum = int64_t(total[c]) + (kPerColumn ? 0 : start[c]);
      columns |= uint64_t(sum >= threshold[kPerColumn ? c : i]) << c;
    }
    if (!columns) continue;
    hits[count].columns = columns;
    hits[count].row = uint32_t(i);
    memcpy(hits[count++].wide, total, sizeof total);
  }
  return count;
}

constexpr size_t kFullPart = 256 * kTileWidth;  // bytes of a sub-codebook's table with K = 256

template <bool kPerColumn>
size_t scan(const Tile& tile, const ScanRows& rows, const int32_t* threshold, Hit* hits) {
  const bool pairs = tile.top <= kCoarse;
  auto chosen = tile.shape.M > kNarrow ? scan_wide<kPerColumn>
                : tile.shape.K == 256  ? pairs ? scan_narrow<kPerColumn, true, kFullPart>
                                               : scan_narrow<kPerColumn, false, kFullPart>
                : pairs                ? scan_narrow<kPerColumn, true, 0>
                                       : scan_narrow<kPerColumn, false, 0>;
  return chosen(tile, rows, threshold, hits);
}

size_t scan_rows(const Tile& tile, const ScanRows& rows, const int32_t* threshold, Hit* hits) {
  return scan<false>(tile, rows, threshold, hits);
}

size_t scan_columns(const Tile& tile, const ScanRows& rows, const int32_t* threshold, Hit* hits) {
  return scan<true>(tile, rows, threshold, hits);
}

template <bool kPairs, size_t kBytesPerPart>
void add_to(const Tile& tile, const ScanRows& rows, RowSums* sums) {
  const size_t M = tile.shape.M, step = kBytesPerPart ? kBytesPerPart : tile.shape.K * kTileWidth;
  for (size_t i = 0; i < rows.n; ++i) {
    Sums of_row = begin(rows, i, {});
    gather<kPairs>(&of_row, tile.table, step, 0, rows.codes + i * rows.stride, M);
    U16* out = reinterpret_cast<U16*>(sums[i].values);
    for (size_t p = 0; p < kParts; ++p) out[p] = of_row.all[p], out[kParts + p] = of_row.odd[p];
  }
}

void add_rows(const Tile& tile, const ScanRows& rows, RowSums* sums) {
  const bool pairs = tile.top <= kCoarse;
  auto chosen = tile.shape.K == 256 ? pairs ? add_to<true, kFullPart> : add_to<false, kFullPart>
                : pairs             ? add_to<true, 0>
                                    : add_to<false, 0>;
  chosen(tile, rows, sums);
}

void scan_two(const Tile& tile, const ScanRows& rows, const int32_t* const* thresholds,
              Hit* const* hits, size_t* count) {
  const size_t M = tile.shape.M, apart = M * tile.shape.K * kTileWidth;
  if (kParts > 1 || tile.shape.K != 256 || tile.top <= kCoarse || M > kNarrow) {
    for (size_t t = 0; t < 2; ++t) {
      const Tile one{tile.shape, tile.top, tile.table + t * apart, tile.start + t * kTileWidth};
      count[t] = scan_rows(one, rows, thresholds[t], hits[t]);
    }
    return;
  }
  const uint8_t* const table = tile.table;
  const Filter<false> one(tile.start, nullptr), two(tile.start + kTileWidth, nullptr);
  size_t first = 0, second = 0;
  for (size_t i = 0; i < rows.n; ++i) {
    Sums sums[2] = {one.initial, two.initial};
    gather<false, 2>(sums, table, kFullPart, M * kFullPart, rows.codes + i * rows.stride, M);
    first += one.pass(sums[0], thresholds[0][i], i, hits[0][first]);
    second += two.pass(sums[1], thresholds[1][i], i, hits[1][second]);
  }
  count[0] = first, count[1] = second;
}

template <bool kExtra>
inline void thresholds_of(const double* cutoff, const double* factor, size_t n,
                          const ThresholdTerms& terms, int32_t* out) {
  const double extra = terms.extra, base = terms.base, inverse = terms.inverse;
  const double most = terms.limit;
  for (size_t i = 0; i < n; ++i) {
    double x = ((kExtra ? cutoff[i] - factor[i] * extra : cutoff[i]) - base) * inverse;
    x = x > 0.0 ? x : 0.0;  // NaN: everything passes
    x = x < most ? x : most;
    out[i] = int32_t(x);
  }
}

void thresholds(const double* cutoff, const double* factor, size_t n, const ThresholdTerms& terms,
                int32_t* out) {
  const auto chosen = terms.extra == 0.0 ? thresholds_of<false> : thresholds_of<true>;
  chosen(cutoff, factor, n, terms, out);
}

}  // namespace RAYPQ_NS
