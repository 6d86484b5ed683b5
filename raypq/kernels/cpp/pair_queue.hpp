// A queue of pairs between the threads that find them and the one that takes them.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "join.hpp"

namespace raypq {

constexpr size_t kWaitingChunks = 16;

// Pairs on their way from the threads that find them to the one that takes them.
class PairQueue {
 public:
  // Waits while many chunks are not taken yet; false if no more are wanted.
  bool push(std::vector<RowPair>& pairs) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || chunks_.size() < kWaitingChunks; });
    if (closed_) return false;
    chunks_.push_back(std::move(pairs));
    pairs.clear();
    changed_.notify_all();
    return true;
  }

  // The oldest chunk; none after the last one. Rethrows what a thread has thrown.
  std::vector<RowPair> pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return finished_ || !chunks_.empty(); });
    if (chunks_.empty()) {
      if (failure_) std::rethrow_exception(failure_);
      return {};
    }
    std::vector<RowPair> pairs = std::move(chunks_.front());
    chunks_.pop_front();
    changed_.notify_all();
    return pairs;
  }

  // All pairs are found, or a thread has failed.
  void finish(std::exception_ptr failure) {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
    failure_ = failure;
    changed_.notify_all();
  }

  // No more pairs are wanted.
  void close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::vector<RowPair>> chunks_;
  bool finished_ = false, closed_ = false;
  std::exception_ptr failure_;
};

}  // namespace raypq
