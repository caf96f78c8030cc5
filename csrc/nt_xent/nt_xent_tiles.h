#pragma once
// What nt_xent_cpu.cpp asks of one capability's kernels (nt_xent_tiles.cpp).
#include <cstdint>

namespace sslfast {

// 2N unit rows in two layouts. Rows are padded with zeros to whole blocks, D to whole slices.
template <typename T>
struct NtXentProblem {
  int64_t count;    // 2N
  int64_t depth;    // D
  int64_t padded;   // 2N, rounded up to whole blocks
  int64_t block;    // rows of a block: a multiple of NtXentKernels::panel
  const T* panels;  // (padded / panel, depth, panel): both sides of the score matrix
  const T* slices;  // (ceil(D / panel), padded, panel): what the weights pull
  T inverse_temperature;
};

template <typename T>
struct NtXentKernels {
  int64_t panel;  // rows, or numbers of a row, that are packed together
  // Packs `panel` rows, the first of them `first`, of which `rows` have a source; stores the factor of each.
  void (*pack)(const T* const* rows, int64_t used, int64_t first, int64_t depth, int64_t padded, T* panels, T* slices,
               T* inverse_norm);
  // Sums of exp(s_ij - 1 / temperature) over one pair of blocks: by row, and by column where the blocks differ. Stores
  // s_ij for every i whose partner is j.
  void (*forward)(const NtXentProblem<T>&, int64_t row_block, int64_t column_block, T* row_sums, T* column_sums,
                  T* positives);
  // Adds what one pair of blocks contributes to sum_j (p_ij + p_ji - 2 [j is i's partner]) u_j, for the rows of both;
  // `gradient` is laid out as the slices are.
  void (*backward)(const NtXentProblem<T>&, int64_t row_block, int64_t column_block, const T* inverse_sums,
                   T* gradient);
  // The gradient of one row: from the slices, times `scale`, through the normalisation.
  void (*finish)(const NtXentProblem<T>&, int64_t row, const T* gradient, T scale, T inverse_norm, T* result);
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
