// The benchmark's yardstick: how many multiply-adds all threads do while nothing waits for memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "limit.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"

namespace sslfast {
namespace {

LimitKernel kernel(bool half) {
#if defined(__x86_64__)
  if (half && cpu_capability() == Capability::avx512 && __builtin_cpu_supports("avx512bf16")) {
    return avx512_bf16::limit_kernel();
  }
#endif
  STD_TORCH_CHECK(!half, "cpu_multiply: this processor does not multiply bfloat16 (AVX512-BF16)");
  return SSLFAST_CHOOSE(limit_kernel);
}

int64_t cpu_multiply(int64_t threads, int64_t rounds, bool half) {
  STD_TORCH_CHECK(threads > 0 && rounds > 0, "cpu_multiply: threads and rounds must be > 0, got ", threads, " and ",
                  rounds);
  const LimitKernel multiply = kernel(half);
  std::atomic<int64_t> operations{0};
  torch::stable::parallel_for(0, threads, 1,
                              [&](int64_t begin, int64_t end) { operations += multiply((end - begin) * rounds); });
  return operations;
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_multiply", TORCH_BOX(&sslfast::cpu_multiply));
}
