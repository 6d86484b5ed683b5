// Memory, threads and the choice of the instruction set.
#pragma once

#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa.hpp"

namespace raypq {

// Aligned memory for what vector loads touch. Large arrays ask for huge pages: a scan jumps about
// in a tile of several hundred KB, more 4 KB pages than the first-level TLB holds.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(size_t size) : size_(size) {
    const size_t align = size * sizeof(T) >= kHuge ? kHuge : 64;
    const size_t bytes = (size * sizeof(T) + align - 1) / align * align;
    data_ = static_cast<T*>(std::aligned_alloc(align, bytes ? bytes : align));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (align == kHuge) madvise(data_, bytes, MADV_HUGEPAGE);
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

// Runs work(thread, task) for every task on at most ``threads`` threads; a thread takes the next
// task when it is done with one. The first exception is thrown again here.
template <class Work>
void parallel(size_t tasks, size_t threads, Work work) {
  threads = threads < tasks ? threads : tasks;
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
  for (size_t thread = 1; thread < threads; ++thread) others.emplace_back(loop, thread);
  if (threads) loop(0);
  for (auto& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

// The instruction set called ``name``; the best that the CPU has where it is empty.
// Throws std::invalid_argument where the CPU or this build lacks it.
const Isa& choose_isa(const std::string& name);

// Names of those that this CPU can run, best first.
std::vector<std::string> available_isas();

}  // namespace raypq
