#include "store/workers.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace sslfast::store {
namespace {

struct Job {
  const std::function<void(std::size_t, std::size_t)>* work;
  std::size_t count, grain;
  std::atomic<std::size_t> next{0};

  void run() {
    for (;;) {
      const std::size_t first = next.fetch_add(grain);
      if (first >= count) return;
      (*work)(first, std::min(first + grain, count));
    }
  }
};

class Pool {
 public:
  // False where a job of another thread is under way.
  bool run(Job& job, int helpers) {
    std::unique_lock busy(busy_, std::try_to_lock);
    if (!busy) return false;
    {
      std::lock_guard guard(mutex_);
      while (threads_ < helpers) {
        try {
          std::thread([this, index = threads_] { serve(index); }).detach();
        } catch (const std::system_error&) {
          break;  // no more threads are to be had: those that there are do the work
        }
        ++threads_;
      }
      job_ = &job;
      wanted_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    job.run();
    // Who has not woken up by now finds no job: nothing waits for a thread that the machine has no core for.
    std::unique_lock guard(mutex_);
    job_ = nullptr;
    done_.wait(guard, [this] { return running_ == 0; });
    return true;
  }

 private:
  void serve(int index) {
    std::size_t seen = 0;
    std::unique_lock guard(mutex_);
    for (;;) {
      wake_.wait(guard, [&] { return generation_ != seen; });
      seen = generation_;
      if (job_ == nullptr || index >= wanted_) continue;
      Job* const job = job_;
      ++running_;
      guard.unlock();
      job->run();
      guard.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  std::size_t generation_ = 0;
  Job* job_ = nullptr;
  int threads_ = 0, wanted_ = 0, running_ = 0;
};

// A forked child has the pool's memory and none of its threads, so it makes a pool of its own. Pools are never taken
// down: their threads sleep until the process ends.
Pool& pool() {
  static std::mutex mutex;
  static std::atomic<Pool*> current{nullptr};
  static std::atomic<pid_t> owner{0};
  const pid_t self = getpid();
  if (owner.load() != self) {
    std::lock_guard guard(mutex);
    if (owner.load() != self) {
      current.store(new Pool);
      owner.store(self);
    }
  }
  return *current.load();
}

}  // namespace

void parallel(std::size_t count, std::size_t grain, int threads,
              const std::function<void(std::size_t, std::size_t)>& work) {
  grain = std::max<std::size_t>(grain, 1);
  const std::size_t parts = (count + grain - 1) / grain;
  const int helpers =
      static_cast<int>(std::min<std::size_t>(std::max(threads, 1), std::max<std::size_t>(parts, 1))) - 1;
  if (count == 0) return;
  Job job{&work, count, grain};
  if (helpers < 1 || !pool().run(job, helpers)) job.run();
}

}  // namespace sslfast::store
