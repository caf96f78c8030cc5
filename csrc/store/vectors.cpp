#include "store/vectors.h"

#include <algorithm>
#include <atomic>

namespace sslfast::store {
namespace {

int found() {
#if defined(__x86_64__)
  const bool narrow = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  const bool middle = narrow && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (middle && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq")) return 512;
  return middle ? 256 : narrow ? 128 : 0;
#else
  return 0;
#endif
}

std::atomic<int> limit{512};

}  // namespace

int vector_bits() {
  static const int widest = found();
  return std::min(widest, limit.load(std::memory_order_relaxed));
}

void limit_vectors(int bits) {
  if (bits != 0) limit = bits;
}

}  // namespace sslfast::store
