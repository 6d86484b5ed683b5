// Aligned memory, threads, and the choice of the instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)  // GCC
#define RAYPQ_ASAN
#elif defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer)
#define RAYPQ_ASAN
#endif
#endif
#if defined(RAYPQ_ASAN)
#include <sanitizer/asan_interface.h>
#endif

#include "isa.hpp"

namespace raypq {

// An array aligned for vector loads. Large ones use huge pages: a scan accesses a tile of several
// hundred KB at random, more 4 KB pages than the first-level TLB holds.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(size_t size) : size_(size) {
    if (size > std::numeric_limits<size_t>::max() / 2 / sizeof(T)) throw std::bad_alloc();
    const size_t align = size * sizeof(T) >= kHuge ? kHuge : 64;
    const size_t bytes = (size * sizeof(T) + align - 1) / align * align;
    data_ = static_cast<T*>(std::aligned_alloc(align, bytes ? bytes : align));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (align == kHuge) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
#if defined(RAYPQ_ASAN)  // otherwise the rounded-up size would hide overruns
    ASAN_POISON_MEMORY_REGION(data_ + size, (bytes ? bytes : align) - size * sizeof(T));
#endif
  }
  Array(Array&& other) noexcept { swap(other); }
  Array& operator=(Array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Array() { std::free(data_); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr size_t kHuge = size_t(2) << 20;
  void swap(Array& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  T* data_ = nullptr;
  size_t size_ = 0;
};

// Runs work(thread, task) for every task on at most ``threads`` threads, fewer if the system
// refuses some. A thread that finishes a task takes the next one. Rethrows the first exception.
template <class Work>
void parallel(size_t tasks, size_t threads, Work work) {
  threads = std::min(threads, tasks);
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  auto loop = [&](size_t thread) {
    try {
      for (size_t task; (task = next.fetch_add(1)) < tasks;) work(thread, task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(guard);
      if (!failure) failure = std::current_exception();
      next = tasks;
    }
  };
  std::vector<std::thread> others;
  try {
    for (size_t thread = 1; thread < threads; ++thread) others.emplace_back(loop, thread);
  } catch (const std::system_error&) {  // the threads that did start do all tasks
  }
  loop(0);
  for (auto& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

// Bytes of tables that stay in a core's L2 cache while other data passes through it.
size_t tile_cache();

// The instruction set called ``name``, or the best that the CPU has if it is empty. Throws
// std::invalid_argument if the CPU or this build lacks it.
const Isa& choose_isa(const std::string& name);

// Names of the instruction sets that this CPU can run, best first.
std::vector<std::string> available_isas();

}  // namespace raypq
