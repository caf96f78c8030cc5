#pragma once
// Which vectors the CPU kernels may use. A kernel that gains from them is compiled once per capability
// (CMakeLists.txt: sslfast_vectorised) and chooses here, at run time.

namespace sslfast {

enum class Capability { portable = 128, avx2 = 256, avx512 = 512 };

// The widest vectors that this machine has and that `cpu_vector_bits` has not ruled out.
Capability cpu_capability();

}  // namespace sslfast
