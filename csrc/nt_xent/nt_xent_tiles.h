#pragma once
// What nt_xent_cpu.cpp asks of one capability's kernels (nt_xent_tiles.cpp).
#include <cstdint>

namespace sslfast {

// 2N rows of `depth` numbers, in the two layouts that the kernels read; padding holds zeros.
template <typename T>
struct NtXentProblem {
  int64_t count;    // 2N
  int64_t depth;    // D
  int64_t width;    // D, rounded up to whole panels
  const T* rows;    // (count rounded up to blocks, width): row-major
  const T* panels;  // (count rounded up to tiles / panel, depth, panel): columns of the score matrix
  const T* lse;     // (count rounded up to tiles), backward only
  T inverse_temperature;
};

template <typename T>
struct NtXentKernels {
  int64_t block;  // rows of the score matrix that one step holds
  int64_t tile;   // columns of the score matrix that one step holds
  int64_t panel;  // columns that are packed together
  // Rows [block * index, ...): log-sum-exp, and the row's loss in double.
  void (*forward)(const NtXentProblem<T>&, int64_t index, T* lse, double* row_loss);
  // Rows [block * index, ...): `scale` times sum_j (p_ij + p_ji - 2 [j is i's partner]) z_j, into (block, width).
  void (*backward)(const NtXentProblem<T>&, int64_t index, T scale, T* gradient);
};

namespace portable {
template <typename T>
NtXentKernels<T> nt_xent_kernels();
}
namespace avx2 {
template <typename T>
NtXentKernels<T> nt_xent_kernels();
}
namespace avx512 {
template <typename T>
NtXentKernels<T> nt_xent_kernels();
}

}  // namespace sslfast
