#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace lowbit_python {
namespace {

constexpr int max_threads = 1024;

// One call's work in equal parts; whoever is free takes the next.
struct job {
  void (*body)(void* arg, int64_t begin, int64_t end);
  void* arg;
  int64_t count, parts;
  std::atomic<int64_t> next{0};
  int64_t helpers_done = 0;  // guarded by the pool's mutex

  void work() {
    for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;)
      body(arg, count * part / parts, count * (part + 1) / parts);
  }
};

class pool {
 public:
  // The caller works, too, and takes back the invitations that no worker has taken when the work is all begun.
  void run(job& j) {
    const int64_t helpers = j.parts - 1;
    {
      const std::lock_guard lock(mutex_);
      for (; num_workers_ < helpers; ++num_workers_) std::thread([this] { serve(); }).detach();
      invitations_.insert(invitations_.end(), static_cast<size_t>(helpers), &j);
    }
    invited_.notify_all();
    j.work();
    std::unique_lock lock(mutex_);
    const int64_t accepted = helpers - static_cast<int64_t>(std::erase(invitations_, &j));
    done_.wait(lock, [&] { return j.helpers_done == accepted; });
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      invited_.wait(lock, [this] { return !invitations_.empty(); });
      job* j = invitations_.front();
      invitations_.pop_front();
      lock.unlock();
      j->work();
      lock.lock();
      ++j->helpers_done;
      done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable invited_, done_;
  std::deque<job*> invitations_;
  int64_t num_workers_ = 0;
};

pool* the_pool = nullptr;  // never deleted: its threads end with the process

pool& shared_pool() {
  static const bool made = [] {
    the_pool = new pool;
    pthread_atfork(nullptr, nullptr, [] { the_pool = new pool; });  // threads do not survive a fork
    return true;
  }();
  (void)made;
  return *the_pool;
}

void run(void* context, int64_t count, void (*body)(void* arg, int64_t begin, int64_t end), void* arg) {
  job j{body, arg, count, std::min<int64_t>(count, reinterpret_cast<intptr_t>(context))};
  shared_pool().run(j);
}

}  // namespace

lowbit_parallel threads(int num_threads) {
  if (num_threads < 0 || num_threads > max_threads)
    throw std::invalid_argument("num_threads is " + std::to_string(num_threads) + ": it must be 0 to " +
                                std::to_string(max_threads));
  const int n = num_threads > 0 ? num_threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return {run, reinterpret_cast<void*>(static_cast<intptr_t>(n)), n};
}

}  // namespace lowbit_python
