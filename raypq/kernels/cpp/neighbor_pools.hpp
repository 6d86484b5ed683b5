// The nearest codes of each query that a search has found so far.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace raypq {

// A code near a query. Its distance is a sum of T, which differs from its score by rounding.
struct NearCode {
  float distance;
  uint32_t place;

  bool operator<(const NearCode& other) const {
    return distance != other.distance ? distance < other.distance : place < other.place;
  }
  bool operator==(const NearCode& other) const = default;
};

// Threads may add codes to the same query. What is found does not depend on their order.
class NeighborPools {
 public:
  // margin: of a sum of T, as in NeighborIndex.
  NeighborPools(size_t n, size_t k, double margin)
      : k_(k), room_(room(k)), margin_(margin), codes_(n * room_), count_(n, 0), bound_(n),
        locks_(kLocks) {
    for (auto& bound : bound_) bound.store(std::numeric_limits<float>::infinity());
  }

  static size_t room(size_t k) { return k + std::max<size_t>(k / 2, 5); }
  static size_t bytes(size_t n, size_t k) { return n * (room(k) * sizeof(NearCode) + 8); }

  // No code farther than this is among the k best; infinite until k codes were added.
  float bound(size_t query) const { return bound_[query].load(std::memory_order_relaxed); }
  const NearCode* begin(size_t query) const { return codes_.data() + query * room_; }
  void prefetch(size_t query) const { __builtin_prefetch(&bound_[query]); }
  size_t count(size_t query) const { return count_[query]; }

  // Adds a code, which may come again. Where more codes than there is room for have about the k-th
  // distance, keep(codes, n) moves the k best of n to the front, and returns a bound of their
  // distances.
  template <class Keep>
  void add(size_t query, NearCode code, Keep keep) {
    const Lock lock(locks_[query % kLocks]);
    if (code.distance > bound(query)) return;
    NearCode* const pool = codes_.data() + query * room_;
    uint32_t& count = count_[query];
    NearCode* const at = std::lower_bound(pool, pool + count, code);
    if (at != pool + count && *at == code) return;
    std::move_backward(at, pool + count, pool + count + 1);
    *at = code;
    ++count;
    if (count < k_) return;
    // Scores of the k nearest and that of a farther code may each be off by half of the excess.
    lower(query, double(pool[k_ - 1].distance) * (1 + 0x1p-18) + 3 * margin_);
    while (count > k_ && pool[count - 1].distance > bound(query)) --count;
    if (count < room_) return;
    lower(query, keep(pool, count));
    count = uint32_t(k_);
    std::sort(pool, pool + k_);
  }

 private:
  static constexpr size_t kLocks = 1 << 12;

  struct Flag {
    std::atomic_flag set;
  };
  // Held for some tens of nanoseconds, and rarely wanted by two threads.
  class Lock {
   public:
    explicit Lock(Flag& flag) : flag_(flag) {
      while (flag_.set.test_and_set(std::memory_order_acquire)) {
      }
    }
    ~Lock() { flag_.set.clear(std::memory_order_release); }
    Lock(const Lock&) = delete;

   private:
    Flag& flag_;
  };

  void lower(size_t query, double to) {
    if (to < bound(query)) bound_[query].store(float(to), std::memory_order_relaxed);
  }

  size_t k_, room_;
  double margin_;
  std::vector<NearCode> codes_;  // [n, room], nearest first
  std::vector<uint32_t> count_;
  std::vector<std::atomic<float>> bound_;
  std::vector<Flag> locks_;
};

}  // namespace raypq
