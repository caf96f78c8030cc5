#pragma once
// What limit_cpu.cpp asks of one capability's kernel (limit_tile.cpp).
#include <cstdint>

namespace sslfast {

// Multiplies a register tile of numbers that stay in the first-level cache, `rounds` times; returns its
// floating-point operations. A multiply-add counts as two.
using LimitKernel = int64_t (*)(int64_t rounds);

namespace portable {
LimitKernel limit_kernel();
}
namespace avx2 {
LimitKernel limit_kernel();
}
namespace avx512 {
LimitKernel limit_kernel();
}
namespace avx512_bf16 {
LimitKernel limit_kernel();
}

}  // namespace sslfast
