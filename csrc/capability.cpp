#include "sslfast/capability.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace sslfast {
namespace {

int widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return static_cast<int>(Capability::avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return static_cast<int>(Capability::avx2);
#endif
  return static_cast<int>(Capability::portable);
}

std::atomic<int>& limit() {
  static std::atomic<int> bits{widest()};
  return bits;
}

int64_t cpu_vector_bits(int64_t most) {
  if (most > 0) {
    const int bits = most >= 512 ? 512 : most >= 256 ? 256 : 128;
    limit() = std::min(bits, widest());
  }
  return limit();
}

}  // namespace

Capability cpu_capability() { return static_cast<Capability>(limit().load()); }

}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_vector_bits", TORCH_BOX(&sslfast::cpu_vector_bits));
}
