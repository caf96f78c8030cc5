#pragma once
// Which vectors the CPU kernels may use. A kernel that gains from them is compiled once per capability
// (CMakeLists.txt: sslfast_vectorised) and chooses here, at run time.

namespace sslfast {

enum class Capability { portable = 128, avx2 = 256, avx512 = 512 };

// The widest vectors that this machine has and that `cpu_vector_bits` has not ruled out.
Capability cpu_capability();

// What portable::NAME(), avx2::NAME() or avx512::NAME() returns, of the widest that may be used.
#if defined(__x86_64__)
#define SSLFAST_CHOOSE(...)                                       \
  (cpu_capability() == Capability::avx512 ? avx512::__VA_ARGS__() \
   : cpu_capability() == Capability::avx2 ? avx2::__VA_ARGS__()   \
                                          : portable::__VA_ARGS__())
#else
#define SSLFAST_CHOOSE(...) portable::__VA_ARGS__()
#endif

}  // namespace sslfast
