// Scans of tiles that are larger than the L2 cache: some sub-codebooks at a time, with the sums of
// a run of rows carried from one part of a tile to the next. A smaller tile is one part.
#pragma once

#include <algorithm>

#include "scan.hpp"
#include "tables.hpp"

namespace raypq {

// A scan's view of one tile after another, with one thread's room for carried sums.
class TileParts {
 public:
  explicit TileParts(const ScanTables& tables) : t_(tables) {
    const size_t M = t_.source.shape.M;
    const size_t parts = (t_.tile_bytes() + tile_cache() - 1) / tile_cache();
    if (parts < 2 || M > kNarrow) return;  // sums of more than 16 bits are not carried
    // A multiple of the lines that a scan adds in a step; the last part may have half of it more.
    size_ = M / parts / kStep * kStep, last_ = size_ * (parts - 1);
    if (M - last_ > size_ + size_ / 2) size_ += kStep, last_ = (M - 1) / size_ * size_;
    sums_ = Array<RowSums>(kRun);
  }

  // Most rows, out of n, between two calls of ``begin``: so many that reading a part of the tile
  // costs little, so few that their sums do not displace it.
  size_t run(size_t n) const { return last_ ? std::min(n, kRun) : n; }

  // Sums the entries of codes [n, M], n ≤ run(n), for all parts of a tile but the last.
  void begin(size_t tile, const uint8_t* codes, size_t n) {
    const Shape& s = t_.source.shape;
    codes_ = codes;
    for (size_t m = 0; m < last_; m += size_) {
      const Tile part = slice(tile, m, size_);
      read(part, n);
      t_.isa.add_rows(part, {codes + m, n, s.M, m ? sums_.data() : nullptr}, sums_.data());
    }
    read(last(tile), n);
  }

  // What scans the rows [first, first + n) of these codes: the tile's last part, and the rows with
  // their sums over the others.
  Tile last(size_t tile) const { return slice(tile, last_, t_.source.shape.M - last_); }
  ScanRows rows(size_t first, size_t n) const {
    const size_t M = t_.source.shape.M;
    return {codes_ + first * M + last_, n, M, last_ ? sums_.data() + first : nullptr};
  }

 private:
  static constexpr size_t kRun = 4096, kStep = 8;

  Tile slice(size_t tile, size_t m, size_t M) const {
    Tile part = t_.tile(tile);
    part.table += m * part.shape.K * kTileWidth;
    part.shape.M = M;
    return part;
  }

  static void read(const Tile& part, size_t n) {
    if (n > part.shape.K)  // fewer rows may not need every line
      touch(part.table, part.shape.M * part.shape.K * kTileWidth);
  }

  const ScanTables& t_;
  size_t size_ = 0, last_ = 0;  // sub-codebooks of a part, and the first one of the last part
  const uint8_t* codes_ = nullptr;
  Array<RowSums> sums_;
};

}  // namespace raypq
