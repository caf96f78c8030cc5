// Threads of the store's own: they sleep between jobs, so that they take nothing from whoever computes meanwhile.
#pragma once

#include <cstddef>
#include <functional>

namespace sslfast::store {

// Calls work(first, last) for parts of [0, count), `grain` or more items each, on up to `threads` threads, this one
// among them; returns when all are done. Work must not throw. Where another thread's job is under way, or after a fork
// in a child, everything runs in the calling thread, or in new threads.
void parallel(std::size_t count, std::size_t grain, int threads,
              const std::function<void(std::size_t, std::size_t)>& work);

}  // namespace sslfast::store
